"""Spans as a real collector receives them."""

import logging
import time
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as WireStatus

from server.core.clock import monotonic_ns
from server.core.settings import TraceSettings
from server.telemetry.otel import OtlpSink, open_sink
from server.telemetry.readings import TraceReading
from server.telemetry.trace import parent_of
from server.telemetry.trace_writer import TraceWriter
from tests.collector import Collector, attributes, collecting
from tests.server.serving import until
from tests.telemetry.traces import MS, trace

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library's logger as it was before."""
    logger = logging.getLogger("opentelemetry")
    level = logger.level
    yield
    logger.setLevel(level)


def sink_to(address: str, **settings: object) -> OtlpSink:
    return open_sink(TraceSettings.model_validate({"mode": "opentelemetry", "otlp_endpoint": address, **settings}))


def test_a_request_is_a_span_with_its_phases(collector: Collector) -> None:
    sink = sink_to(collector.address, service_name="scoring", resource={"deployment.environment.name": "test"})
    before_ns = time.time_ns()
    now_ns = monotonic_ns()
    times = {"arrival_ns": now_ns, "taken_ns": now_ns + MS, "started_ns": now_ns + 2 * MS, "ran_ns": now_ns + 5 * MS}
    sink.write([trace(1, **times, ended_ns=now_ns + 6 * MS)])
    sink.close()
    (server,) = collector.servers()
    assert server.name == "inference.GRPCInferenceService/ModelInfer"
    assert attributes(server) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "podium.model": "m",
        "podium.version": 7,
        "podium.request_id": "a",
        "podium.rows": 2,
        "podium.batch_rows": 5,
    }
    assert server.parent_span_id == b""
    assert server.end_time_unix_nano - server.start_time_unix_nano == 6 * MS
    assert abs(server.start_time_unix_nano - before_ns) < 60_000 * MS, "wall clock, not monotonic"
    children = collector.children(server)
    assert list(children) == ["queue", "execute"]
    queue, execute = children["queue"], children["execute"]
    assert {span.trace_id for span in (server, queue, execute)} == {server.trace_id}
    assert server.start_time_unix_nano == queue.start_time_unix_nano
    assert queue.end_time_unix_nano == execute.start_time_unix_nano == server.start_time_unix_nano + MS
    assert execute.end_time_unix_nano == server.start_time_unix_nano + 5 * MS
    assert [(event.name, event.time_unix_nano) for event in execute.events] == [("run", server.start_time_unix_nano + 2 * MS)]
    assert collector.resource["service.name"] == "scoring"
    assert collector.resource["deployment.environment.name"] == "test"


def test_a_caller_is_the_parent_and_its_state_is_handed_on(collector: Collector) -> None:
    sink = sink_to(collector.address)
    sink.write([trace(1, parent=parent_of(TRACEPARENT, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")), trace(2)])
    sink.close()
    mine, other = sorted(collector.servers(), key=lambda span: span.parent_span_id, reverse=True)
    assert mine.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert mine.parent_span_id.hex() == "b7ad6b7169203331"
    assert mine.trace_state == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert {child.trace_state for child in collector.children(mine).values()} == {mine.trace_state}
    assert other.trace_id != mine.trace_id
    assert len({span.span_id for span in collector.spans}) == 6


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 0), (5, 0), (1, 0), (13, 2), (14, 2), (4, 2)])
def test_only_what_the_server_did_wrong_is_an_error(collector: Collector, code: int, status: int) -> None:
    sink = sink_to(collector.address)
    sink.write([trace(code=code, reason="why")])
    sink.close()
    (server,) = collector.servers()
    assert server.status.code == status
    assert server.status.message == ("why" if status == WireStatus.STATUS_CODE_ERROR else "")
    assert attributes(server)["rpc.grpc.status_code"] == code


@pytest.mark.parametrize(
    ("fields", "phases"),
    [
        ({"admitted": False, "taken_ns": 0, "started_ns": 0, "ran_ns": 0, "version": 0, "rows": 0, "batch_rows": 0}, {}),
        ({"taken_ns": 0, "started_ns": 0, "ran_ns": 0}, {"queue": 6 * MS}),
        ({"ran_ns": 0}, {"queue": MS}),
        ({"started_ns": 0}, {"queue": MS, "execute": 4 * MS}),
    ],
)
def test_phases_that_never_came_are_missing(collector: Collector, fields: dict[str, int], phases: dict[str, int]) -> None:
    sink = sink_to(collector.address)
    sink.write([trace(**fields, request_id="")])
    sink.close()
    (server,) = collector.servers()

    def lasted(span: Span) -> int:
        return span.end_time_unix_nano - span.start_time_unix_nano

    assert {name: lasted(span) for name, span in collector.children(server).items()} == phases


def test_a_collector_that_comes_and_goes_costs_traces_and_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with collecting() as collector:
        address = collector.address
        writer = TraceWriter(sink_to(address), 100, 100)
        writer.put(trace(1))
        until(lambda: writer.reading() == TraceReading(1, 0), "the first trace")
    writer.put(trace(2))
    until(lambda: writer.reading() == TraceReading(1, 1), "the loss")
    with collecting(address.removeprefix("http://")) as collector:

        def arrived() -> bool:
            writer.put(trace(3))
            return len(collector.spans) > 0

        until(arrived, "the recovery")
        until(lambda: "traces are written again" in caplog.messages, "the line")
        writer.close(60)
    assert caplog.messages == ["traces are lost", "traces are written again"]


def test_the_end_is_bounded_while_a_collector_does_not_answer(collector: Collector) -> None:
    collector.answering.clear()
    writer = TraceWriter(sink_to(collector.address), 100, 100)
    writer.put(trace(1))
    assert collector.entered.wait(60)
    writer.put(trace(2))
    writer.close(0.05)
    until(lambda: writer.reading() == TraceReading(0, 2), "the loss of both")


def test_what_cannot_be_sent_is_an_error() -> None:
    sink = sink_to("http://127.0.0.1:1")
    with pytest.raises(OSError, match=r"the collector at http://127\.0\.0\.1:1 did not take them"):
        sink.write([trace()])
    sink.close()


def test_a_channel_that_was_closed_under_an_export_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_to("http://127.0.0.1:1")

    def export(spans: Sequence[object]) -> None:
        raise ValueError("Cannot invoke RPC on closed channel!")

    monkeypatch.setattr(sink._exporter, "export", export)
    with pytest.raises(ValueError, match="closed channel"):
        sink.write([trace()])
    sink.abandon()
    with pytest.raises(OSError, match="was given up"):
        sink.write([trace()])
