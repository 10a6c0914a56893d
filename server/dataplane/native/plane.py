"""The native kind: `podium_native.Plane`, and beside it the requests that Python decoded.

The same rules as in `server.dataplane.python.plane`, in C++ (server/dataplane/native/src/plan.h), so that requests which
arrive there are admitted, gathered, answered and expired without the interpreter. What Python decoded waits in the same queues
under a number; this file knows which ticket that is.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from weakref import WeakMethod

import numpy as np
import podium_native
from numpy.typing import NDArray

from server.core.clock import Clock
from server.core.errors import Expired, NotReady, Overloaded, PodiumError, ShuttingDown
from server.core.signature import Signature
from server.core.tensors import Array
from server.dataplane.interface import Batch, Part, QueueClosed, QueueRules, QueueSnapshot
from server.dataplane.limit import InflightLimit
from server.dataplane.native.batches import Ending, batch_of, results_of
from server.dataplane.native.endings import not_admitted, unexecuted
from server.dataplane.native.routes import RouteRules, masks, stated
from server.dataplane.python.answers import Answer, check_parts, give_further, outcomes_of
from server.dataplane.ticket import Reply, StreamReply, Ticket, TicketState

_STATES = (TicketState.WAITING, TicketState.TAKEN, TicketState.ENDED)
_INTERNAL = 13


def _internal(error: PodiumError) -> Ending:
    return _INTERNAL, str(error), ()


class _Open:
    """A ticket of Python's own that is open. `arrays` outlive a cancel: a batch may be reading them. `left`: its batch
    has ended too, after it had expired, and `_ended` has yet to come.
    """

    __slots__ = ("arrays", "handle", "left", "ticket")

    def __init__(self, ticket: Ticket, arrays: Mapping[str, Array]) -> None:
        self.ticket = ticket
        self.arrays = arrays
        self.handle: Any = None
        self.left = False


class NativePlane:
    """A `DataPlane`, and `submit` and `cancel` for the door's handlers. See `PythonPlane` for what both have."""

    kind = "native"

    def __init__(
        self,
        clock: Clock,
        limit: InflightLimit,
        deliver: Callable[[Sequence[Answer], int | None], None],
        on_device: Callable[[str], None] = lambda device: None,
        slots: Callable[[str], int] = lambda device: 1,
        *,
        density: bool = False,
        ending: Callable[[PodiumError], Ending] = _internal,
    ) -> None:
        """`clock` must be the monotonic one: it is read natively. `limit` says how much may be in flight, and is not counted
        in. `ending`: how calls end that fail.
        """
        self._clock = clock
        self._deliver = deliver
        self._on_device = on_device
        self._slots = slots
        self._ending = ending
        self._lock = threading.Lock()  # guards the two below
        self._open: dict[int, _Open] = {}
        self._numbers: dict[Ticket, int] = {}
        self._number = 0
        self._rules: dict[int, QueueRules] = {}
        self._failed: dict[int, str] = {}  # by entrance, gone or not: who left as one of its queues failed may ask later
        self._entrances: dict[int, Signature] = {}
        self.native = podium_native.Plane(limit.max_requests, limit.max_bytes, density)
        self.native.on_ended(_weakly(self._ended))
        self.follow()

    def follow(self) -> None:
        """Refuse by the codes in force."""
        overloaded, expired = self._ending(Overloaded("")), self._ending(Expired(""))
        stopping = self._ending(ShuttingDown(""))
        self.native.set_endings(overloaded[0], expired[0], stopping[0], bool(overloaded[2]))

    # -- the door's side ------------------------------------------------------------------------------------------------

    def submit(self, entrance: int, ticket: Ticket, *, wake: bool = True) -> None:
        """See `PythonPlane.submit`."""
        signature = self._entrances.get(entrance)
        if signature is None or ticket.checked is None:
            raise QueueClosed("the version has just left service")
        entry = _Open(ticket, ticket.checked.arrays)
        ticket.queue_id = entrance
        with self._lock:
            self._number += 1
            number = self._number
            self._open[number] = entry
            self._numbers[ticket] = number
            outcome = ""
            try:
                # under the lock: whoever is told of its end finds it whole
                entry.handle, outcome, ns, count = self.native.submit(
                    number,
                    entrance,
                    _shape(signature, ticket),
                    ticket.rows,
                    ticket.nbytes,
                    ticket.id_hash,
                    ticket.arrival_ns,
                    ticket.deadline_ns,
                    ticket.priority,
                    wake,
                    ticket.size_class,
                )
            finally:
                if outcome != "admitted":
                    del self._open[number], self._numbers[ticket]
            if outcome == "admitted":
                return
        raise not_admitted(outcome, ns, count)

    def wake(self) -> None:
        """See `PythonPlane.wake`."""
        self.native.wake()

    def observe_delivery(self, took_ns: int) -> None:
        """See `PythonPlane.observe_delivery`."""
        self.native.observe_delivery(took_ns)

    def cancel(self, ticket: Ticket) -> TicketState:
        """See `PythonPlane.cancel`."""
        with self._lock:
            number = self._numbers.get(ticket)
            if number is None:
                return TicketState.ENDED
            handle = self._open[number].handle
            state, refused = self.native.cancel(handle)
            before = _STATES[state]
            if before is TicketState.ENDED:
                if refused:  # before its caller left, who is the one to count it
                    ticket.refusal = unexecuted(
                        refused, self._failed.get(handle.queue_id, ""), staged=ticket.state is TicketState.TAKEN
                    )
                return before  # its answer is on its way
            ticket.end()
            del self._numbers[ticket]
            if before is TicketState.WAITING:
                del self._open[number]  # one that is taken is its batch's until that ends
            return before

    # -- the engine's side ----------------------------------------------------------------------------------------------

    def open(self, rules: QueueRules) -> None:
        """See `DataPlane.open`."""
        have, need = self.native.threads_for(rules.device, self._slots(rules.device), rules.instances)
        for _ in range(have, need):
            self._on_device(rules.device)
        self.native.open(
            rules.device,
            rules.queue_id,
            list(rules.buckets),
            list(rules.costs_ns),
            rules.signature.max_batch,
            rules.max_requests,
            rules.queue_delay_ns,
            rules.padding,
            rules.early_drop,
            rules.decoupled,
            rules.instances,
            rules.share,
            rules.entrance,
        )
        self._rules[rules.queue_id] = rules
        self._entrances[rules.entrance] = rules.signature

    def take(self, device: str) -> Batch | None:
        """See `DataPlane.take`."""
        taken: Any = self.native.take(device)
        if taken is None:
            return None
        decoded: dict[int, tuple[Ticket, Mapping[str, Array]]] = {}
        with self._lock:
            for place, number in taken.numbers():
                entry = self._open[number]
                if entry.ticket.state is TicketState.WAITING:
                    entry.ticket.move(TicketState.TAKEN)
                decoded[place] = entry.ticket, entry.arrays
        return batch_of(taken, self._rules[taken.queue_id], decoded, 0)

    def enter_device(self, batch: Batch) -> None:
        """See `DataPlane.enter_device`."""
        (taken,) = batch.tickets
        batch.execution.taken_ns = self.native.enter_device(taken)

    def leave_device(self, batch: Batch) -> None:
        """See `DataPlane.leave_device`."""
        (taken,) = batch.tickets
        self.native.leave_device(taken)

    def respond(self, batch: Batch, outputs: Mapping[str, Array]) -> bool:
        """See `DataPlane.respond`. Requests of decoupled versions are always decoded by Python."""
        (taken,) = batch.tickets
        ((_, number),) = taken.numbers()
        with self._lock:
            ticket = self._open[number].ticket
            if ticket.state is not TicketState.TAKEN:
                return False
            reply = cast(StreamReply, ticket.reply)
        give_further(reply, outputs, self._deliver)
        return True

    def finish(self, batch: Batch, parts: Sequence[Part], *, ran_rows: int, ran_ns: int) -> NDArray[np.bool_]:
        """See `DataPlane.finish`."""
        (taken,) = batch.tickets
        check_parts(parts, taken.requests)
        execution = batch.execution
        results = results_of(parts, batch.rules, self._ending, batch.spans)
        ended_ns = self._clock()
        said = self.native.finish(
            taken,
            results,
            execution.taken_ns,
            execution.ran_ns,
            execution.features_ns,
            execution.lead_ns,
            execution.rows,
            ran_rows,
            ran_ns,
        )
        answered = np.frombuffer(said, dtype=np.bool_)
        numbers = taken.numbers()
        if numbers:
            self._answer(batch, parts, numbers, answered, ended_ns)
        return answered

    def _answer(
        self,
        batch: Batch,
        parts: Sequence[Part],
        numbers: Sequence[tuple[int, int]],
        answered: NDArray[np.bool_],
        ended_ns: int,
    ) -> None:
        outcomes = outcomes_of(batch, parts)
        answers: list[Answer] = []
        with self._lock:
            for place, number in numbers:
                entry = self._open.pop(number)
                if not answered[place] and entry.ticket in self._numbers:
                    # it expired, and `_ended` has not come this far: it is the one to answer
                    entry.left = True
                    self._open[number] = entry
                if answered[place]:
                    del self._numbers[entry.ticket]
                    entry.ticket.execution = batch.execution
                    answers.append((entry.ticket.end(), outcomes[place]))
        if answers:
            self._deliver(answers, ended_ns)

    def close(self, queue_id: int, *, move: bool = False) -> None:
        """See `DataPlane.close`."""
        self.native.close(queue_id, move)

    def fail(self, queue_id: int, reason: str) -> None:
        """See `DataPlane.fail`."""
        rules = self._rules.get(queue_id)
        if rules is None:
            return
        self._failed[rules.entrance] = reason
        code, text, trailing = self._ending(NotReady(reason))  # DeviceLost has the same
        self.native.fail(queue_id, code, text, list(trailing))

    def wait_idle(self, queue_id: int, timeout_s: float) -> bool:
        """See `DataPlane.wait_idle`."""
        if not self.native.wait_idle(queue_id, timeout_s):
            return False
        gone = self._rules.pop(queue_id, None)
        if gone is not None and all(rules.entrance != gone.entrance for rules in self._rules.values()):
            del self._entrances[gone.entrance]
        return True

    def snapshot(self, queue_id: int) -> QueueSnapshot | None:
        """See `DataPlane.snapshot`."""
        counts = self.native.snapshot(queue_id)
        return None if counts is None else QueueSnapshot(*counts)

    def stop(self) -> None:
        """See `DataPlane.stop`."""
        self.native.stop()

    # -- the fast lane --------------------------------------------------------------------------------------------------

    def publish(self, routes: Mapping[tuple[str, str], RouteRules]) -> None:
        """What serves from now on, by model and by the version as callers write it."""
        made: dict[int, Any] = {}
        entries = []
        for (model, version), route in routes.items():
            entrance = route.rules.entrance
            if entrance not in made:
                made[entrance] = _native_route(route)
            entries.append((model, version, made[entrance]))
        self.native.publish(entries)

    def open_lane(self, is_open: bool) -> None:
        """Whether requests may be answered without the door's handlers."""
        self.native.set_fast(is_open)

    def take_uses(self) -> list[tuple[int, str, int]]:
        """Queue, consumer and requests of the fast lane, since the last time."""
        uses: list[tuple[int, str, int]] = self.native.take_uses()
        return uses

    def take_refusals(self) -> list[tuple[int, dict[str, int]]]:
        """Queue, and requests of the fast lane that were not executed by why, since the last time."""
        taken = self.native.take_refusals()
        return [
            (queue_id, dict(zip(("queue_full", "expired", "cancelled", "not_ready"), counts, strict=True)))
            for queue_id, *counts in taken
        ]

    def _ended(self, tickets: Sequence[tuple[int, bool]], why: int) -> None:
        """Tickets that ended without an execution, of one queue if they failed: numbers, and whether a batch has them. Called
        from any thread."""
        answers: list[tuple[Reply, Any]] = []
        with self._lock:
            for number, staged in tickets:
                # one that is staged is its batch's until that ends
                entry = self._open[number]
                if not staged or entry.left:
                    del self._open[number]
                if entry.ticket not in self._numbers:
                    continue  # its caller left just before
                del self._numbers[entry.ticket]
                reason = self._failed.get(entry.handle.queue_id, "")
                # one of its own, which nobody raises: the traceback of the raised one leads to its caller's request
                entry.ticket.refusal = unexecuted(why, reason, staged=staged)
                answers.append((entry.ticket.end(), unexecuted(why, reason, staged=staged)))
        self._deliver(answers, None)


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A method that does not hold its object: the native side's own holders are unknown to the collector."""
    held = WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = held()
        if found is not None:
            found(*arguments)

    return call


def _shape(signature: Signature, ticket: Ticket) -> bytes:
    """The lane that a ticket waits in: that of native ones, where there may be any."""
    if len(signature.inputs) > 64:
        return repr(ticket.shape_key).encode()
    shapes = dict(ticket.shape_key)
    mask, dims = 0, []
    for index, spec in enumerate(signature.inputs):
        if spec.name in shapes:
            mask |= 1 << index
            dims.append(list(shapes[spec.name]))
    shape: bytes = podium_native.shape_of(mask, dims)
    return shape


def _native_route(route: RouteRules) -> Any:
    rules, signature = route.rules, route.rules.signature
    return podium_native.Route(
        rules.entrance,
        rules.key.model,
        str(rules.key.version),
        *stated(signature),
        signature.max_batch,
        masks(signature, route.fits),
        route.default_timeout_us,
        route.allow_timeout_override,
        route.priority_levels,
        route.default_priority,
        route.has_features,
    )
