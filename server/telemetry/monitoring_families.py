"""What monitoring has found (`podium_drift_*`, `podium_sample_*`, quality, risk), for one scrape.

Floor 2: as `families`. The one thing that is remembered between scrapes is what keeps totals from falling. Series of single
streams are bounded: of each version and arm those with the most evidence are shown, and how many are not.
"""

import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.core.versions import VersionKey
from server.telemetry.invalid import InvalidRows
from server.telemetry.monitoring_readings import (
    Finding,
    MonitoringReading,
    Objective,
    QualityReading,
    SamplingReading,
    VersionReading,
    WindowVerdict,
)

STREAM_SERIES = 64
"""Streams of one version and arm that have series of their own: about 450 lines."""
STATES = ("no_data", "learning", "ok", "degraded", "alarm")
_LEAST_P = 1e-300
_US_PER_S = 1e6
_ARM = ("model", "version", "arm")
_RATES = {
    "missing": ("podium_stream_missing_ratio", "Share of the window's values that are missing"),
    "unseen": ("podium_stream_unseen_ratio", "Share of the window's values that the baseline does not know"),
    "out_of_range": ("podium_stream_out_of_range_ratio", "Share of the window's values beyond the baseline's range"),
    "non_finite": ("podium_stream_non_finite_ratio", "Share of the window's values that are infinite"),
}


class Totals:
    """Counts that never fall, of counts that may begin anew. Memory: an entry for each name. Not thread-safe."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[int, int]] = {}

    def __call__(self, name: Hashable, count: int) -> int:
        """What `name` has come to, whose count is now `count`.

        >>> totals = Totals()
        >>> [totals("rows", count) for count in (3, 5, 1, 2)]
        [3, 5, 6, 7]
        """
        before, last = self._seen.get(name, (0, 0))
        if count < last:
            before += last
        self._seen[name] = before, count
        return before + count


class MonitoringFamilies:
    """The families of everything that monitoring tells. Thread-safe: scrapes may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()

    def render(self, reading: MonitoringReading, objectives: Mapping[VersionKey, Objective]) -> list[Metric]:
        """All families of one reading. `objectives`: of versions that have one."""
        with self._lock:
            families = [*_drift(reading.versions), *self._counters(reading)]
            families += _quality([(each, each.quality) for each in reading.versions if each.quality is not None])
            families.append(_objectives(objectives))
            families.append(GaugeMetricFamily("podium_monitor_lag_seconds", "Age of what waits", value=reading.lag_s))
            if reading.sampling is not None:
                families += self._sampling(reading.sampling)
            return families

    def _counters(self, reading: MonitoringReading) -> Iterator[Metric]:
        alarms = CounterMetricFamily("podium_drift_alarms", "Alarms that were raised", labels=_ARM)
        late = CounterMetricFamily("podium_drift_late_rows", "Rows that came after their window", labels=_ARM)
        misdated = CounterMetricFamily("podium_drift_misdated_rows", "Rows of a time that cannot be", labels=_ARM)
        outcomes = CounterMetricFamily("podium_outcomes", "Outcomes that were reported", labels=(*_ARM, "status"))
        for version in reading.versions:
            labels = _labels(version)
            for family, count in ((alarms, version.alarms), (late, version.late_rows), (misdated, version.misdated_rows)):
                family.add_metric(labels, self._totals((family.name, *labels), count))
            for status, count in sorted(version.quality.outcomes.items()) if version.quality is not None else ():
                outcomes.add_metric((*labels, status), self._totals(("outcome", *labels, status), count))
        events = CounterMetricFamily("podium_retrain_events", "Retrain events", labels=("model", "reason", "result"))
        for event, count in sorted(reading.events.items()):
            events.add_metric(event, self._totals(("event", *event), count))
        yield from (alarms, late, misdated, outcomes, events)

    def _sampling(self, reading: SamplingReading) -> Iterator[Metric]:
        rows = CounterMetricFamily("podium_sampled_rows", "Rows that were chosen", labels=_ARM)
        rates = GaugeMetricFamily("podium_sample_inclusion_probability", "With which a row is chosen", labels=_ARM)
        for (key, arm), count in sorted(reading.offered.items()):
            labels = (key.model, str(key.version), arm)
            rows.add_metric(labels, self._totals(("sampled", *labels), count))
        for (key, arm), rate in sorted(reading.rates.items()):
            rates.add_metric((key.model, str(key.version), arm), rate)
        dropped = CounterMetricFamily("podium_sample_dropped", "Chosen rows that were lost", labels=("sink", "reason"))
        for (sink, reason), count in sorted(reading.dropped.items()):
            dropped.add_metric((sink, reason), self._totals(("dropped", sink, reason), count))
        written = CounterMetricFamily("podium_sample_written", "Chosen rows that a sink has", labels=("sink",))
        for sink, count in sorted(reading.written.items()):
            written.add_metric((sink,), self._totals(("written", sink), count))
        waiting = GaugeMetricFamily("podium_sample_waiting_rows", "Chosen rows that wait for a sink", labels=("sink",))
        for sink, count in sorted(reading.waiting.items()):
            waiting.add_metric((sink,), count)
        yield from (rows, rates, dropped, written, waiting)


