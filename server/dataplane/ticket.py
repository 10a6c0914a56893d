"""A ticket: one admitted request on its way through a queue. **Pure.**

Its state moves by a table, and ENDED is final: whoever moves a ticket there owns its one answer.
"""

from collections.abc import Mapping
from enum import Enum
from sys import getsizeof
from typing import Any, Protocol

from server.core.clock import NS_PER_S
from server.core.errors import PodiumError
from server.core.hashing import id_hash
from server.core.signature import CheckedRows
from server.core.tensors import Array
from server.dataplane.interface import Execution

NO_DEADLINE_NS = 2**62
NO_ID_HASH = id_hash("")
PATIENCE_NS = 10 * NS_PER_S
"""A ticket without a deadline is ordered as if it were due this long after it arrived, so that urgent traffic cannot
starve it for ever. It is never dropped for being "late"."""


class TicketState(Enum):
    """WAITING in a lane, TAKEN into a running batch, ENDED by exactly one answer."""

    WAITING = "waiting"
    TAKEN = "taken"
    ENDED = "ended"


TRANSITIONS: dict[TicketState, frozenset[TicketState]] = {
    TicketState.WAITING: frozenset({TicketState.TAKEN, TicketState.ENDED}),
    TicketState.TAKEN: frozenset({TicketState.ENDED}),
    TicketState.ENDED: frozenset(),
}


class Reply(Protocol):
    """Where an answer goes: an `asyncio.Future` at the door, a `concurrent.futures.Future` in tests."""

    def done(self) -> bool:
        """Whether the caller has gone or has been answered."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Answer with outputs by name."""
        ...

    def set_exception(self, error: BaseException, /) -> None:
        """Answer with an error."""
        ...


class StreamReply(Reply, Protocol):
    """A reply that takes any number of answers before its last; `set_result` says that there are no more."""

    def add(self, outputs: Mapping[str, Array], /) -> None:
        """Answer, with more to come."""
        ...

    def reserve(self, outputs: Mapping[str, Array], /) -> float:
        """Make room for an answer that `add` will bring; called by the engine's thread.

        Returns: how full its caller's room is with it. Above 1 there is no room, and the answer must not be added.
        """
        ...


class Ticket:
    """One admitted request.

    Units: times are monotonic ns. `priority` 0 is the most urgent. Ownership: the data plane, under its lock, from `submit`
    until ENDED; `checked` and `reply` are dropped then: a ticket stays in the heap of deadlines until its own has passed, and
    must not keep its tensors, or through its reply the answer, for that long.
    """

    __slots__ = (
        "arrival_ns",
        "cache_key",
        "checked",
        "deadline_ns",
        "due_ns",
        "execution",
        "id_hash",
        "nbytes",
        "priority",
        "queue_id",
        "refusal",
        "reply",
        "rows",
        "shape_key",
        "size_class",
        "state",
    )

    def __init__(
        self, checked: CheckedRows, reply: Reply, arrival_ns: int, deadline_ns: int = NO_DEADLINE_NS, priority: int = 0
    ) -> None:
        self.checked: CheckedRows | None = checked
        self.rows = checked.rows
        self.shape_key = checked.shape_key
        self.size_class = checked.size_class
        self.nbytes = sum(map(held_bytes, checked.arrays.values()))
        self.reply = reply
        self.arrival_ns = arrival_ns
        self.deadline_ns = deadline_ns
        self.due_ns = deadline_ns if deadline_ns < NO_DEADLINE_NS else arrival_ns + PATIENCE_NS
        self.priority = priority
        self.queue_id = 0
        self.id_hash = NO_ID_HASH
        self.cache_key: bytes | None = None  # what its answer may be remembered by
        self.execution: Execution | None = None  # set when it was executed, before its answer leaves
        self.refusal: PodiumError | None = None  # why it ended without execution, if the data plane ended it so
        self.state = TicketState.WAITING

    def move(self, following: TicketState) -> None:
        """Enter `following`. Raises: ValueError for a transition the table does not have (a bug)."""
        if following not in TRANSITIONS[self.state]:
            raise ValueError(f"a ticket cannot go from {self.state.value} to {following.value}")
        self.state = following
        if following is TicketState.ENDED:
            self.checked = None

    def end(self) -> Reply:
        """Enter ENDED, and let go of the reply: it belongs to the caller of this method, who answers it or drops it."""
        self.move(TicketState.ENDED)
        reply = self.reply
        del self.reply
        return reply


def held_bytes(array: Array) -> int:
    """Memory of a tensor. An array of BYTES holds pointers, so its elements count as well: one may be megabytes."""
    if array.dtype != object:
        return array.nbytes
    return array.nbytes + sum(map(getsizeof, array.ravel().tolist()))
