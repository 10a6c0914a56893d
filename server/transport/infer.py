"""One inference message to one ticket, and its outputs to one message: what ModelInfer and every message of a stream share.

Floor 6, the hot path: per request one future, no task, no log line, no metrics call.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S
from server.core.errors import PodiumError
from server.core.requests import ANONYMOUS, Caller, InferRequest
from server.dataplane.ticket import Reply, Ticket
from server.lifecycle.replica import Replica
from server.service.predict import Predict
from server.telemetry.tracer import Tracer
from server.transport.codec import decode, encode
from server.transport.hand_over import HandOver
from server.transport.tracing import NO_TRACER, record, traced_caller


@dataclass(slots=True)
class Call:
    """What the door knows of a call beside its message. Units: monotonic ns; `deadline_ns` None where it has none."""

    arrival_ns: int
    deadline_ns: int | None = None
    caller: Caller = ANONYMOUS


@dataclass(slots=True)
class Pending:
    """An admitted request whose answer is on its way."""

    request: InferRequest
    replica: Replica
    ticket: Ticket


def call_of(context: Any, arrival_ns: int, tracer: Tracer = NO_TRACER) -> Call:
    """The call that a context belongs to. Its metadata is read only where somebody wants to know."""
    remaining_s = context.time_remaining()
    call = Call(arrival_ns, None if remaining_s is None else arrival_ns + int(remaining_s * NS_PER_S))
    if tracer.propagates:
        call.caller = traced_caller(call.caller, context.invocation_metadata())
    return call


class Inference:
    """Admits messages and answers them. Ownership: the event loop it was made on."""

    def __init__(self, predict: Predict, hand_over: HandOver, tracer: Tracer = NO_TRACER) -> None:
        self.tracer = tracer
        self._predict = predict
        self._hand_over = hand_over
        self._loop = asyncio.get_running_loop()

    def begin(self, message: pb.ModelInferRequest, call: Call, reply: Reply, *, streamed: bool = False) -> Pending:
        """Admit a message; `reply` then gets its answer (with `streamed`, of a decoupled version, any number of them).

        Raises: any `PodiumError`; then `reply` gets none, and the refusal has been counted.
        """
        request = decode(message, call.arrival_ns, call.deadline_ns, call.caller, streamed=streamed)
        replica, ticket = self._predict.admit(request, reply)
        self._hand_over.arm()
        return Pending(request, replica, ticket)

    def encode(self, pending: Pending, outputs: Any) -> pb.ModelInferResponse:
        """The answer to a request. Raises: BackendFailed, InvalidRequest as `codec.encode` does."""
        request, replica = pending.request, pending.replica
        return encode(request.id, replica.key, replica.signature, request.outputs, outputs)

    def leave(self, pending: Pending) -> None:
        """The caller has gone."""
        self._predict.cancel(pending.replica, pending.ticket)

    def count_refusal(self, pending: Pending, error: PodiumError) -> None:
        """Count an admitted request that was answered by an error."""
        self._predict.count_refusal(pending.replica, error)

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
