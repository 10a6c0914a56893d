"""What the door asks: whether anything is traced, and whether this request is."""

import threading

import pytest

from server.core.errors import InvalidRequest
from server.core.requests import ANONYMOUS, Caller
from server.core.settings import TraceSettings
from server.telemetry.readings import TraceReading
from server.telemetry.tracer import Tracer
from tests.telemetry.traces import Sink, trace

SAMPLED = Caller(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="v=1")
NOT_SAMPLED = Caller(traceparent=f"00-{'a' * 32}-{'b' * 16}-00")


def to_file(**settings: object) -> Tracer:
    return Tracer(TraceSettings.model_validate({"file": "t.json", "level": ["TIMESTAMPS"], **settings}), Sink())


def to_collector(**settings: object) -> Tracer:
    return Tracer(TraceSettings.model_validate({"mode": "opentelemetry", "level": ["TIMESTAMPS"], **settings}), Sink())


def state(tracer: Tracer) -> tuple[bool, bool]:
    return tracer.on, tracer.propagates


def test_by_default_nothing_is_on_and_nobody_can_turn_it_on() -> None:
    tracer = Tracer()
    assert (tracer.on, tracer.propagates) == (False, False)
    with pytest.raises(InvalidRequest, match="trace file name is not given"):
        tracer.change("", {"trace_level": ["TIMESTAMPS"]})
    assert not tracer.on
    tracer.record(trace())
    assert tracer.reading() == TraceReading()
    tracer.close(0)


def test_it_is_on_while_somebody_may_be_traced() -> None:
    tracer = to_file(rate=2, count=2)
    assert state(tracer) == (True, False)
    assert [tracer.choose("m", ANONYMOUS) is not None for _ in range(4)] == [False, True, False, True]
    assert state(tracer) == (False, False)
    assert tracer.values("")["trace_count"] == ["0"]
    tracer.change("m", {"trace_count": ["1"]})
    assert state(tracer) == (True, False)
    assert tracer.choose("other", ANONYMOUS) is None
    tracer.change("m", {"trace_level": ["OFF"]})
    assert state(tracer) == (False, False)
    tracer.change("m", {"trace_level": []})
    assert state(tracer) == (True, False)
    tracer.close(0)
    assert state(tracer) == (False, False)


def test_a_model_may_have_rules_of_its_own() -> None:
    tracer = to_file(rate=1000)
    tracer.change("m", {"trace_rate": ["1"], "log_frequency": ["7"], "trace_level": ["TENSORS"]})
    chosen = tracer.choose("m", ANONYMOUS)
    assert chosen is not None
    assert (chosen.number, chosen.rules.log_frequency, chosen.timestamps, chosen.tensors) == (1, 7, False, True)
    assert tracer.choose("other", ANONYMOUS) is None
    assert tracer.values("other")["trace_rate"] == tracer.values("")["trace_rate"] == ["1000"]
    assert tracer.values("m")["trace_rate"] == ["1"]


def test_callers_decide_where_spans_are_sent() -> None:
    tracer = to_collector(rate=0)
    assert (tracer.on, tracer.propagates) == (True, True)
    assert tracer.choose("m", ANONYMOUS) is None
    assert tracer.choose("m", NOT_SAMPLED) is None
    chosen = tracer.choose("m", SAMPLED)
    assert chosen is not None
    assert chosen.parent is not None
    assert (chosen.parent.sampled, chosen.parent.state) == (True, "v=1")


def test_a_callers_trace_is_its_parent_although_it_was_its_own_turn() -> None:
    chosen = to_collector(rate=1).choose("m", NOT_SAMPLED)
    assert chosen is not None
    assert chosen.parent is not None
    assert not chosen.parent.sampled


def test_callers_go_on_after_the_count() -> None:
    tracer = to_collector(rate=1, count=1)
    assert tracer.choose("m", ANONYMOUS) is not None
    assert tracer.choose("m", ANONYMOUS) is None
    assert tracer.on
    assert tracer.choose("m", SAMPLED) is not None


def test_a_file_has_no_parents() -> None:
    assert to_file(rate=1000).choose("m", SAMPLED) is None


def test_many_threads_are_counted_exactly() -> None:
    tracer = to_file(rate=7)
    chosen: list[int] = []

    def ask() -> None:
        for _ in range(700):
            if (found := tracer.choose("m", ANONYMOUS)) is not None:
                chosen.append(found.number)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(chosen) == list(range(1, 801))
