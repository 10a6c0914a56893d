"""Podium's own metric families (`podium_*`), built from the readings of one scrape.

Floor 2: prometheus_client knows how to name, type and escape; this file only says which number goes where. Reads no clock,
holds no state, and every name in it is described in docs/METRICS.md, which a test compares with what is rendered.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from server.core.clock import NS_PER_S
from server.telemetry.histogram import Histogram
from server.telemetry.readings import ConsumerReading, FeatureReading, LedgerReading, LoadReading, TraceReading, VersionReading

_VERSION = ("model", "version")


def version_families(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    """Everything that is counted per version."""
    yield from _histograms(readings)
    yield from _labelled_counters(readings)
    yield from _plain_counters(readings)
    yield from _gauges(readings)
    yield from _devices(readings)
    yield from _caches([reading for reading in readings if reading.cached])


def consumer_family(consumers: Iterable[ConsumerReading]) -> Metric:
    """Who asked which version; the number of consumers is bounded where they are counted."""
    family = CounterMetricFamily(
        "podium_consumer_requests", "Requests that reached the version, by who sent them", labels=(*_VERSION, "consumer")
    )
    for reading in consumers:
        family.add_metric((reading.key.model, str(reading.key.version), reading.consumer), reading.requests)
    return family


def load_families(loads: Iterable[LoadReading]) -> Iterator[Metric]:
    """Attempts to bring versions into service; they exist for versions that never came to be, too."""
    counts = CounterMetricFamily("podium_loads", "Attempts to load a version", labels=(*_VERSION, "result"))
    lasts = GaugeMetricFamily("podium_load_seconds", "Time the last such load took", labels=(*_VERSION, "result"))
    for load in loads:
        labels = (load.key.model, str(load.key.version), load.result)
        counts.add_metric(labels, load.count)
        lasts.add_metric(labels, load.last_s)
    yield counts
    yield lasts


def feature_families(reading: FeatureReading) -> Iterator[Metric]:
    """Features of all versions: they share one store. Times are counted per version, with everything else of it."""
    values = CounterMetricFamily("podium_feature_values", "Values served, by status", labels=("view", "status"))
    for labels, count in sorted(reading.values.items()):
        values.add_metric(labels, count)
    contracts = GaugeMetricFamily("podium_feature_contract_ok", "1 if the version may serve with them", labels=_VERSION)
    for (model, version), holds in sorted(reading.contracts.items()):
        contracts.add_metric((model, str(version)), holds)
    failures = CounterMetricFamily(
        "podium_feature_store_failures", "Times rows were served without the store", labels=("kind",)
    )
    for kind, count in sorted(reading.failures.items()):
        failures.add_metric((kind,), count)
    yield from (values, contracts, failures)
    yield CounterMetricFamily("podium_feature_store_calls", "Calls of the store", value=reading.calls)
    yield CounterMetricFamily("podium_feature_keys", "Rows wanted", value=reading.keys)
    yield CounterMetricFamily("podium_feature_cache_hits", "Rows that were remembered", value=reading.cached_keys)
    yield GaugeMetricFamily("podium_feature_breaker_open", "1 while the store is not asked", value=reading.breaker_open)
    yield CounterMetricFamily("podium_feature_samples_dropped", "Rows of the audit lost", value=reading.samples_dropped)


def ledger_families(reading: LedgerReading) -> Iterator[Metric]:
    """Memory of the devices that tell of it, by the lifecycle's books."""
    labels = (*_VERSION, "device")
    reserved = GaugeMetricFamily("podium_device_reserved_bytes", "Memory that counts against the budget", labels=labels)
    measured = GaugeMetricFamily("podium_device_measured_bytes", "Memory that its loads have taken", labels=labels)
    for holding in reading.holdings:
        of = (holding.key.model, str(holding.key.version), holding.device)
        reserved.add_metric(of, holding.reserved_bytes)
        measured.add_metric(of, holding.measured_bytes)
    budgets = GaugeMetricFamily("podium_device_budget_bytes", "Memory that may be in use", labels=("device",))
    unreturned = CounterMetricFamily("podium_device_unreturned_bytes", "Memory that did not come back", labels=("device",))
    for budget in reading.budgets:
        budgets.add_metric((budget.device,), budget.budget_bytes)
        unreturned.add_metric((budget.device,), budget.unreturned_bytes)
    yield from (reserved, measured, budgets, unreturned)


def trace_families(reading: TraceReading) -> Iterator[Metric]:
    """Traced requests, of all versions: what is lost is lost on the way to one file or one collector."""
    yield CounterMetricFamily("podium_traces", "Traces written or sent", value=reading.written)
    yield CounterMetricFamily("podium_traces_dropped", "Traces lost", value=reading.dropped)


def access_family(refusals: Iterable[tuple[str, str, int]]) -> Metric:
    """Calls that the door refused before it looked at their message: group of calls, rule, and how often."""
    family = CounterMetricFamily("podium_access_refused", "Calls that were not admitted", labels=("group", "reason"))
    for group, reason, count in refusals:
        family.add_metric((group, reason), count)
    return family


def build_family(version: str, python: str) -> Metric:
    """Which build is running, as labels of a constant 1."""
    family = GaugeMetricFamily("podium_build_info", "The running build; always 1", labels=("version", "python"))
    family.add_metric((version, python), 1)
    return family


def restart_family(restarts: int) -> Metric:
    """How often this process has begun anew since it was created; the one number that goes on over that."""
    return CounterMetricFamily("podium_device_restarts", "New beginnings after a lost device", value=restarts)