def invalid_family(counts: Iterable[tuple[VersionKey, InvalidRows]]) -> Metric:
    """Rows that broke a constraint, by version, and by input, constraint and action."""
    labels = ("model", "version", "input", "constraint", "action")
    family = CounterMetricFamily("podium_invalid_inputs", "Rows whose inputs broke a constraint", labels=labels)
    for key, rows in counts:
        for name, count in sorted(rows.items()):
            family.add_metric((key.model, str(key.version), *name), count)
    return family


def _labels(version: VersionReading) -> tuple[str, str, str]:
    return version.key.model, str(version.key.version), version.arm


def _drift(versions: Sequence[VersionReading]) -> Iterator[Metric]:
    states = GaugeMetricFamily("podium_drift_state", "1 for the state it is in", labels=(*_ARM, "state"))
    open_rows = GaugeMetricFamily("podium_drift_open_rows", "Rows that were not judged yet", labels=_ARM)
    learned = GaugeMetricFamily("podium_drift_learned_ratio", "How much of a baseline has been learnt", labels=_ARM)
    for version in versions:
        for state in STATES:
            states.add_metric((*_labels(version), state), version.state == state)
        open_rows.add_metric(_labels(version), version.open_rows)
        if version.state == "learning" and version.learning_rows:
            learned.add_metric(_labels(version), version.learned_rows / version.learning_rows)
    yield from (states, open_rows, learned)
    judged = [(_labels(version), version.windows[0]) for version in versions if version.windows]
    yield from _windows(judged)
    yield from _streams(judged)


_WINDOW: dict[str, tuple[str, Callable[[WindowVerdict], float]]] = {
    "podium_drift_window_rows": ("Rows of the last window", lambda window: window.rows),
    "podium_drift_window_seconds": ("Length of the last window", lambda window: (window.end_us - window.start_us) / _US_PER_S),
    "podium_drift_window_end_seconds": ("End of the last window since 1970", lambda window: window.end_us / _US_PER_S),
    "podium_drift_family_log": ("Evidence of all streams together", lambda window: window.log_family),
    "podium_drift_threshold_log": ("From where on that is an alarm", lambda window: window.log_threshold),
}


def _windows(judged: Sequence[tuple[tuple[str, str, str], WindowVerdict]]) -> Iterator[Metric]:
    for name, (meaning, value) in _WINDOW.items():
        family = GaugeMetricFamily(name, meaning, labels=_ARM)
        for labels, window in judged:
            family.add_metric(labels, value(window))
        yield family


