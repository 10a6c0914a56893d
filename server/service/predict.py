"""A request's way in: a version chosen, the request checked alone, its ticket admitted. What follows is `engine`'s."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np

from server.core.clock import NS_PER_US, Clock, monotonic_ns
from server.core.errors import Cancelled, Expired, InvalidRequest, NotReady, Overloaded, PodiumError, ShuttingDown, Unsupported
from server.core.hashing import id_hash
from server.core.requests import InferRequest
from server.core.settings import QueueSettings
from server.core.signature import CheckedRows, check
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.dataplane.interface import QueueClosed
from server.dataplane.ticket import NO_DEADLINE_NS, Reply, Ticket, TicketState
from server.features.interface import Features
from server.lifecycle.cache import cache_key
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

    def submit(self, entrance: int, ticket: Ticket, *, wake: bool) -> None:
        """Admit a ticket. Raises: QueueClosed, Overloaded, Expired, ShuttingDown."""
        ...

    def cancel(self, ticket: Ticket) -> TicketState:
        """End a ticket without an answer; the state it was in."""
        ...


_ONE_ANSWER = "ModelInfer RPC doesn't support models with decoupled transaction policy"


@final
@dataclass(frozen=True, slots=True)
class Hit:
    """A request that needs no ticket: its outputs are remembered, and immutable."""

    outputs: Mapping[str, Array]


def _nobody_counts(key: VersionKey, consumer: str) -> None: ...


class Predict:
    """Admits requests. Takes no lock of its own. Thread-safe, except that versions with a response cache are one thread's:
    the door's, which alone looks into it (`admit`) and adds to it (`remember`).
    """

    def __init__(
        self,
        plane: Submitting,
        published: Callable[[], Published],
        default_timeout_us: int = 0,
        *,
        clock: Clock = monotonic_ns,
        count_use: Callable[[VersionKey, str], None] = _nobody_counts,
    ) -> None:
        """`default_timeout_us` is for models that state none of their own; 0: none.

        `count_use` is told of every request that named a version which serves, answered or refused, and its consumer.
        """
        self._plane = plane
        self._published = published
        self._default_timeout_us = default_timeout_us
        self._clock = clock
        self._count_use = count_use

    def admit(self, request: InferRequest, reply: Reply) -> tuple[Replica, Ticket | Hit]:
        """Choose a version, check the request against it, and queue it. `reply` then gets exactly one answer; with a `Hit`
        it gets nothing from here: the caller gives it the outputs.

        An idle engine is not woken: the caller does so when it has taken in everything that had arrived.
        Raises: any `PodiumError`; then `reply` gets none.
        """
        for _ in range(_CHOICES):
            replica = self._published().lookup(request.model, request.version)
            try:
                if replica.settings.decoupled and not request.streamed:
                    raise Unsupported(_ONE_ANSWER)
                checked = check(request, replica.signature)
                if replica.features is not None:
                    _check_features(replica.features, request, checked)
                queue = replica.settings.queue
                deadline_ns = deadline_of(request, queue, self._default_timeout_us)
                key = None
                if replica.cache is not None:
                    known = self._recall(replica, request, checked, deadline_ns)
                    if type(known) is Hit:
                        self._count_use(replica.key, request.caller.consumer)
                        return replica, known
                    key = known
                ticket = Ticket(checked, reply, request.arrival_ns, deadline_ns, priority_of(request, queue))
                ticket.cache_key = key
                if request.id:
                    ticket.id_hash = id_hash(request.id)
                self._plane.submit(replica.entrance, ticket, wake=False)
            except QueueClosed:
                continue
            except PodiumError as error:
                self._count_use(replica.key, request.caller.consumer)
                self.count_refusal(replica, error)
                if isinstance(error, Overloaded):
                    raise Overloaded(f"[request id: {request.id or '<id_unknown>'}] {error}", error.retry_after_s) from None
                raise
            self._count_use(replica.key, request.caller.consumer)
            return replica, ticket
        refused = NotReady(f"Request for unknown model: '{request.model}' is not at ready state")
        self.count_refusal(replica, refused)
        raise refused

    def answering(self, model: str, version: str, *, streamed: bool) -> Replica:
        """The replica that would answer such a call now. Raises: NotFound, NotReady, InvalidRequest, Unsupported."""
        replica = self._published().lookup(model, version)
        if replica.settings.decoupled and not streamed:
            raise Unsupported(_ONE_ANSWER)
        return replica

    def _recall(self, replica: Replica, request: InferRequest, checked: CheckedRows, deadline_ns: int) -> Hit | bytes | None:
        """What the cache of a replica that serves says: outputs, or the key to remember them by, or None: nothing may be known.

        Raises: Expired where the answer is known and nobody waits for it any more.
        """
        cache = replica.cache
        if cache is None or request.parameters or not _own(request):
            return None
        begun_ns = self._clock()
        key = cache_key(request.outputs, checked.arrays, replica.signature)
        outputs = cache.find(key)
        now_ns = self._clock()
        if outputs is None:
            replica.recorder.cache_miss(now_ns - begun_ns)
            return key
        if deadline_ns <= now_ns:
            raise Expired("Request timeout expired")
        replica.recorder.cache_hit(now_ns - begun_ns, now_ns - request.arrival_ns)
        return Hit(outputs)

    def remember(self, replica: Replica, request: InferRequest, ticket: Ticket | Hit, outputs: Mapping[str, Array]) -> None:
        """Keep the outputs that answered a request, if they may answer another. Only for answers that were good."""
        if type(ticket) is Hit or ticket.cache_key is None or replica.cache is None:
            return
        begun_ns = self._clock()
        wanted = request.outputs or replica.signature.output_names
        forgotten = replica.cache.keep(ticket.cache_key, {name: outputs[name] for name in wanted})
        replica.recorder.cache_kept(self._clock() - begun_ns, forgotten)

    def cancel(self, replica: Replica, ticket: Ticket | Hit) -> None:
        """The caller has gone: the ticket leaves its queue at once, and never reaches the backend if it had not yet."""
        if type(ticket) is Hit:
            return  # it was counted as answered
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


def _check_features(features: Features, request: InferRequest, checked: CheckedRows) -> None:
    """Raises: InvalidRequest, beginning with the request's id as those of `check` do."""
    try:
        features.check(frozenset(checked.arrays))
    except InvalidRequest as error:
        raise InvalidRequest(f"[request id: {request.id or '<id_unknown>'}] {error}") from None


def _own(request: InferRequest) -> bool:
    """Whether nobody else can alter the inputs between the making of a key and the execution: not so in shared memory."""
    return all(
        tensor.data.base is None if isinstance(tensor.data, np.ndarray) else isinstance(tensor.data, bytes)
        for tensor in request.inputs
    )


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
