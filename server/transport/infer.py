"""One inference message to one ticket, and its outputs to one message: what ModelInfer and every message of a stream share.

Floor 6, the hot path: per request one future, no task, no log line, no metrics call.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S, NS_PER_US, Clock, monotonic_ns
from server.core.errors import PodiumError
from server.core.requests import ANONYMOUS, Caller, InferRequest, consumer_named
from server.dataplane.ticket import Reply, Ticket
from server.features.interface import STATUSES_OUTPUT
from server.lifecycle.replica import Replica
from server.service.predict import Hit, Predict
from server.telemetry.tracer import Tracer
from server.transport.codec import decode, encode
from server.transport.feature_statuses import worth_telling
from server.transport.hand_over import HandOver
from server.transport.places import Memory, NoMemory
from server.transport.tracing import NO_TRACER, record, traced_caller

_NO_LABELS: Mapping[str, Sequence[str]] = {}
CONSUMER_HEADER = "podium-consumer"
"""The metadata by which a caller says who it is."""


@dataclass(slots=True)
class Call:
    """What the door knows of a call beside its message. Units: monotonic ns; `deadline_ns` None where it has none."""

    arrival_ns: int
    deadline_ns: int | None = None
    caller: Caller = ANONYMOUS


@dataclass(slots=True)
class Pending:
    """An admitted request whose answer is on its way. It holds the regions of shared memory that its outputs go to."""

    request: InferRequest
    replica: Replica
    ticket: Ticket | Hit


def consumer_in(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The consumer that a call declares itself to be, by `consumer_named`; the last one where it declares several."""
    declared: str | bytes = ""
    for name, value in metadata:
        if name == CONSUMER_HEADER:
            declared = value
    return consumer_named(declared) if declared else ""


def call_of(context: Any, arrival_ns: int, tracer: Tracer = NO_TRACER, subject_of: Callable[[Any], str] | None = None) -> Call:
    """The call that a context belongs to. `subject_of`: the name in a caller's certificate, where callers have one.

    Source: `invocation_metadata()` makes all pairs anew each time: 0.7 us with the one that every client sends (user-agent),
    1.4 us with three, and going through them 0.1 us more (grpcio 1.85, Python 3.11, 2026-11-21). So it is asked once.
    """
    remaining_s = context.time_remaining()
    metadata = context.invocation_metadata()
    consumer = consumer_in(metadata)
    if not consumer and subject_of is not None:
        consumer = consumer_named(subject_of(context))
    caller = Caller(consumer) if consumer else ANONYMOUS
    if tracer.propagates:
        caller = traced_caller(caller, metadata)
    return Call(arrival_ns, None if remaining_s is None else arrival_ns + int(remaining_s * NS_PER_S), caller)


