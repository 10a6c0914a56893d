"""A request's way in: a version chosen, the request checked alone, its ticket admitted. What follows is `engine`'s."""

from collections.abc import Callable
from typing import Protocol

from server.core.clock import NS_PER_US
from server.core.errors import Cancelled, Expired, InvalidRequest, NotReady, Overloaded, PodiumError, ShuttingDown, Unsupported
from server.core.requests import InferRequest
from server.core.settings import QueueSettings
from server.core.signature import check
from server.dataplane.interface import QueueClosed
from server.dataplane.ticket import NO_DEADLINE_NS, Reply, Ticket, TicketState
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica

_CHOICES = 8
"""How often a request may find the version it chose just closed and choose again. Each time needs a whole swap in between."""

_REASONS: dict[type[PodiumError], str] = {
    InvalidRequest: "invalid",
    Unsupported: "invalid",
    Expired: "expired",
    Cancelled: "cancelled",
    Overloaded: "queue_full",
    NotReady: "not_ready",
    ShuttingDown: "not_ready",
}


class Submitting(Protocol):
    """The door's side of a data plane whose requests arrive in Python."""

    def submit(self, queue_id: int, ticket: Ticket, *, wake: bool) -> None:
        """Admit a ticket. Raises: QueueClosed, Overloaded, Expired, ShuttingDown."""
        ...

    def cancel(self, ticket: Ticket) -> TicketState:
        """End a ticket without an answer; the state it was in."""
        ...


class Predict:
    """Admits requests. Thread-safe; takes no lock of its own."""

    def __init__(self, plane: Submitting, published: Callable[[], Published], default_timeout_us: int = 0) -> None:
        """`default_timeout_us` is for models that state none of their own; 0: none."""
        self._plane = plane
        self._published = published
        self._default_timeout_us = default_timeout_us

    def admit(self, request: InferRequest, reply: Reply) -> tuple[Replica, Ticket]:
        """Choose a version, check the request against it, and queue it. `reply` then gets exactly one answer.

        An idle engine is not woken: the caller does so when it has taken in everything that had arrived.
        Raises: any `PodiumError`; then `reply` gets none.
        """
        for _ in range(_CHOICES):
            replica = self._published().lookup(request.model, request.version)
            try:
                if replica.settings.decoupled and not request.streamed:
                    raise Unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
                checked = check(request, replica.signature)
                queue = replica.settings.queue
                ticket = Ticket(
                    checked,
                    reply,
                    request.arrival_ns,
                    deadline_of(request, queue, self._default_timeout_us),
                    priority_of(request, queue),
                )
                self._plane.submit(replica.queue_id, ticket, wake=False)
            except QueueClosed:
                continue
            except PodiumError as error:
                self.count_refusal(replica, error)
                if isinstance(error, Overloaded):
                    raise Overloaded(f"[request id: {request.id or '<id_unknown>'}] {error}") from None
                raise
            return replica, ticket
        refused = NotReady(f"Request for unknown model: '{request.model}' is not at ready state")
        self.count_refusal(replica, refused)
        raise refused

    def cancel(self, replica: Replica, ticket: Ticket) -> None:
        """The caller has gone: the ticket leaves its queue at once, and never reaches the backend if it had not yet."""
        before = self._plane.cancel(ticket)
        if before is TicketState.WAITING:
            self.count_refusal(replica, Cancelled("cancelled by the caller"))
        elif before is TicketState.ENDED and ticket.refusal is not None:
            # it expired as the caller left: nobody reads that answer, but it counts
            self.count_refusal(replica, ticket.refusal)

    def count_refusal(self, replica: Replica, error: PodiumError) -> None:
        """Count a request that ended without being executed. Failed executions are counted with their batch."""
        for kind in type(error).__mro__:
            if kind in _REASONS:
                replica.recorder.refused(_REASONS[kind])
                return


def deadline_of(request: InferRequest, queue: QueueSettings, default_timeout_us: int = 0) -> int:
    """The earliest of the transport's deadline and the model's timeout, as the request or the model's settings state it.

    Units: monotonic ns; `NO_DEADLINE_NS` without any. A request's own timeout replaces the model's default in either direction.
    """
    timeout_us = default_timeout_us if queue.default_timeout_us is None else queue.default_timeout_us
    if request.timeout_us and queue.allow_timeout_override:
        timeout_us = request.timeout_us
    own_ns = request.arrival_ns + timeout_us * NS_PER_US if timeout_us else NO_DEADLINE_NS
    # callers may name any number: what does not fit 64 bits must not reach the arrays of a batch
    return min(own_ns, NO_DEADLINE_NS if request.deadline_ns is None else request.deadline_ns, NO_DEADLINE_NS)


def priority_of(request: InferRequest, queue: QueueSettings) -> int:
    """The level a request waits at; 0 and levels the model does not have mean its default, as in Triton."""
    return request.priority if 1 <= request.priority <= queue.priority_levels else queue.default_priority
