"""ModelStreamInfer: many requests and their answers on one call.

Floor 6. One task reads, the method itself writes; a message costs neither a task nor a future. Answers of ordinary versions
leave in the order of their requests, answers of decoupled ones as they come. An error of one request is a message like any
other: the call itself fails only where its caller asked for that (`triton_grpc_error`), or where the server leaves.

What waits is bounded: a caller that does not read its answers is soon not read from, and what decoupled versions make for it
is slowed down, then ended (`Backlog`).
"""

import asyncio
from collections import deque
from dataclasses import replace
from typing import Any

import grpc

from protos import grpc_service_pb2 as pb
from server.core.clock import Clock
from server.core.errors import Cancelled, ShuttingDown
from server.transport.callers import CallerLimit
from server.transport.codec import EMPTY_FINAL
from server.transport.hand_over import HandOver
from server.transport.infer import Inference, Pending
from server.transport.status import Ending, ending_for
from server.transport.streamed import Answer, Backlog, StreamedRequest

GRPC_ERROR = "triton_grpc_error"
UNLIMITED = CallerLimit(0)
LEAVING = "GRPC server is shutting down and has stopped accepting new requests."


class Stream:
    """One open call. Ownership: the event loop."""

    def __init__(
        self,
        inference: Inference,
        hand_over: HandOver,
        clock: Clock,
        limits: tuple[int, int],
        callers: CallerLimit,
        context: Any,
    ) -> None:
        """`limits`: requests that may be open at once, and bytes of answers that may wait."""
        self.inference = inference
        self._hand_over = hand_over
        self._clock = clock
        self._max_requests, max_bytes = limits
        self.backlog = Backlog(max_bytes)
        self._context = context
        self._call = inference.call_of(context)
        self._callers = callers
        self._caller = callers.named(context)
        self._fails_whole = (GRPC_ERROR, "true") in (context.invocation_metadata() or ())
        self._ordered: deque[StreamedRequest] = deque()
        self._outbox: deque[Answer] = deque()
        self._admitted: set[StreamedRequest] = set()
        self._open = 0
        self._ended = False  # the caller sends nothing more
        self._leaving = False  # the server wants nothing more
        self._to_write = asyncio.Event()
        self._may_read = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._fault: BaseException | None = None  # why reading ended early

    async def run(self) -> Ending | None:
        """Answer everything; the status of a call that must fail, or None where all is well.

        Raises: CancelledError, Cancelled when the caller leaves. Whatever happens, nothing is executed for it afterwards.
        """
        self._reader = asyncio.get_running_loop().create_task(self._read())
        self._reader.add_done_callback(self._read_ended)
        if self._leaving:
            self.drain()
        try:
            return await self._write()
        except grpc.aio.InternalError:
            # gRPC noticed while it wrote or read, before it could cancel this
            raise Cancelled("the caller has gone") from None
        finally:
            self._reader.cancel()
            for request in tuple(self._admitted):
                self.leave(request)
            # all these lead back here: answers that nobody reads any more must not wait for a collection
            self._reader = self._fault = None
            self._ordered.clear()
            self._outbox.clear()

    def drain(self) -> None:
        """Read nothing more; end once everything that was read is answered."""
        self._leaving = True
        if self._reader is not None:
            self._reader.cancel()

    # -- what requests say ----------------------------------------------------------------------------------------------

    def send(self, answer: Answer) -> None:
        """An answer that waits for no other."""
        self._outbox.append(answer)
        self._to_write.set()

    def end(self, request: StreamedRequest, answer: Answer | None) -> None:
        """The last answer of a request; None where there is nothing to say."""
        self._close(request)
        if answer is None:
            self._open -= 1
            self._may_read.set()
            self._to_write.set()
        elif request.decoupled:
            self.send(answer)
        else:
            request.answer = answer
            self._send_ordered()

    def release(self, nbytes: int) -> None:
        """What was noted in the backlog has left, or never will."""
        self.backlog.give(nbytes)
        self._may_read.set()

    def leave(self, request: StreamedRequest) -> None:
        """Nobody waits for an admitted request any more."""
        request.trace(asyncio.CancelledError())
        pending = self._close(request)
        if pending is not None:
            self.inference.leave(pending)

    # -- reading --------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            while self._open >= self._max_requests or self.backlog.full:
                # whoever sends on now waits in HTTP/2's own flow control
                self._may_read.clear()
                await self._may_read.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                self._ended = True
                return
            self._admit(message)

    def _read_ended(self, reader: "asyncio.Task[None]") -> None:
        if not reader.cancelled():
            self._fault = reader.exception()
        self._to_write.set()

    def _admit(self, message: pb.ModelInferRequest) -> None:
        self._open += 1
        self._hand_over.callers += 1
        request = StreamedRequest(self)
        self._admitted.add(request)
        try:
            request.id = message.id
            if self._caller:
                self._callers.enter(self._caller)
                request.counted = True
            call = replace(self._call, arrival_ns=self._clock())
            if self.inference.tracer.on:
                request.traced = message, call
            pending = request.pending = self.inference.begin(message, call, request, streamed=True)
        except Exception as error:  # noqa: BLE001 - every failure is an answer
            self._ordered.append(request)
            self.end(request, request.refused(error))
            return
        if pending.replica.settings.decoupled:
            request.decoupled = True
            request.empty_final = EMPTY_FINAL in message.parameters and message.parameters[EMPTY_FINAL].bool_param
        else:
            self._ordered.append(request)

    def _close(self, request: StreamedRequest) -> Pending | None:
        if request in self._admitted:
            self._admitted.remove(request)
            if request.counted:
                self._callers.leave(self._caller)
            self._hand_over.callers -= 1
        return request.close()

    # -- writing --------------------------------------------------------------------------------------------------------

    def _send_ordered(self) -> None:
        ordered = self._ordered
        while ordered and (answer := ordered[0].answer) is not None:
            ordered.popleft()
            self.send(answer)

    async def _write(self) -> Ending | None:
        while True:
            while self._outbox:
                answer = self._outbox.popleft()
                if answer.status is not None and self._fails_whole:
                    return answer.status
                await self._context.write(answer.message)
                self._open -= answer.ends
                self.release(answer.nbytes)
            if not self._open:
                if self._ended:
                    return None
                if self._leaving:
                    # not OK: messages may be on their way that nobody will read
                    return ending_for(ShuttingDown(LEAVING))
            if self._fault is not None:
                raise self._fault
            self._to_write.clear()
            await self._to_write.wait()


class Streams:
    """Every open stream. Ownership: the event loop it was made on."""

    def __init__(
        self,
        inference: Inference,
        hand_over: HandOver,
        clock: Clock,
        max_requests: int,
        max_bytes: int,
        callers: CallerLimit = UNLIMITED,
    ) -> None:
        """`max_requests` open at once and `max_bytes` of waiting answers, per stream; `callers`: over all of one caller's."""
        self._callers = callers
        self._inference = inference
        self._hand_over = hand_over
        self._clock = clock
        self._limits = (max_requests, max_bytes)
        self._streams: set[Stream] = set()
        self._closed = False

    async def serve(self, context: Any) -> Ending | None:
        """One call from its first message to its last answer; see `Stream.run`."""
        stream = Stream(self._inference, self._hand_over, self._clock, self._limits, self._callers, context)
        if self._closed:
            stream.drain()
        self._streams.add(stream)
        try:
            return await stream.run()
        finally:
            self._streams.discard(stream)

    def close(self) -> None:
        """Read nothing more from any stream; each ends once what was read is answered, an idle one at once."""
        self._closed = True
        for stream in self._streams:
            stream.drain()