def _streams(judged: Sequence[tuple[tuple[str, str, str], WindowVerdict]]) -> Iterator[Metric]:
    of_stream, of_check = (*_ARM, "stream"), (*_ARM, "stream", "check")
    psi = GaugeMetricFamily("podium_drift_psi_debiased", "Debiased PSI of the last window", labels=of_stream)
    p = GaugeMetricFamily("podium_drift_p_log10", "Logarithm of its p-value to base 10", labels=of_check)
    detector = GaugeMetricFamily("podium_drift_detector_log", "Evidence of one check", labels=of_check)
    left_out = GaugeMetricFamily("podium_drift_streams_left_out", "Streams without series of their own", labels=_ARM)
    rates = {check: GaugeMetricFamily(*about, labels=of_stream) for check, about in _RATES.items()}
    for labels, window in judged:
        shown = worst_streams(window.findings)
        left_out.add_metric(labels, max(len({each.stream for each in window.findings}) - len(shown), 0))
        for finding in window.findings:
            if finding.stream not in shown:
                continue
            stream = (*labels, finding.stream)
            p.add_metric((*stream, finding.check), math.log10(max(finding.p, _LEAST_P)))
            detector.add_metric((*stream, finding.check), finding.log_detector)
            if finding.check == "distribution":
                psi.add_metric(stream, finding.effect)
            elif finding.check in rates and finding.m:
                rates[finding.check].add_metric(stream, finding.window[1] / finding.m)
    yield from (psi, p, detector, left_out, *rates.values())


def worst_streams(findings: Iterable[Finding]) -> frozenset[str]:
    """The names of those with the most evidence in any check, at most `STREAM_SERIES`; the alphabet decides between equals."""
    most: dict[str, float] = {}
    for finding in findings:
        most[finding.stream] = max(most.get(finding.stream, -math.inf), finding.log_detector)
    return frozenset(sorted(most, key=lambda stream: (-most[stream], stream))[:STREAM_SERIES])


def _quality(versions: Sequence[tuple[VersionReading, QualityReading]]) -> Iterator[Metric]:
    of_metric = (*_ARM, "metric", "bound")
    coverage = GaugeMetricFamily("podium_label_coverage_ratio", "Share of predictions with an outcome", labels=_ARM)
    alarm = GaugeMetricFamily("podium_risk_alarm", "1 while the loss is worse than is tolerated", labels=_ARM)
    detector = GaugeMetricFamily("podium_risk_detector_log", "Evidence that it is", labels=_ARM)
    threshold = GaugeMetricFamily("podium_risk_threshold_log", "From where on that is an alarm", labels=_ARM)
    realised = GaugeMetricFamily("podium_realised_quality", "By outcomes, since it is served", labels=of_metric)
    recent = GaugeMetricFamily("podium_recent_quality", "By outcomes, of the last window that has any", labels=of_metric)
    estimated = GaugeMetricFamily("podium_estimated_quality", "By scores alone: an estimate", labels=of_metric)
    for version, quality in versions:
        labels = _labels(version)
        if quality.served:
            coverage.add_metric(labels, quality.labelled / quality.served)
        for family, metrics in ((realised, quality.realised), (recent, quality.recent), (estimated, quality.estimated)):
            for name, metric in sorted(metrics.items()):
                for bound, value in (("value", metric.value), ("low", metric.low), ("high", metric.high)):
                    family.add_metric((*labels, name, bound), value)
        if quality.risk is not None:
            alarm.add_metric(labels, quality.risk.alarm)
            detector.add_metric(labels, quality.risk.log_detector)
            threshold.add_metric(labels, quality.risk.log_threshold)
    yield from (coverage, alarm, detector, threshold, realised, recent, estimated)


def _objectives(objectives: Mapping[VersionKey, Objective]) -> Metric:
    labels = ("model", "version", "metric", "bound")
    family = GaugeMetricFamily("podium_quality_objective", "What the metric must reach", labels=labels)
    for key, objective in sorted(objectives.items()):
        family.add_metric((key.model, str(key.version), objective.metric, objective.bound), objective.value)
    return family
