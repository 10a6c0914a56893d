"""An OpenTelemetry collector for tests: OTLP over gRPC, as the specification's own messages say, into a list."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(TraceServiceServicer):
    """Spans as they come; `answering` cleared: calls wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answering = threading.Event()
        self.answering.set()
        self.address = ""
        self.entered = threading.Event()
        self._spans: list[Span] = []
        self.resource: dict[str, str] = {}

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.entered.set()
        self.answering.wait(60)
        with self._lock:
            for group in request.resource_spans:
                self.resource = attributes(group.resource)
                for scope in group.scope_spans:
                    self._spans.extend(scope.spans)
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        with self._lock:
            return list(self._spans)

    def servers(self) -> list[Span]:
        """Spans of requests, in the order in which they began."""
        found = [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def children(self, parent: Span) -> dict[str, Span]:
        return {span.name: span for span in self.spans if span.parent_span_id == parent.span_id}


def attributes(holder: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@contextmanager
def collecting(address: str = "127.0.0.1:0") -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated without types
    collector.address = f"http://127.0.0.1:{server.add_insecure_port(address)}"
    server.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        server.stop(None).wait(60)
