"""A report as a person reads it in a terminal. **Pure.**

Floor 7, for `podium drift`: the state in words first, then what is worst, then quality. Numbers are rounded here alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from server.commands.drift_moved import moved, plain
from server.monitoring.reading import VersionReading
from server.monitoring.verdict import DriftState, Finding, Metric, QualityReading, RiskReading, WindowVerdict
from server.transport.drift_reading import ReportedVersion

WORST = 10
"""Checks that are shown where nobody asked for all."""
_HEAD = ("STREAM", "CHECK", "EFFECT", "TOLERATED", "N", "M", "P", "E", "DETECTOR", "ALARM FROM")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BASELINES = {"all": "all of it", "hours_of_week": "its same hours of the week"}


def lines(version: ReportedVersion, every: bool) -> Iterator[str]:
    """Everything about one version. `every`: all checks, not only the worst."""
    reading = version.reading
    yield f"{plain(reading.key.model)}:{reading.key.version}  {plain(reading.arm)}  {reading.state.value}"
    yield f"  {in_words(reading)}"
    if reading.windows:
        yield from _window(version, reading.windows[0], every)
    yield (
        f"  {reading.open_rows:,} rows in windows that are not judged yet; {reading.late_rows:,} came too late for theirs,"
        f" {reading.misdated_rows:,} claim a time that cannot be"
    )
    if reading.last_alarm is not None:
        when, what = minute(reading.last_alarm.start_us), ", ".join(map(plain, reading.last_alarm.alarmed))
        yield f"  {reading.alarms:,} alarms so far, the last by the window of {when} UTC: {what}"
    if len(reading.windows) > 1:
        yield from _history(reading.windows)
    if version.windows_left_out:
        yield f"  {version.windows_left_out} older windows did not fit into the answer: ask for one version alone"
    if reading.quality is not None:
        yield from _quality(reading.quality)


def in_words(reading: VersionReading) -> str:
    """What its state means."""
    if reading.state == DriftState.NO_DATA:
        return "no data: no sampled rows came in the last window, which is neither good nor bad"
    if reading.state == DriftState.LEARNING:
        return (
            f"learning: it has no baseline yet, and learns one from what it serves; {reading.learned_rows:,} of"
            f" {reading.learning_rows:,} rows so far. Nothing is judged until then"
        )
    if reading.state == DriftState.DEGRADED:
        return "degraded: so many of the chosen rows were lost that the verdict below may be of the wrong ones"
    if reading.state == DriftState.ALARM:
        return "alarm: further from its baseline than is tolerated, and not by chance; it lasts until what it named is calm"
    return "ok: no further from its baseline than is tolerated, or than chance explains"


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Alarms, then what has the most evidence; the larger effect decides between equals."""
    return sorted(findings, key=lambda one: (not one.alarm, -one.log_detector, -one.effect, one.stream, one.check))


def minute(time_us: int) -> str:
    """A time, to the minute."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%d %H:%M")


def table(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Rows with the first `left` columns to the left, and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            f"{cell:<{width}}" if index < left else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"  {'  '.join(cells)}".rstrip()


def _window(version: ReportedVersion, window: WindowVerdict, every: bool) -> Iterator[str]:
    lost = f"{window.dropped / window.offered:.1%}" if window.offered else "none"
    yield f"  window   {minute(window.start_us)} to {minute(window.end_us)} UTC, {window.rows:,} rows"
    yield f"  samples  {window.offered:,} rows were chosen, {window.dropped:,} of them lost ({lost})"
    sign = ">=" if window.log_family >= window.log_threshold else "<"
    yield (
        f"  family   {window.log_family:.3f} {sign} {window.log_threshold:.3f}"
        f" (logarithm of the weighted mean of {window.detectors} detectors, and from where on that is an alarm)"
    )
    yield (
        f"  baseline {window.baseline_digest[:12] or '-'} of {window.baseline_origin}, {_BASELINES[window.reference]};"
        f" edges {window.edges_digest[:12] or '-'}"
    )
    alarms = frozenset(window.alarmed)
    order = worst_first(window.findings)
    for finding in order:
        if finding.alarm or f"{finding.stream}:{finding.check}" in alarms:
            told = moved(finding, version.streams.get(finding.stream))
            yield f"  ALARM    {plain(finding.stream)}, {finding.check}: {told}"
    shown = order if every else order[:WORST]
    if shown:
        yield from table([_HEAD, *map(_cells, shown)], left=2)
    if len(shown) < len(order):
        yield f"  … and {len(order) - len(shown)} checks with less evidence: --all"


def _cells(finding: Finding) -> tuple[str, ...]:
    return (
        plain(finding.stream),
        finding.check,
        f"{finding.effect:.4g}",
        f"{finding.tolerated:.4g}",
        str(finding.n),
        str(finding.m),
        f"{finding.p:.3g}",
        f"{finding.e:.3g}",
        f"{finding.log_detector:.3f}",
        f"{finding.log_threshold:.3f}",
    )


def _history(windows: Sequence[WindowVerdict]) -> Iterator[str]:
    rows = [
        (
            minute(window.start_us),
            window.state.value,
            ", ".join(map(plain, window.alarmed)) or "-",
            str(window.rows),
            str(window.dropped),
            f"{window.log_family:.3f}",
            f"{window.log_threshold:.3f}",
        )
        for window in windows
    ]
    yield from table([("WINDOW", "STATE", "ALARMED", "ROWS", "LOST", "FAMILY", "ALARM FROM"), *rows], left=3)


def _quality(quality: QualityReading) -> Iterator[str]:
    share = f" ({quality.labelled / quality.served:.1%})" if quality.served else ""
    counts = ", ".join(f"{status} {count:,}" for status, count in sorted(quality.outcomes.items())) or "none came"
    yield f"  outcomes {quality.labelled:,} of {quality.served:,} predictions have one{share}; {counts}"
    yield from _metrics("realised", quality.realised)
    yield from _metrics(f"realised, window of {minute(quality.recent_start_us)}", quality.recent)
    yield from _metrics("ESTIMATE from scores alone, which cannot see that the world has changed", quality.estimated)
    if quality.risk is not None:
        yield f"  risk     {_risk(quality.risk)}"


def _metrics(what: str, metrics: Mapping[str, Metric]) -> Iterator[str]:
    if metrics:
        told = (
            f"{plain(name)} {one.value:.4g} ({one.low:.4g} to {one.high:.4g}, {one.rows:,} rows)"
            for name, one in metrics.items()
        )
        yield f"  {what}: {'; '.join(sorted(told))}"


def _risk(risk: RiskReading) -> str:
    sign = ">=" if risk.log_detector >= risk.log_threshold else "<"
    verdict = "ALARM: it does harm" if risk.alarm else "no harm is proven"
    return (
        f"{verdict}; mean loss {risk.loss_mean:.4g}, at least {risk.loss_low:.4g}, tolerated up to {risk.bound:.4g},"
        f" of {risk.rows:,} rows; detector {risk.log_detector:.3f} {sign} {risk.log_threshold:.3f}"
    )
