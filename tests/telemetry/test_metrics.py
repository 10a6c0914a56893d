"""What a scrape shows, for as long as versions come and go, and that docs/METRICS.md describes exactly that."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.core.versions import VersionKey
from server.dataplane.interface import QueueSnapshot
from server.monitoring.reading import MonitoringReading
from server.telemetry.metrics import KEPT_LOADS, KEPT_VERSIONS, Metrics
from server.telemetry.monitoring_readings import Objective
from server.telemetry.readings import ConsumerReading, DeviceReading, DoorReading, NoLedger
from server.telemetry.recorder import OUTCOMES, VersionRecorder
from server.telemetry.triton_text import failure_reasons
from tests import verdicts

_KEY = VersionKey("ranker", 3)
_UUID = "GPU-00000000-0000-0000-0000-000000000000"
_GPU = DeviceReading(_UUID, 0.41, 75.5, 700.0, 12.25, 150_754_820_096, 8_589_934_592)
_DOCUMENT = Path(__file__).parents[2] / "docs" / "METRICS.md"


@dataclass(frozen=True)
class Features:
    """What the features of a server have to say; `server.features.readings` has the real one."""

    values: Mapping[tuple[str, str], int]
    contracts: Mapping[tuple[str, int], bool]
    failures: Mapping[str, int]
    calls: int = 11
    keys: int = 50
    cached_keys: int = 20
    breaker_open: bool = True
    samples_dropped: int = 2


_FEATURES = Features(
    {("route@1", "PRESENT"): 60, ("route@1", "DEFAULTED(STALE)"): 4},
    {("ranker", 3): True, ("ranker", 4): False},
    {"timeout": 2},
)


_SOCKETS = (
    "connections_open",
    "connections_accepted",
    "connections_refused",
    "streams_open",
    "streams_started",
    "streams_refused",
    "bytes_received",
    "bytes_sent",
    "bytes_copied",
    "protocol_errors",
    "floods",
    "stalled",
    "tls_failures",
)
_DOOR = DoorReading(
    {name: 10 + number for number, name in enumerate(_SOCKETS)},
    {"tensor_bytes_in": 100, "received": 7, "gathered": 99, "tensor_bytes_out": 200, "encoded": 198},
    {"fast": 41, "handlers": 2},
)


@dataclass(frozen=True)
class Holding:
    """As much of the lifecycle's ledger as a scrape asks for."""

    key: VersionKey = _KEY
    device: str = "cuda:0"
    reserved_bytes: int = 300
    measured_bytes: int = 200


@dataclass(frozen=True)
class Budget:
    device: str = "cuda:0"
    budget_bytes: int = 950
    unreturned_bytes: int = 20


_NO_LEDGER = NoLedger()
_LEDGER = NoLedger((Holding(),), (Budget(),))


class Cache:
    """As much of a response cache as a scrape asks for."""

    held_bytes = 4096

    def __len__(self) -> int:
        return 3


def _metrics(
    queues: Mapping[VersionKey, QueueSnapshot] | None = None,
    *gpus: DeviceReading,
    caches: Mapping[VersionKey, Cache] | None = None,
    places: Mapping[VersionKey, Mapping[str, bool]] | None = None,
    features: Features | None = None,
    door: DoorReading | None = None,
    ledger: NoLedger = _NO_LEDGER,
    monitoring: MonitoringReading | None = None,
) -> Metrics:
    return Metrics(
        build="1.2.3",
        queues=(queues or {}).get,
        devices=lambda: gpus,
        caches=(caches or {}).get,
        places=lambda key: (places or {}).get(key, {}),
        consumers=lambda: [ConsumerReading(_KEY, "checkout", 4), ConsumerReading(_KEY, "", 1)],
        wall_clock_ns=lambda: 0,
        refusals=lambda: [("inference", "token", 3)],
        features=lambda: features,
        door=lambda: door,
        ledger=lambda: ledger,
        monitoring=lambda: monitoring,
        objectives=lambda: {_KEY: Objective("auc", "at_least", 0.75)},
    )


