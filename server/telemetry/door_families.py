"""What the native door and plane tell of sockets, lanes and copies (`podium_door_*`, `podium_tensor_*`), for one scrape.

Floor 2: as `families`, for numbers that only the native kind has. Every name is described in docs/METRICS.md.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.telemetry.readings import DoorReading

_GAUGES = {
    "connections_open": ("podium_door_connections", "Connections that are open"),
    "streams_open": ("podium_door_calls", "Calls that are open"),
}
_COUNTERS = {
    "connections_accepted": ("podium_door_connections_accepted", "Connections that were taken"),
    "connections_refused": ("podium_door_connections_refused", "Connections that were closed at once"),
    "streams_started": ("podium_door_calls_started", "Calls whose headers were well"),
    "streams_refused": ("podium_door_calls_refused", "Calls that ended at their headers"),
    "bytes_received": ("podium_door_received_bytes", "Bytes read from sockets"),
    "bytes_sent": ("podium_door_sent_bytes", "Bytes written to sockets"),
    "protocol_errors": ("podium_door_protocol_errors", "Violations of HTTP/2"),
    "floods": ("podium_door_floods", "Connections closed because they made too much work"),
    "stalled": ("podium_door_stalled", "Connections and calls ended because they did not move"),
    "tls_failures": ("podium_door_tls_failures", "Handshakes that failed"),
}
_COPIED = {"received": "receive", "gathered": "gather", "encoded": "encode"}


def door_families(reading: DoorReading) -> Iterator[Metric]:
    """All connections and versions together."""
    for name, (metric, meaning) in _GAUGES.items():
        yield GaugeMetricFamily(metric, meaning, value=reading.sockets[name])
    for name, (metric, meaning) in _COUNTERS.items():
        yield CounterMetricFamily(metric, meaning, value=reading.sockets[name])
    calls = CounterMetricFamily("podium_door_infer_calls", "Calls of ModelInfer, by who answered", labels=("lane",))
    for lane, count in reading.infer_calls.items():
        calls.add_metric((lane,), count)
    tensors = CounterMetricFamily("podium_tensor_bytes", "Tensors of the fast lane", labels=("direction",))
    tensors.add_metric(("in",), reading.copies["tensor_bytes_in"])
    tensors.add_metric(("out",), reading.copies["tensor_bytes_out"])
    copied = CounterMetricFamily("podium_tensor_bytes_copied", "Bytes copied on their way", labels=("step",))
    for name, step in _COPIED.items():
        copied.add_metric((step,), reading.copies[name])
    copied.add_metric(("send",), reading.sockets["bytes_copied"])
    yield from (calls, tensors, copied)