def _histograms(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "podium_request_seconds", "Time of answered requests, by phase", labels=(*_VERSION, "phase")
    )
    rows = HistogramMetricFamily("podium_batch_rows", "Rows per executed batch, without padding", labels=_VERSION)
    features = HistogramMetricFamily("podium_feature_seconds", "Time the features of a batch took", labels=_VERSION)
    for reading in readings:
        if (took := reading.stats.features) is not None:
            features.add_metric(reading.labels, _buckets(took, NS_PER_S), took.sum / NS_PER_S)
        for phase, histogram in reading.stats.histograms.items():
            seconds.add_metric((*reading.labels, phase), _buckets(histogram, NS_PER_S), histogram.sum / NS_PER_S)
        rows.add_metric(reading.labels, _buckets(reading.stats.batch_rows, 1), reading.stats.batch_rows.sum)
    yield seconds
    yield rows
    yield features


def _buckets(histogram: Histogram, unit: int) -> list[tuple[str, float]]:
    bounded: list[tuple[str, float]] = [(repr(edge / unit), count) for edge, count in histogram.cumulative()]
    return [*bounded, ("+Inf", histogram.count)]


def _labelled_counters(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    requests = CounterMetricFamily("podium_requests", "Requests that ended, by outcome", labels=(*_VERSION, "outcome"))
    refused = CounterMetricFamily("podium_refused", "Requests that ended without execution", labels=(*_VERSION, "reason"))
    released = CounterMetricFamily("podium_batches_released", "Executed batches", labels=(*_VERSION, "reason"))
    for reading in readings:
        for family, counts in (
            (requests, reading.stats.requests),
            (refused, reading.stats.refused),
            (released, reading.stats.released),
        ):
            for value, count in counts.items():
                family.add_metric((*reading.labels, value), count)
    yield requests
    yield refused
    yield released


def _plain_counters(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    rows = CounterMetricFamily("podium_rows", "Rows executed, without padding", labels=_VERSION)
    padding = CounterMetricFamily("podium_padding_rows", "Rows executed only to fill a bucket", labels=_VERSION)
    late = CounterMetricFamily("podium_late", "Requests answered after their deadline", labels=_VERSION)
    elements = CounterMetricFamily("podium_elements", "Elements executed of padded inputs, without padding", labels=_VERSION)
    padding_elements = CounterMetricFamily("podium_padding_elements", "Elements executed only as padding", labels=_VERSION)
    for reading in readings:
        if reading.stats.elements or reading.stats.padding_elements:
            elements.add_metric(reading.labels, reading.stats.elements)
            padding_elements.add_metric(reading.labels, reading.stats.padding_elements)
        rows.add_metric(reading.labels, reading.stats.rows)
        padding.add_metric(reading.labels, reading.stats.padding_rows)
        late.add_metric(reading.labels, reading.stats.late)
    yield rows
    yield padding
    yield late
    yield elements
    yield padding_elements


def _devices(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    labels = (*_VERSION, "device")
    batches = CounterMetricFamily("podium_device_batches", "Batches of the version that the device executed", labels=labels)
    serves = GaugeMetricFamily("podium_device_serves", "1 while the version serves on the device", labels=labels)
    for reading in readings:
        for device, count in reading.stats.devices.items():
            batches.add_metric((*reading.labels, device), count)
        for device, there in reading.devices.items():
            serves.add_metric((*reading.labels, device), there)
    yield batches
    yield serves


def _gauges(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("podium_queue_requests", "Requests waiting for a batch", labels=_VERSION)
    rows = GaugeMetricFamily("podium_queue_rows", "Rows waiting for a batch", labels=_VERSION)
    inflight = GaugeMetricFamily("podium_inflight_requests", "Requests admitted and not yet ended", labels=_VERSION)
    memory = GaugeMetricFamily("podium_model_memory_bytes", "Memory the version holds", labels=_VERSION)
    ready = GaugeMetricFamily("podium_model_ready", "1 while the version serves", labels=_VERSION)
    for reading in readings:
        if reading.queue is not None:
            waiting.add_metric(reading.labels, reading.queue.waiting_requests)
            rows.add_metric(reading.labels, reading.queue.waiting_rows)
            inflight.add_metric(reading.labels, reading.queue.open_requests)
        if reading.ready is not None:
            memory.add_metric(reading.labels, reading.stats.memory_bytes)
            ready.add_metric(reading.labels, reading.ready)
    yield waiting
    yield rows
    yield inflight
    yield memory
    yield ready


def _caches(readings: Sequence[VersionReading]) -> Iterator[Metric]:
    hits = CounterMetricFamily("podium_cache_hits", "Requests answered from the response cache", labels=_VERSION)
    misses = CounterMetricFamily("podium_cache_misses", "Requests looked for in the response cache in vain", labels=_VERSION)
    evictions = CounterMetricFamily("podium_cache_evictions", "Answers forgotten to make room", labels=_VERSION)
    held = GaugeMetricFamily("podium_cache_bytes", "Memory of the response cache", labels=_VERSION)
    entries = GaugeMetricFamily("podium_cache_entries", "Answers in the response cache", labels=_VERSION)
    for reading in readings:
        hits.add_metric(reading.labels, reading.stats.durations["cache_hit"][0])
        misses.add_metric(reading.labels, reading.stats.durations["cache_miss"][0])
        evictions.add_metric(reading.labels, reading.stats.cache_evictions)
        if reading.cache is not None:
            held.add_metric(reading.labels, reading.cache.held_bytes)
            entries.add_metric(reading.labels, len(reading.cache))
    yield hits
    yield misses
    yield evictions
    yield held
    yield entries