def _run(recorder: VersionRecorder, *, released: str = "full", failed: bool = False, device: str = "cpu") -> None:
    """Two requests of 1 and 2 rows: 2 and 1 ms in the queue, 3 ms executing, 6 and 5 ms in all."""
    recorder.batch(
        spans=np.array([0, 1, 3], np.int64),
        arrival_ns=np.array([0, 1_000_000], np.int64),
        deadline_ns=np.array([5_000_000, 2**62], np.int64),
        answered=np.array([True, True]),
        failed=np.array([failed, failed]),
        taken_ns=2_000_000,
        input_ns=500_000,
        infer_ns=2_000_000,
        output_ns=500_000,
        finished_ns=6_000_000,
        padded_rows=4,
        elements=10,
        padding_elements=6,
        released=released,
        device=device,
    )


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


def _samples(metrics: Metrics) -> dict[str, list[Sample]]:
    """Samples by the name the text gives them (prometheus_client's parser would append `_total`)."""
    found: dict[str, list[Sample]] = {}
    for line in metrics.render().decode().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'(\w+)(?:\{((?:\w+="(?:[^"\\]|\\.)*",?)+)\})? (\S+)', line)
            assert match, line
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            found.setdefault(match[1], []).append(Sample(dict(labels), float(match[3])))
    return found


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    (value,) = (sample.value for sample in _samples(metrics)[name] if labels.items() <= sample.labels.items())
    return value


def _full() -> Metrics:
    """Metrics in which every family has a sample."""
    queue, places = {_KEY: QueueSnapshot(5, 9, 7)}, {_KEY: {"cuda:0": True, "cuda:1": False}}
    metrics = _metrics(
        queue,
        _GPU,
        caches={_KEY: Cache()},
        places=places,
        features=_FEATURES,
        door=_DOOR,
        ledger=_LEDGER,
        monitoring=verdicts.every_family(),
    )
    recorder = metrics.add(_KEY)
    recorder.hold_memory(1_000_000_000)
    metrics.mark_ready(_KEY, True)
    metrics.record_load(_KEY, 1.5, True)
    _run(recorder)
    recorder.refused("expired", 3)
    recorder.refused("cancelled")
    recorder.cache_hit(2_000, 10_000)
    recorder.cache_miss(5_000)
    recorder.cache_kept(1_000, 6)
    recorder.features(300_000)
    recorder.invalid.add({("x", "at_least", "reject"): 2})
    return metrics


def test_an_answered_batch_is_shown_under_podiums_names() -> None:
    metrics = _full()
    version = {"model": "ranker", "version": "3"}
    assert _value(metrics, "podium_request_seconds_count", **version, phase="total") == 3
    assert _value(metrics, "podium_request_seconds_sum", **version, phase="total") == 0.01101
    assert _value(metrics, "podium_request_seconds_sum", **version, phase="queue") == 0.003
    assert _value(metrics, "podium_request_seconds_sum", **version, phase="execute") == 0.006
    assert _value(metrics, "podium_request_seconds_bucket", **version, phase="total", le="0.005") == 2
    assert _value(metrics, "podium_request_seconds_bucket", **version, phase="total", le="0.0075") == 3
    assert _value(metrics, "podium_request_seconds_bucket", **version, phase="total", le="+Inf") == 3
    assert _value(metrics, "podium_batch_rows_bucket", **version, le="2.0") == 0
    assert _value(metrics, "podium_batch_rows_bucket", **version, le="4.0") == 1
    assert _value(metrics, "podium_batch_rows_sum", **version) == 3
    assert _value(metrics, "podium_batches_released_total", **version, reason="full") == 1
    assert _value(metrics, "podium_requests_total", **version, outcome="ok") == 3
    assert _value(metrics, "podium_requests_total", **version, outcome="refused") == 4
    assert _value(metrics, "podium_refused_total", **version, reason="expired") == 3
    assert _value(metrics, "podium_rows_total", **version) == 3
    assert _value(metrics, "podium_padding_rows_total", **version) == 1
    assert _value(metrics, "podium_elements_total", **version) == 10
    assert _value(metrics, "podium_padding_elements_total", **version) == 6
    assert _value(metrics, "podium_late_total", **version) == 1
    assert _value(metrics, "podium_queue_requests", **version) == 5
    assert _value(metrics, "podium_queue_rows", **version) == 9
    assert _value(metrics, "podium_inflight_requests", **version) == 7
    assert _value(metrics, "podium_model_ready", **version) == 1
    assert _value(metrics, "podium_model_memory_bytes", **version) == 1e9
    assert _value(metrics, "podium_loads_total", **version, result="ok") == 1
    assert _value(metrics, "podium_load_seconds", **version, result="ok") == 1.5
    assert _value(metrics, "podium_build_info", version="1.2.3") == 1
    assert _value(metrics, "podium_cache_hits_total", **version) == 1
    assert _value(metrics, "podium_cache_misses_total", **version) == 1
    assert _value(metrics, "podium_cache_evictions_total", **version) == 6
    assert _value(metrics, "podium_cache_bytes", **version) == 4096
    assert _value(metrics, "podium_cache_entries", **version) == 3
    assert _value(metrics, "podium_consumer_requests_total", **version, consumer="checkout") == 4
    assert _value(metrics, "podium_consumer_requests_total", **version, consumer="") == 1


