"""A request's way: chosen, checked alone, admitted, batched, executed, answered, counted.

`Predict` is the door's side and runs per request. `Engine` is one thread per device and runs per batch: it holds the device
while it asks for work (slot first, batch second), so whatever arrives during one execution rides in the next.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from server.core.clock import NS_PER_US, Clock
from server.core.errors import BackendDead, Cancelled, Expired, InvalidRequest, NotReady, Overloaded, PodiumError, ShuttingDown
from server.core.requests import InferRequest
from server.core.settings import QueueSettings
from server.core.signature import check
from server.dataplane.interface import Batch, DataPlane, Part, QueueClosed
from server.dataplane.ticket import NO_DEADLINE_NS, Reply, Ticket, TicketState
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica
from server.service.execute import execute

_log = logging.getLogger("podium.engine")
_CHOICES = 8
"""How often a request may find the version it chose just closed and choose again. Each time needs a whole swap in between."""

_REASONS: dict[type[PodiumError], str] = {
    InvalidRequest: "invalid",
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

    def __init__(self, plane: Submitting, published: Callable[[], Published]) -> None:
        self._plane = plane
        self._published = published

    def admit(self, request: InferRequest, reply: Reply) -> tuple[Replica, Ticket]:
        """Choose a version, check the request against it, and queue it. `reply` then gets exactly one answer.

        An idle engine is not woken: the caller does so when it has taken in everything that had arrived.
        Raises: any `PodiumError`; then `reply` gets none.
        """
        for _ in range(_CHOICES):
            replica = self._published().lookup(request.model, request.version)
            try:
                checked = check(request, replica.signature)
                queue = replica.settings.queue
                ticket = Ticket(checked, reply, request.arrival_ns, deadline_of(request, queue), priority_of(request, queue))
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


def deadline_of(request: InferRequest, queue: QueueSettings) -> int:
    """The earliest of the transport's deadline and the model's timeout, as the request or the model's settings state it.

    Units: monotonic ns; `NO_DEADLINE_NS` without any. A request's own timeout replaces the model's default in either direction.
    """
    timeout_us = queue.default_timeout_us
    if request.timeout_us and queue.allow_timeout_override:
        timeout_us = request.timeout_us
    own_ns = request.arrival_ns + timeout_us * NS_PER_US if timeout_us else NO_DEADLINE_NS
    # callers may name any number: what does not fit 64 bits must not reach the arrays of a batch
    return min(own_ns, NO_DEADLINE_NS if request.deadline_ns is None else request.deadline_ns, NO_DEADLINE_NS)


def priority_of(request: InferRequest, queue: QueueSettings) -> int:
    """The level a request waits at; 0 and levels the model does not have mean its default, as in Triton."""
    return request.priority if 1 <= request.priority <= queue.priority_levels else queue.default_priority


class Engine(threading.Thread):
    """The one executor of a device, for all its versions."""

    def __init__(
        self,
        plane: DataPlane,
        device: str,
        clock: Clock,
        on_dead: Callable[[Replica, BackendDead], None],
        on_crash: Callable[[], None],
    ) -> None:
        super().__init__(name=f"podium-engine-{device}", daemon=True)
        self._plane = plane
        self._device = device
        self._clock = clock
        self._on_dead = on_dead
        self._on_crash = on_crash
        self.problem = ""
        """Why this engine executes nothing any more; empty while it does."""

    def run(self) -> None:
        """Take, execute, finish, until the data plane stops."""
        try:
            while (batch := self._plane.take(self._device)) is not None:
                self._step(batch)
        except Exception as error:  # noqa: BLE001 - a bug; a server that executes nothing must not look ready
            _log.exception("the engine has crashed", extra={"device": self._device})
            self.problem = f"the engine of device '{self._device}' has crashed: {type(error).__name__}: {error}"
            self._on_crash()

    def _step(self, batch: Batch) -> None:
        replica: Replica = batch.rules.handle
        started_ns = self._clock()
        try:
            parts = execute(replica.backend, batch)
        except BackendDead as error:
            _log.error("backend is dead", extra={"model": str(replica.key), "reason": str(error)})
            self._on_dead(replica, error)
            parts = [Part(0, len(batch.spans) - 1, None, error)]
        ran_ns = self._clock()
        # what was isolated by running parts again says nothing about the cost of one execution
        whole = len(parts) == 1 and parts[0].error is None
        answered = self._plane.finish(batch, parts, ran_rows=batch.rows if whole else 0, ran_ns=ran_ns - batch.taken_ns)
        failed = np.zeros(len(answered), dtype=np.bool_)
        for part in parts:
            failed[part.first : part.last] = part.error is not None
        finished_ns = self._clock()
        replica.recorder.batch(
            arrival_ns=batch.arrival_ns,
            deadline_ns=batch.deadline_ns,
            taken_ns=batch.taken_ns,
            input_ns=started_ns - batch.taken_ns,
            infer_ns=ran_ns - started_ns,
            output_ns=finished_ns - ran_ns,
            finished_ns=finished_ns,
            spans=batch.spans,
            padded_rows=batch.padded_rows,
            released=batch.released,
            answered=answered,
            failed=failed,
        )
