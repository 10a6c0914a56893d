"""What the door says of requests that are traced, and that it says nothing of others."""

import asyncio
from typing import Any

import numpy as np
import pytest

from server.core.errors import BackendFailed, Expired, InvalidRequest, NotFound
from server.core.requests import ANONYMOUS, Caller
from server.core.settings import TraceSettings
from server.core.signature import CheckedRows
from server.dataplane.interface import Execution
from server.dataplane.ticket import Ticket
from server.service.predict import Hit
from server.telemetry.trace import Trace
from server.telemetry.tracer import Tracer
from server.transport.hand_over import HandOver
from server.transport.infer import Inference, call_of
from server.transport.tracing import traced_caller
from tests.telemetry.traces import Sink
from tests.transport.calls import Context
from tests.transport.test_servicer import Replica, message

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


class Predict:
    """Admits, executes at once, and answers by a rule of the test."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def admit(self, request: Any, reply: asyncio.Future[Any]) -> tuple[Any, Ticket | Hit]:
        if isinstance(self._outcome, NotFound):
            raise self._outcome
        if isinstance(self._outcome, Hit):
            return Replica(), self._outcome
        ticket = Ticket(CheckedRows({"x": np.zeros((1, 2), np.float32)}, 1, (("x", (2,)),)), reply, request.arrival_ns)
        if isinstance(self._outcome, Expired):
            reply.set_exception(self._outcome)
        else:
            ticket.execution = Execution(taken_ns=20, started_ns=30, ran_ns=40, rows=3)
            if isinstance(self._outcome, Exception):
                reply.set_exception(self._outcome)
            elif self._outcome is not None:
                reply.set_result(self._outcome)
        return Replica(), ticket

    def cancel(self, replica: Any, ticket: Ticket) -> None:
        pass

    def count_refusal(self, replica: Any, error: Exception) -> None:
        pass


def tracer_to(sink: Sink, **settings: Any) -> Tracer:
    return Tracer(TraceSettings.model_validate({"level": ["TIMESTAMPS"], "rate": 1, **settings}), sink, lambda: 50)


def traced(outcome: Any, context: Context | None = None, request_id: str = "a", **settings: Any) -> list[Trace]:
    """The traces of one call."""
    sink = Sink()

    async def main() -> None:
        tracer = tracer_to(sink, **{"file": "f", **settings})
        predict: Any = Predict(outcome)
        inference = Inference(predict, HandOver(lambda: None), tracer=tracer)
        call: Any = context or Context()
        task = asyncio.create_task(inference.once(message(id=request_id), call_of(call, 10, tracer)))
        if outcome is None:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled() and outcome is None) or task.exception() is (
            outcome if isinstance(outcome, Exception) else None
        )
        tracer.close(60)

    asyncio.run(main())
    return [trace for batch in sink.batches for trace in batch]


ANSWER = {"y": np.array([[1, 2]], dtype=np.float32)}


def test_an_answered_request() -> None:
    (trace,) = traced(ANSWER)
    assert trace == Trace(
        number=1,
        method="ModelInfer",
        model="m",
        version=7,
        request_id="a",
        arrival_ns=10,
        ended_ns=50,
        taken_ns=20,
        started_ns=30,
        ran_ns=40,
        rows=1,
        batch_rows=3,
    )


def test_a_remembered_answer_waited_in_no_queue() -> None:
    (trace,) = traced(Hit(ANSWER))
    assert (trace.version, trace.code, trace.admitted, trace.taken_ns, trace.rows) == (7, 0, False, 0, 0)


@pytest.mark.parametrize(
    ("outcome", "code", "admitted", "ran_ns"),
    [
        (NotFound("who?"), 5, False, 0),
        (Expired("late"), 14, True, 0),
        (BackendFailed("bad"), 13, True, 40),
        (KeyError("bug"), 13, True, 40),
        (None, 1, True, 40),
        ({}, 13, True, 40),
    ],
)
def test_a_request_that_failed(outcome: Any, code: int, admitted: bool, ran_ns: int) -> None:
    found = traced(outcome) if outcome != {} else traced_failing_encode()
    (trace,) = found
    assert (trace.code, trace.admitted, trace.ran_ns, trace.version) == (code, admitted, ran_ns, 7 if admitted else 0)
    if isinstance(outcome, Exception):
        assert trace.reason == str(outcome)


def traced_failing_encode() -> list[Trace]:
    """An answer that lacks an output fails after its execution."""
    sink = Sink()

    async def main() -> None:
        tracer = tracer_to(sink, file="f")
        predict: Any = Predict({"z": np.zeros(1)})
        context: Any = Context()
        with pytest.raises(BackendFailed):
            await Inference(predict, HandOver(lambda: None), tracer=tracer).once(message(), call_of(context, 10, tracer))
        tracer.close(60)

    asyncio.run(main())
    return [trace for batch in sink.batches for trace in batch]


def test_long_words_are_cut() -> None:
    (trace,) = traced(BackendFailed("b" * 10_000), request_id="i" * 10_000)
    assert (trace.request_id, trace.reason) == ("i" * 1024, "b" * 1024)


def test_tensors_are_copies() -> None:
    (trace,) = traced(ANSWER, level=["TENSORS"])
    assert not trace.timestamps
    given, answered = trace.tensors
    assert (given.activity, given.name, given.datatype, given.shape, given.data) == (
        "TENSOR_QUEUE_INPUT",
        "x",
        "FP32",
        (1, 2),
        bytes(8),
    )
    assert (answered.activity, answered.name, answered.datatype, answered.shape) == (
        "TENSOR_BACKEND_OUTPUT",
        "y",
        "FP32",
        (1, 2),
    )
    assert answered.data is not ANSWER["y"]
    assert np.array_equal(answered.data, ANSWER["y"])
    (failed,) = traced(BackendFailed("bad"), level=["TENSORS"])
    assert [tensor.name for tensor in failed.tensors] == ["x"]


def test_a_stream_says_once_per_message_what_became_of_it() -> None:
    sink = Sink()

    async def main() -> None:
        tracer = tracer_to(sink, file="f")
        predict: Any = Predict(ANSWER)
        inference = Inference(predict, HandOver(lambda: None), tracer=tracer)
        context: Any = Context()
        call = call_of(context, 10, tracer)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pending = inference.begin(message(), call, reply, streamed=True)
        inference.finished(message(), call, pending, method="ModelStreamInfer")
        inference.finished(message(), call, None, InvalidRequest("odd"), method="ModelStreamInfer")
        tracer.close(60)

    asyncio.run(main())
    first, second = [trace for batch in sink.batches for trace in batch]
    assert (first.method, first.code, first.version, first.number) == ("ModelStreamInfer", 0, 7, 1)
    assert (second.method, second.code, second.version, second.number) == ("ModelStreamInfer", 3, 0, 2)


class WithMetadata(Context):
    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        super().__init__(None, metadata)


def test_a_trace_context_is_taken_only_where_it_is_passed_on() -> None:
    plain: Any = Context()
    assert call_of(plain, 10).caller is ANONYMOUS
    assert call_of(plain, 10, tracer_to(Sink(), file="f")).caller is ANONYMOUS
    assert len(traced(ANSWER)) == 1
    context = WithMetadata(("traceparent", TRACEPARENT), ("other", "x"))
    (trace,) = traced(ANSWER, context, mode="opentelemetry", rate=0)
    assert trace.parent is not None
    assert (trace.parent.span_id, trace.parent.sampled) == (int("b" * 16, 16), True)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, ANONYMOUS),
        ((), ANONYMOUS),
        ((("tracestate", "a=1"),), ANONYMOUS),
        ((("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)), ANONYMOUS),
        ((("traceparent", TRACEPARENT),), Caller(traceparent=TRACEPARENT)),
        (
            (("traceparent", TRACEPARENT), ("tracestate", "a=" + "1" * 1023)),
            Caller(traceparent=TRACEPARENT),
        ),
        (
            (("tracestate", "a=1"), ("traceparent", TRACEPARENT), ("tracestate", "b=2")),
            Caller(traceparent=TRACEPARENT, tracestate="a=1,b=2"),
        ),
    ],
)
def test_the_callers_trace_context(metadata: Any, expected: Caller) -> None:
    assert traced_caller(ANONYMOUS, metadata) == expected
    assert traced_caller(Caller(consumer="team"), metadata).consumer == "team"