def test_rows_that_broke_a_constraint_are_shown() -> None:
    version = {"model": "ranker", "version": "3", "input": "age"}
    assert _value(_full(), "podium_invalid_inputs_total", **version, constraint="at_least", action="reject") == 4


def test_features_are_shown() -> None:
    metrics = _full()
    version = {"model": "ranker", "version": "3"}
    assert _value(metrics, "podium_feature_seconds_sum", **version) == 0.0003
    assert _value(metrics, "podium_feature_seconds_bucket", **version, le="0.0002") == 0
    assert _value(metrics, "podium_feature_seconds_bucket", **version, le="0.0003") == 1
    assert _value(metrics, "podium_feature_values_total", view="route@1", status="PRESENT") == 60
    assert _value(metrics, "podium_feature_values_total", view="route@1", status="DEFAULTED(STALE)") == 4
    assert _value(metrics, "podium_feature_contract_ok", **version) == 1
    assert _value(metrics, "podium_feature_contract_ok", model="ranker", version="4") == 0
    assert _value(metrics, "podium_feature_store_calls_total") == 11
    assert _value(metrics, "podium_feature_store_failures_total", kind="timeout") == 2
    assert _value(metrics, "podium_feature_keys_total") == 50
    assert _value(metrics, "podium_feature_cache_hits_total") == 20
    assert _value(metrics, "podium_feature_breaker_open") == 1
    assert _value(metrics, "podium_feature_samples_dropped_total") == 2


def test_a_server_without_features_says_nothing_of_them() -> None:
    metrics = _metrics()
    metrics.add(_KEY)
    assert not [name for name in _samples(metrics) if "feature" in name]


def test_what_the_native_door_counts_is_shown() -> None:
    samples = _samples(_full())
    shown = {name: [value for _, value in found] for name, found in samples.items() if name.startswith("podium_door_")}
    assert shown == {
        "podium_door_connections": [10],
        "podium_door_connections_accepted_total": [11],
        "podium_door_connections_refused_total": [12],
        "podium_door_calls": [13],
        "podium_door_calls_started_total": [14],
        "podium_door_calls_refused_total": [15],
        "podium_door_received_bytes_total": [16],
        "podium_door_sent_bytes_total": [17],
        "podium_door_protocol_errors_total": [19],
        "podium_door_floods_total": [20],
        "podium_door_stalled_total": [21],
        "podium_door_tls_failures_total": [22],
        "podium_door_infer_calls_total": [41, 2],
    }
    metrics = _full()
    assert _value(metrics, "podium_door_infer_calls_total", lane="handlers") == 2
    assert _value(metrics, "podium_tensor_bytes_total", direction="in") == 100
    assert _value(metrics, "podium_tensor_bytes_total", direction="out") == 200
    steps = {sample.labels["step"]: sample.value for sample in _samples(metrics)["podium_tensor_bytes_copied_total"]}
    assert steps == {"receive": 7, "gather": 99, "encode": 198, "send": 18}


