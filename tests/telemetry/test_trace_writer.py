"""The buffer between the door and a sink: nothing waits, nothing is lost uncounted."""

import logging
import threading
from typing import Any

import numpy as np
import pytest

from server.telemetry.readings import TraceReading
from server.telemetry.trace import QUEUE_INPUT, TracedTensor
from server.telemetry.trace_writer import TraceWriter
from tests.server.serving import until
from tests.telemetry.traces import Sink, trace


def test_traces_arrive_in_order_and_the_rest_at_the_end() -> None:
    sink = Sink()
    writer = TraceWriter(sink, 10_000, 1000)
    assert all(writer.put(trace(number)) for number in range(1, 501))
    until(lambda: len(sink.numbers) == 500, "the first burst")
    assert all(writer.put(trace(number)) for number in range(501, 2001))
    assert writer.close(60)
    assert sink.numbers == list(range(1, 2001))
    assert sink.closed
    assert max(map(len, sink.batches)) <= 512
    assert writer.reading() == TraceReading(2000, 0)
    assert not writer.put(trace(2001))
    assert writer.reading() == TraceReading(2000, 1)
    writer.close(60)


def test_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    writer = TraceWriter(sink, 100_000, 1000)
    threads = [
        threading.Thread(target=lambda first=first: [writer.put(trace(first + step)) for step in range(1000)])
        for first in range(0, 8000, 1000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    writer.close(60)
    assert sorted(sink.numbers) == list(range(8000))
    assert caplog.records == []


def test_a_full_buffer_costs_traces_and_no_time() -> None:
    sink = Sink()
    sink.gate.clear()
    writer = TraceWriter(sink, 5, 1000)
    assert writer.put(trace(1))
    assert sink.entered.wait(60)
    assert [writer.put(trace(number)) for number in range(2, 10)] == [True] * 5 + [False] * 3
    assert writer.reading() == TraceReading(0, 3)
    sink.gate.set()
    writer.close(60)
    assert sink.numbers == [1, 2, 3, 4, 5, 6]
    assert writer.reading() == TraceReading(6, 3)


def test_tensors_are_bounded_by_their_bytes() -> None:
    sink = Sink()
    sink.gate.clear()
    writer = TraceWriter(sink, 100, 1000)
    arrays: list[Any] = [b"x" * 400, np.zeros(50, np.float64), np.array([b"y" * 400], dtype=object)]
    heavy = [
        trace(number, tensors=(TracedTensor(QUEUE_INPUT, "x", "BYTES", (1,), data),)) for number, data in enumerate(arrays)
    ]
    assert writer.put(trace(9))
    assert sink.entered.wait(60)
    assert [writer.put(each) for each in heavy] == [True, True, False]
    assert writer.put(trace(10)), "what holds no tensors is not concerned"
    sink.gate.set()
    until(lambda: sink.numbers == [9, 0, 1, 10], "all that were taken")
    assert writer.put(heavy[2]), "there is room again"
    writer.close(60)


def test_an_outage_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sink = Sink()
    writer = TraceWriter(sink, 100, 1000)
    sink.error = OSError("nobody listens")
    for number in range(1, 4):
        writer.put(trace(number))
        until(lambda number=number: writer.reading().dropped == number, "the loss")  # type: ignore[misc]
    sink.error = None
    writer.put(trace(4))
    until(lambda: writer.reading().written == 1, "the recovery")
    writer.close(60)
    assert [record.message for record in caplog.records] == ["traces are lost", "traces are written again"]
    assert vars(caplog.records[0])["reason"] == "nobody listens"


def test_a_bug_of_a_sink_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.error = KeyError("bug")
    writer = TraceWriter(sink, 100, 1000)
    writer.put(trace(1))
    until(lambda: writer.reading().dropped == 1, "the loss")
    sink.error = None
    writer.put(trace(2))
    writer.close(60)
    assert sink.numbers == [2]
    assert [record.message for record in caplog.records] == ["traces could not be written", "traces are lost"]


def test_the_end_does_not_wait_for_a_sink_that_waits(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    sink.gate.clear()
    writer = TraceWriter(sink, 100, 1000)
    writer.put(trace(1))
    assert sink.entered.wait(60)
    writer.put(trace(2))
    writer.close(0.01)
    assert sink.abandoned
    until(lambda: sink.closed, "the thread's end")
    assert writer.reading() == TraceReading(0, 2)
    assert "traces were given up at the end" in caplog.messages


def test_without_a_trace_there_is_no_thread() -> None:
    before = threading.active_count()
    writer = TraceWriter(Sink(), 100, 1000)
    assert threading.active_count() == before
    assert writer.close(60)


def test_a_sink_that_cannot_be_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    sink.gate.clear()
    monkeypatch.setattr(sink, "abandon", lambda: None)
    writer = TraceWriter(sink, 100, 1000)
    writer.put(trace(1))
    assert sink.entered.wait(60)
    assert not writer.close(0.01)
    sink.gate.set()
    assert writer.close(60)
