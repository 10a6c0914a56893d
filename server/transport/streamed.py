"""One message of a stream: where the answers to its ticket go, and the messages they become.

Floor 6. Every answer becomes its message at once, so that tensors are not kept for a caller that reads slowly. Which of them
is final, what an error says and when an answer without outputs is sent are Triton's rules.
Source: triton-inference-server/server, src/grpc/stream_infer_handler.cc, 2026-08.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from protos import grpc_service_pb2 as pb
from server.core.errors import PodiumError
from server.core.tensors import Array
from server.dataplane.ticket import held_bytes
from server.transport.infer import Call, Inference, Pending
from server.transport.status import Ending, ending_for

FINAL = "triton_final_response"

_MESSAGE_BYTES = 1024
"""What an answer takes beside its tensors: a protobuf message, its names and its place in a queue."""


class Answering(Protocol):
    """The stream that a request came by."""

    inference: Inference
    backlog: "Backlog"

    def send(self, answer: "Answer", /) -> None:
        """An answer that waits for no other."""
        ...

    def end(self, request: "StreamedRequest", answer: "Answer | None", /) -> None:
        """The last answer of a request; None where there is nothing to say."""
        ...

    def release(self, nbytes: int, /) -> None:
        """What was noted in the backlog has left, or never will."""
        ...

    def leave(self, request: "StreamedRequest", /) -> None:
        """Nobody waits for an admitted request any more."""
        ...


class Backlog:
    """Answers of one stream that have not left yet. Thread-safe: engines fill it, the loop empties it. Units: bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes = 0

    def take(self, nbytes: int) -> float:
        """Note an answer; how full it is then. Above 1 it is too full, which an answer by itself never is."""
        with self._lock:
            first = not self._bytes
            self._bytes += nbytes
            filled = self._bytes / self._max_bytes
        return min(filled, 1.0) if first else filled

    def give(self, nbytes: int) -> None:
        """An answer has left, or never will."""
        with self._lock:
            self._bytes -= nbytes

    @property
    def full(self) -> bool:
        """Whether nothing more should be asked for."""
        return self._bytes >= self._max_bytes


@dataclass(slots=True)
class Answer:
    """A message on its way out. `ends`: it is its request's last. `status`: what an error is called."""

    message: pb.ModelStreamInferResponse
    nbytes: int
    ends: bool
    status: Ending | None = None


class StreamedRequest:
    """One message of a stream, and the reply of its ticket (`StreamReply`). Ownership: the loop, but for `reserve`."""

    __slots__ = ("_ended", "_stream", "answer", "counted", "decoupled", "empty_final", "id", "pending", "traced")

    def __init__(self, stream: Answering) -> None:
        self._stream = stream
        self._ended = False
        self.id = ""
        self.decoupled = self.empty_final = self.counted = False
        self.pending: Pending | None = None
        self.answer: Answer | None = None
        self.traced: tuple[pb.ModelInferRequest, Call] | None = None  # kept while something is traced at all

    def done(self) -> bool:
        """See `Reply`. Answers of a decoupled version are always taken: what was reserved for them is given back."""
        return self._ended and not self.decoupled

    def set_result(self, outputs: Mapping[str, Array]) -> None:
        """See `Reply`; for a decoupled version the end alone, without outputs."""
        if self._ended:
            return
        if self.decoupled:
            self.trace()
            self._stream.end(self, self._empty() if self.empty_final else None)
        else:
            answer = self._encoded(outputs, 0, final=True)
            self.trace(outputs=outputs)
            if answer.status is None:
                answer.nbytes = _size(outputs)
                self._stream.backlog.take(answer.nbytes)
            self._stream.end(self, answer)

    def set_exception(self, error: BaseException) -> None:
        """See `Reply`."""
        if self._ended:
            return
        if isinstance(error, PodiumError) and self.pending is not None:
            self._stream.inference.count_refusal(self.pending, error)
        self._stream.end(self, self._failed(error))

    def add(self, outputs: Mapping[str, Array]) -> None:
        """See `StreamReply`."""
        nbytes = _size(outputs)
        if self._ended:
            self._stream.release(nbytes)
            return
        answer = self._encoded(outputs, nbytes, final=False)
        if answer.ends:
            self._stream.leave(self)
            self._stream.end(self, answer)
        else:
            self._stream.send(answer)

    def reserve(self, outputs: Mapping[str, Array]) -> float:
        """See `StreamReply`."""
        nbytes = _size(outputs)
        filled = self._stream.backlog.take(nbytes)
        if filled > 1:
            self._stream.backlog.give(nbytes)
        return filled

    def close(self) -> Pending | None:
        """It has ended, and gets no more answers. Returns: what was admitted, if anything was."""
        self._ended = True
        pending, self.pending = self.pending, None
        return pending

    def refused(self, error: Exception) -> Answer:
        """The answer to a message that was not admitted. As in Triton it says which request, and no more."""
        self.trace(error)
        return _error(error, pb.ModelInferResponse(id=self.id))

    def _encoded(self, outputs: Mapping[str, Array], nbytes: int, *, final: bool) -> Answer:
        assert self.pending is not None
        message = pb.ModelStreamInferResponse()
        try:
            response = self._stream.inference.encode(self.pending, outputs, message.infer_response)
        except Exception as error:  # noqa: BLE001 - every failure ends its request with an error
            failed = self._failed(error)
            failed.nbytes = nbytes
            return failed
        response.parameters[FINAL].bool_param = final
        return Answer(message, nbytes, final)

    def trace(self, error: BaseException | None = None, outputs: Mapping[str, Array] | None = None) -> None:
        """It has ended so; what is said first counts."""
        traced, self.traced = self.traced, None
        if traced is not None:
            self._stream.inference.finished(*traced, self.pending, error, outputs, method="ModelStreamInfer")

    def _failed(self, error: BaseException) -> Answer:
        self.trace(error)
        return _error(error, self._end_of_request())

    def _empty(self) -> Answer:
        return Answer(pb.ModelStreamInferResponse(infer_response=self._end_of_request()), 0, ends=True)

    def _end_of_request(self) -> pb.ModelInferResponse:
        """An answer without outputs. As in Triton the version is the one asked for, not the one that ran."""
        assert self.pending is not None
        request = self.pending.request
        response = pb.ModelInferResponse(id=request.id, model_name=request.model, model_version=request.version)
        response.parameters[FINAL].bool_param = True
        return response


def _error(error: BaseException, response: pb.ModelInferResponse) -> Answer:
    status = ending_for(error)
    message = pb.ModelStreamInferResponse(error_message=status[1], infer_response=response)
    return Answer(message, 0, ends=True, status=status)


def _size(outputs: Mapping[str, Array]) -> int:
    return _MESSAGE_BYTES + sum(map(held_bytes, outputs.values()))