def test_the_ledger_is_shown() -> None:
    metrics = _full()
    held = {"model": "ranker", "version": "3", "device": "cuda:0"}
    assert _value(metrics, "podium_device_reserved_bytes", **held) == 300
    assert _value(metrics, "podium_device_measured_bytes", **held) == 200
    assert _value(metrics, "podium_device_budget_bytes", device="cuda:0") == 950
    assert _value(metrics, "podium_device_unreturned_bytes_total", device="cuda:0") == 20
    shown = [name for name in _samples(_metrics()) if name.startswith("podium_device")]
    assert shown == ["podium_device_restarts_total"]


def test_a_server_that_samples_nothing_says_nothing_of_it() -> None:
    metrics = _metrics()
    metrics.add(_KEY)
    told = ("podium_drift", "podium_stream", "podium_sample", "podium_monitor", "podium_risk", "podium_quality")
    assert not [name for name in _samples(metrics) if name.startswith(told)]


def test_grpcios_door_says_nothing() -> None:
    metrics = _metrics()
    metrics.add(_KEY)
    assert not [name for name in _samples(metrics) if name.startswith(("podium_door", "podium_tensor"))]


def test_the_response_cache_is_shown_under_tritons_names() -> None:
    metrics = _full()
    version = {"model": "ranker", "version": "3"}
    assert _value(metrics, "nv_cache_num_hits_per_model", **version) == 1
    assert _value(metrics, "nv_cache_num_misses_per_model", **version) == 1
    assert _value(metrics, "nv_cache_hit_duration_per_model", **version) == 2
    assert _value(metrics, "nv_cache_miss_duration_per_model", **version) == 6
    assert _value(metrics, "nv_inference_request_success", **version) == 3
    assert _value(metrics, "nv_inference_count", **version) == 3, "rows of the batch alone: a hit infers nothing"


def test_a_version_without_a_cache_says_nothing_of_it() -> None:
    metrics = _metrics()
    metrics.add(_KEY)
    shown = _samples(metrics)
    assert not [name for name in shown if "cache" in name]


def test_a_version_that_goes_keeps_its_totals_and_loses_its_gauges() -> None:
    metrics = _full()
    metrics.remove(_KEY)
    metrics.remove(_KEY)
    shown = _samples(metrics)
    assert _value(metrics, "nv_inference_count") == 3
    assert {"podium_model_ready", "podium_model_memory_bytes", "podium_queue_requests", "podium_cache_bytes"}.isdisjoint(shown)
    assert _value(metrics, "podium_cache_hits_total") == 1
    assert "nv_inference_pending_request_count" not in shown
    assert metrics.find(_KEY) is None


def test_a_version_that_comes_back_goes_on_counting() -> None:
    metrics = _full()
    first = metrics.find(_KEY)
    metrics.remove(_KEY)
    again = metrics.add(_KEY)
    assert again is first is metrics.find(_KEY) is metrics.add(_KEY)
    assert again.snapshot().memory_bytes == 0
    _run(again, released="idle")
    assert _value(metrics, "nv_inference_request_success") == 5
    assert _value(metrics, "podium_batches_released_total", reason="idle") == 1
    assert _value(metrics, "podium_model_ready") == 0, "added is not ready"


def test_the_longest_removed_version_is_forgotten_first() -> None:
    metrics = _metrics()
    for number in range(1, KEPT_VERSIONS + 2):
        metrics.add(VersionKey("m", number))
        metrics.remove(VersionKey("m", number))
    kept = {int(sample.labels["version"]) for sample in _samples(metrics)["nv_inference_count"]}
    assert kept == set(range(2, KEPT_VERSIONS + 2))


def test_only_a_version_that_was_added_can_be_ready() -> None:
    metrics = _metrics()
    with pytest.raises(KeyError, match="ranker:3 was not added"):
        metrics.mark_ready(_KEY, True)
    metrics.add(_KEY)
    metrics.mark_ready(_KEY, True)
    metrics.mark_ready(_KEY, False)
    assert _value(metrics, "podium_model_ready") == 0


