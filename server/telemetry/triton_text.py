"""The metrics under NVIDIA Triton's names (`nv_*`), as text, so that its dashboards and perf_analyzer work unchanged.

Floor 2. Written here and not by prometheus_client, which cannot write them: it appends `_total` to every counter's name, and
renders a GPU's memory as `1.5e+11`, of which perf_analyzer's pattern reads "1.5" and stores 1 byte. No exponent is ever
written here. Reads no clock and holds no state.
Source: triton-inference-server/server docs/user_guide/metrics.md (names, labels, units); perf_analyzer
triton_client_backend.h (`\\n<name>\\{gpu_uuid\\="([^"]+)"\\} (\\d+\\.?\\d*)`, one label exactly).
"""

from collections.abc import Iterable, Iterator, Sequence

from server.core.clock import NS_PER_US
from server.telemetry.readings import DeviceReading, VersionReading
from server.telemetry.recorder import VersionStats

Sample = tuple[tuple[tuple[str, str], ...], int | float]
"""Label names with values, and the number."""

_DURATIONS = (
    ("request", "success", "Cumulative time of answered requests in the server"),
    ("queue", "queue", "Cumulative time answered requests waited for a batch"),
    ("compute_input", "compute_input", "Cumulative time answered requests spent in gathering inputs"),
    ("compute_infer", "compute_infer", "Cumulative time answered requests spent in executing"),
    ("compute_output", "compute_output", "Cumulative time answered requests spent in scattering outputs"),
)
_DEVICES = (
    ("nv_gpu_utilization", "gauge", "utilization_ratio", "GPU utilization rate (0.0 - 1.0)"),
    ("nv_gpu_power_usage", "gauge", "power_usage_watts", "GPU power usage in watts"),
    ("nv_gpu_power_limit", "gauge", "power_limit_watts", "GPU power management limit in watts"),
    ("nv_energy_consumption", "counter", "energy_joules", "GPU energy consumption in joules since the server started"),
    ("nv_gpu_memory_total_bytes", "gauge", "memory_total_bytes", "GPU total memory, in bytes"),
    ("nv_gpu_memory_used_bytes", "gauge", "memory_used_bytes", "GPU used memory, in bytes"),
)


def triton_text(readings: Sequence[VersionReading], devices: Sequence[DeviceReading]) -> str:
    """Every `nv_*` family. Families without a sample are left out, as where there is no GPU."""
    return "".join((*_inference(readings), *_caches([each for each in readings if each.cached]), *_devices(devices)))


def _inference(readings: Sequence[VersionReading]) -> Iterator[str]:
    def per_version(name: str, kind: str, text: str, values: Iterable[int]) -> str:
        labels = (_version_labels(reading) for reading in readings)
        return _family(f"nv_inference_{name}", kind, text, zip(labels, values, strict=True))

    stats = [reading.stats for reading in readings]
    yield per_version("request_success", "counter", "Requests answered", (each.durations["success"][0] for each in stats))
    yield _family("nv_inference_request_failure", "counter", "Requests that ended otherwise, by reason", _failures(readings))
    yield per_version("count", "counter", "Rows answered", (each.inference_count for each in stats))
    yield per_version("exec_count", "counter", "Batches executed", (each.execution_count for each in stats))
    yield _family(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests waiting for a batch",
        ((_version_labels(each), each.queue.waiting_requests) for each in readings if each.queue is not None),
    )
    for name, part, text in _DURATIONS:
        values = (each.durations[part][1] // NS_PER_US for each in stats)
        yield per_version(f"{name}_duration_us", "counter", f"{text}, in microseconds", values)


def _caches(readings: Sequence[VersionReading]) -> Iterator[str]:
    for part, text in (("hit", "answered from the response cache"), ("miss", "looked for in the response cache in vain")):
        found = [(_version_labels(each), each.stats.durations[f"cache_{part}"]) for each in readings]
        plural = "hits" if part == "hit" else "misses"
        counts = ((labels, count) for labels, (count, _) in found)
        yield _family(f"nv_cache_num_{plural}_per_model", "counter", f"Requests {text}", counts)
        took = ((labels, ns // NS_PER_US) for labels, (_, ns) in found)
        words = "Cumulative time of these lookups" + ("" if part == "hit" else " and of keeping the answers")
        yield _family(f"nv_cache_{part}_duration_per_model", "counter", f"{words}, in microseconds", took)


def _failures(readings: Sequence[VersionReading]) -> Iterator[Sample]:
    for reading in readings:
        for reason, count in failure_reasons(reading.stats).items():
            model, version = _version_labels(reading)
            yield (model, ("reason", reason), version), count


def failure_reasons(stats: VersionStats) -> dict[str, int]:
    """Triton's four reasons; their sum is ModelStatistics' `fail.count`.

    REJECTED was not admitted or expired in the queue, CANCELED lost its caller, BACKEND failed in execution, OTHER is the rest.
    """
    refused, requests = stats.refused, stats.requests
    return {
        "REJECTED": refused["queue_full"] + refused["expired"],
        "CANCELED": refused["cancelled"] + requests["abandoned"],
        "BACKEND": refused["backend"] + requests["failed"],
        "OTHER": refused["invalid"] + refused["not_ready"],
    }


def _version_labels(reading: VersionReading) -> tuple[tuple[str, str], tuple[str, str]]:
    model, version = reading.labels
    return ("model", model), ("version", version)


def _devices(devices: Sequence[DeviceReading]) -> Iterator[str]:
    for name, kind, field, text in _DEVICES:
        told = ((device.gpu_uuid, getattr(device, field)) for device in devices)
        yield _family(name, kind, text, (((("gpu_uuid", uuid),), value) for uuid, value in told if value is not None))


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"{name}{{{_labels(labels)}}} {_number(value)}\n" for labels, value in samples]
    return "".join((f"# HELP {name} {text}\n# TYPE {name} {kind}\n", *lines)) if lines else ""


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: int | float) -> str:
    # six digits, as Triton writes them; a float's own repr turns to exponents above 1e16 and below 1e-4
    return str(value) if isinstance(value, int) else f"{value:.6f}"