class Inference:
    """Admits messages and answers them. Ownership: the event loop it was made on."""

    def __init__(
        self,
        predict: Predict,
        hand_over: HandOver,
        clock: Clock = monotonic_ns,
        memory: Memory | None = None,
        tracer: Tracer = NO_TRACER,
        subject_of: Callable[[Any], str] | None = None,
    ) -> None:
        self.tracer = tracer
        self._subject_of = subject_of
        self._predict = predict
        self._hand_over = hand_over
        self._clock = clock
        self._memory = memory or NoMemory()
        self._loop = asyncio.get_running_loop()

    def call_of(self, context: Any) -> Call:
        """The call that a context belongs to, arriving now."""
        return call_of(context, self._clock(), self.tracer, self._subject_of)

    def begin(self, message: pb.ModelInferRequest, call: Call, reply: Reply, *, streamed: bool = False) -> Pending:
        """Admit a message; `reply` then gets its answer (with `streamed`, of a decoupled version, any number of them).

        Raises: any `PodiumError`; then `reply` gets none, and the refusal has been counted.
        """
        try:
            request = decode(message, call.arrival_ns, call.deadline_ns, call.caller, streamed=streamed, memory=self._memory)
        except PodiumError:
            # as Triton does, whoever asks for a model that does not answer is told so, whatever else is wrong. Looking here
            # costs the good ones nothing
            self._predict.answering(message.model_name, message.model_version, streamed=streamed)
            raise
        replica, ticket = self._predict.admit(request, reply)
        if type(ticket) is Hit:
            # later, as from a ticket: whoever asks need not reckon with an answer before this returns
            self._loop.call_soon(_answer, reply, ticket.outputs)
        else:
            self._hand_over.arm()
        return Pending(request, replica, ticket)

    def encode(self, pending: Pending, outputs: Any, response: pb.ModelInferResponse | None = None) -> pb.ModelInferResponse:
        """The answer to a request, in `response` where that is given.

        Raises: BackendFailed, InvalidRequest, SharedMemoryFailed as `codec.encode` does.
        """
        request, replica = pending.request, pending.replica
        targets, labels = request.targets, replica.labels if request.targets else _NO_LABELS
        response = encode(request.id, replica.key, replica.signature, request.outputs, outputs, targets, labels, response)
        if replica.cache is not None:
            self._predict.remember(replica, request, pending.ticket, outputs)
        if request.timing:
            self._time(response, pending)
        if request.features and replica.features is not None and STATUSES_OUTPUT in outputs:
            told = worth_telling(replica.features.names, outputs[STATUSES_OUTPUT])
            response.parameters["podium_features"].string_param = told
        return response

    def leave(self, pending: Pending) -> None:
        """The caller has gone."""
        self._predict.cancel(pending.replica, pending.ticket)

    def count_refusal(self, pending: Pending, error: PodiumError) -> None:
        """Count an admitted request that was answered by an error."""
        self._predict.count_refusal(pending.replica, error)

    def _time(self, response: pb.ModelInferResponse, pending: Pending) -> None:
        """Say how long what took, in microseconds. What did not happen, or is not over (a batch that goes on answering), is
        left out; queue and execute together are never more than total.
        """
        parameters, arrival_ns, ticket = response.parameters, pending.request.arrival_ns, pending.ticket
        if type(ticket) is Hit:
            parameters["podium_cache_hit"].bool_param = True
        elif (execution := ticket.execution) is not None:
            parameters["podium_queue_us"].int64_param = max(0, execution.taken_ns - arrival_ns) // NS_PER_US
            parameters["podium_execute_us"].int64_param = (execution.ran_ns - execution.taken_ns) // NS_PER_US
            if pending.replica.features is not None:
                parameters["podium_features_us"].int64_param = execution.features_ns // NS_PER_US
            parameters["podium_batch_rows"].int64_param = execution.rows
        parameters["podium_total_us"].int64_param = (self._clock() - arrival_ns) // NS_PER_US

    def finished(
        self,
        message: pb.ModelInferRequest,
        call: Call,
        pending: Pending | None,
        error: BaseException | None = None,
        outputs: Any = None,
        *,
        method: str = "ModelInfer",
    ) -> None:
        """Trace a message that has ended, if it is chosen. To be called once for each, and only while `tracer.on`.

        `pending` None: it was not admitted. `outputs` of its one answer, where it had one.
        """
        chosen = self.tracer.choose(message.model_name, call.caller)
        if chosen is not None:
            record(self.tracer, chosen, method, message, call.arrival_ns, pending, error, outputs)

    async def once(self, message: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """One request, one answer: by exactly one ticket, whatever becomes of the call.

        Raises: any `PodiumError`; CancelledError when the caller leaves, and then nobody executes it if it still waited.
        """
        reply: asyncio.Future[Any] = self._loop.create_future()
        hand_over = self._hand_over
        hand_over.callers += 1
        pending: Pending | None = None
        try:
            pending = self.begin(message, call, reply)
            try:
                outputs = await reply
            except asyncio.CancelledError:
                self.leave(pending)
                raise
            except PodiumError as error:
                self.count_refusal(pending, error)
                raise
            response = self.encode(pending, outputs)
            if self.tracer.on:
                self.finished(message, call, pending, outputs=outputs)
            return response
        except BaseException as error:
            if self.tracer.on:
                self.finished(message, call, pending, error)
            raise
        finally:
            hand_over.callers -= 1
            # the reply has the error, whose traceback leads here: a circle that would hold the request, and all its tensors,
            # until a collection
            del reply


def _answer(reply: Reply, outputs: Any) -> None:
    if not reply.done():
        reply.set_result(outputs)