def test_loads_are_counted_by_result_and_the_oldest_are_forgotten() -> None:
    metrics = _metrics()
    metrics.record_load(_KEY, 9.0, False)
    metrics.record_load(_KEY, 2.0, False)
    metrics.record_load(_KEY, 3.0, True)
    assert _value(metrics, "podium_loads_total", result="failed") == 2
    assert _value(metrics, "podium_load_seconds", result="failed") == 2.0
    for number in range(KEPT_LOADS - 1):
        metrics.record_load(VersionKey("other", number + 1), 1.0, True)
    assert [
        sample.labels["result"] for sample in _samples(metrics)["podium_loads_total"] if sample.labels["model"] == "ranker"
    ] == ["ok"]


def test_versions_are_shown_in_order() -> None:
    metrics = _metrics()
    for key in (VersionKey("b", 1), VersionKey("a", 10), VersionKey("a", 9)):
        metrics.add(key)
    metrics.remove(VersionKey("a", 9))
    shown = [(sample.labels["model"], sample.labels["version"]) for sample in _samples(metrics)["nv_inference_count"]]
    assert shown == [("a", "9"), ("a", "10"), ("b", "1")]


def test_batches_are_counted_by_the_device_that_executed_them() -> None:
    metrics = _full()
    for device in ("cuda:0", "cuda:0", "cuda:1"):
        _run(metrics.add(_KEY), device=device)
    for device, count in (("cpu", 1), ("cuda:0", 2), ("cuda:1", 1)):
        assert _value(metrics, "podium_device_batches_total", model="ranker", version="3", device=device) == count
    for device, serves in (("cuda:0", 1), ("cuda:1", 0)):
        assert _value(metrics, "podium_device_serves", model="ranker", version="3", device=device) == serves
    metrics.remove(_KEY)
    assert "podium_device_serves" not in _samples(metrics)
    assert _value(metrics, "podium_device_batches_total", model="ranker", version="3", device="cuda:0") == 2


def test_every_refusal_and_failure_has_one_of_tritons_reasons() -> None:
    metrics = _metrics()
    recorder = metrics.add(_KEY)
    for count, reason in enumerate(("queue_full", "expired", "cancelled", "invalid", "not_ready", "backend"), start=1):
        recorder.refused(reason, 10**count)
    _run(recorder, failed=True)
    stats = recorder.snapshot()
    assert failure_reasons(stats) == {"REJECTED": 110, "CANCELED": 1_000, "BACKEND": 1_000_002, "OTHER": 110_000}
    assert sum(failure_reasons(stats).values()) == stats.durations["fail"][0]
    assert sum(stats.requests[outcome] for outcome in OUTCOMES) == 1_111_112


def test_names_of_models_are_escaped() -> None:
    metrics = _metrics()
    odd = VersionKey('a"b\\c\nd', 1)
    metrics.add(odd)
    families = text_string_to_metric_families(metrics.render().decode())
    models = {family.name: {sample.labels.get("model") for sample in family.samples} for family in families}
    assert models["nv_inference_count"] == models["podium_rows"] == {odd.model}


@dataclass(frozen=True)
class _Described:
    kind: str
    labels: frozenset[str]


def _rendered() -> dict[str, _Described]:
    """Families as the text itself names them: parsers hide suffixes, and the suffix is the point."""
    kinds: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for line in _full().render().decode().splitlines():
        if match := re.fullmatch(r"# TYPE (\S+) (\S+)", line):
            name, kind = match.groups()
            assert name not in kinds, f"{name} is rendered twice"
            kinds[name], labels[name] = kind, set()
        elif not line.startswith("#"):
            assert re.match(rf"{name}(_bucket|_sum|_count)?[{{ ]" if kind == "histogram" else rf"{name}[{{ ]", line), line
            labels[name] |= set(re.findall(r'(\w+)="', line)) - {"le"}
    return {name: _Described(kind, frozenset(labels[name])) for name, kind in kinds.items()}


def _documented() -> dict[str, _Described]:
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]+) \| [^|]+ \| [^|]+ \|$", _DOCUMENT.read_text(), re.M)
    assert len({name for name, _, _ in rows}) == len(rows), "a metric is described twice"
    return {name: _Described(kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def test_the_document_describes_exactly_what_is_rendered() -> None:
    assert _documented() == _rendered()
