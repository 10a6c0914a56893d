"""Traces as OpenTelemetry spans, sent by OTLP over gRPC. The only file that imports opentelemetry.

Floor 2, loaded by name where `[trace] mode` asks for it. Spans are made on the writer's thread from instants that are known, so
the SDK's tracer, sampler and processors have no part in it: only its span, its resource and its exporter. The exporter reads
the variables OTEL_EXPORTER_OTLP_* (headers, certificates) and OTEL_RESOURCE_ATTRIBUTES itself.
"""

import logging
import time
from collections.abc import Iterator, Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from server.core.clock import monotonic_ns
from server.core.settings import TraceSettings
from server.telemetry.trace import Parent, Trace

_EXPORT_S = 5.0
"""How long one batch is tried. What comes meanwhile waits in the buffer."""
_SERVICE = "inference.GRPCInferenceService"
_SERVER_ERRORS = frozenset({2, 4, 12, 13, 14, 15})
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the others are the caller's doing.
Source: OpenTelemetry semantic conventions for RPC, 2026-08."""
_SCOPE = InstrumentationScope("podium")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpSink:
    """One server span per trace, with its children. Ownership: one thread, but for `abandon`."""

    def __init__(self, settings: TraceSettings) -> None:
        # its own words would come once per batch while a collector is away; the writer says once that traces are lost
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=_EXPORT_S)
        self._resource = Resource.create({SERVICE_NAME: settings.service_name, **settings.resource})
        self._ids = RandomIdGenerator()
        self._endpoint = settings.otlp_endpoint
        self._abandoned = False
        # one offset for the life of the process: the instants of a trace keep their order and their distances
        self._wall_ns = time.time_ns() - monotonic_ns()

    def write(self, traces: Sequence[Trace]) -> None:
        """Send. Raises: OSError where the collector did not take them."""
        spans = [span for trace in traces for span in self._spans(trace)]
        try:
            result = self._exporter.export(spans)
        except ValueError as error:
            if not self._abandoned:
                raise
            # gRPC's word for a channel that was closed just before the call
            raise OSError(f"the collector at {self._endpoint} was given up") from error
        if result is not SpanExportResult.SUCCESS:
            raise OSError(f"the collector at {self._endpoint} did not take them")

    def close(self) -> None:
        """Let go of the connection."""
        self._exporter.shutdown(timeout_millis=0)

    def abandon(self) -> None:
        """End an export that waits for its collector."""
        self._abandoned = True
        self._exporter.shutdown(timeout_millis=0)

    def _spans(self, trace: Trace) -> Iterator[ReadableSpan]:
        parent = trace.parent
        state = TraceState.from_header([parent.state]) if parent is not None and parent.state else TraceState()
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id

        def context() -> SpanContext:
            return SpanContext(trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=state)

        own = context()
        yield ReadableSpan(
            name=f"{_SERVICE}/{trace.method}",
            context=own,
            parent=None if parent is None else _remote(parent, state),
            resource=self._resource,
            attributes=_attributes(trace),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, trace.reason) if trace.code in _SERVER_ERRORS else Status(),
            start_time=trace.arrival_ns + self._wall_ns,
            end_time=trace.ended_ns + self._wall_ns,
            instrumentation_scope=_SCOPE,
        )
        for name, begin_ns, end_ns, events in _phases(trace, self._wall_ns):
            yield ReadableSpan(
                name=name,
                context=context(),
                parent=own,
                resource=self._resource,
                events=events,
                start_time=begin_ns + self._wall_ns,
                end_time=end_ns + self._wall_ns,
                instrumentation_scope=_SCOPE,
            )


def _phases(trace: Trace, wall_ns: int) -> Iterator[tuple[str, int, int, list[Event]]]:
    """Each phase that came to its end: its name, from when to when, and what happened in it."""
    if not trace.admitted:
        return
    yield "queue", trace.arrival_ns, trace.taken_ns or trace.ended_ns, []
    if trace.ran_ns:
        # the moment at which inputs are gathered and the backend begins
        events = [Event("run", timestamp=trace.started_ns + wall_ns)] if trace.started_ns else []
        yield "execute", trace.taken_ns, trace.ran_ns, events


def _attributes(trace: Trace) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": _SERVICE,
        "rpc.method": trace.method,
        "rpc.grpc.status_code": trace.code,
        "podium.model": trace.model,
    }
    if trace.version:
        found["podium.version"] = trace.version
    if trace.request_id:
        found["podium.request_id"] = trace.request_id
    if trace.rows:
        found["podium.rows"] = trace.rows
    if trace.batch_rows:
        found["podium.batch_rows"] = trace.batch_rows
    return found


def _remote(parent: Parent, state: TraceState) -> SpanContext:
    flags = _SAMPLED if parent.sampled else TraceFlags()
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state)


def open_sink(settings: TraceSettings) -> OtlpSink:
    """The sink that `[trace]` describes. Nothing is sent yet: the collector need not be there."""
    return OtlpSink(settings)
