"""A message of `GetDrift` as values: the way back from `drift_report`, for whoever asks a server.

Floor 6. What a report does not have (a baseline's own counts, the sampling of other models) is not made up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from protos import monitoring_pb2 as pb
from server.core.versions import VersionKey
from server.monitoring.reading import VersionReading
from server.monitoring.streams import Origin
from server.monitoring.verdict import Check, DriftState, Finding, Metric, QualityReading, RiskReading, WindowVerdict


@dataclass(frozen=True, slots=True)
class StreamBins:
    """How one stream is counted: as much of `Numeric` and `Category` as a report has.

    Shapes: `edges` `[B - 1]` of numbers, `vocabulary` `[B - 1]` of categories; of the other kind it is empty.
    """

    name: str
    origin: Origin
    edges: tuple[float, ...]
    low: float
    high: float
    vocabulary: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportedVersion:
    """A report's version. `reading` is without its baseline, of which a report has only `streams`, by name.

    `windows_left_out`: older windows that were asked for and did not fit into the report.
    """

    reading: VersionReading
    streams: Mapping[str, StreamBins]
    windows_left_out: int


def reading_from(report: pb.DriftReport) -> tuple[ReportedVersion, ...]:
    """What a report says. Raises: ValueError for one that no server of this kind wrote."""
    return tuple(_reported(each) for each in report.versions)


def _reported(version: pb.VersionDrift) -> ReportedVersion:
    key = VersionKey(version.model_name, int(version.model_version))
    quality = _quality_from(key, version.arm, version.quality) if version.HasField("quality") else None
    reading = VersionReading(
        key=key,
        arm=version.arm,
        state=DriftState(version.state),
        baseline=None,
        windows=tuple(_verdict_from(key, version.arm, each) for each in version.windows),
        open_rows=version.open_rows,
        learned_rows=version.learned_rows,
        learning_rows=version.learning_rows,
        late_rows=version.late_rows,
        misdated_rows=version.misdated_rows,
        alarms=version.alarms,
        last_alarm=_verdict_from(key, version.arm, version.last_alarm) if version.HasField("last_alarm") else None,
        quality=quality,
    )
    streams = {
        each.name: StreamBins(each.name, _origin(each.origin), tuple(each.edges), each.low, each.high, tuple(each.vocabulary))
        for each in version.streams
    }
    return ReportedVersion(reading, streams, version.windows_left_out)


def _origin(word: str) -> Origin:
    if word not in get_args(Origin):
        raise ValueError(f"'{word}' is no origin of a stream")
    return cast(Origin, word)


def _check(word: str) -> Check:
    if word not in get_args(Check):
        raise ValueError(f"'{word}' is no check of a stream")
    return cast(Check, word)


def _reference(word: str) -> Literal["all", "hours_of_week"]:
    if word == "all":
        return "all"
    if word == "hours_of_week":
        return "hours_of_week"
    raise ValueError(f"'{word}' is no part of a baseline")


def _verdict_from(key: VersionKey, arm: str, window: pb.Window) -> WindowVerdict:
    return WindowVerdict(
        key=key,
        arm=arm,
        start_us=window.start_us,
        end_us=window.end_us,
        rows=window.rows,
        offered=window.offered,
        dropped=window.dropped,
        state=DriftState(window.state),
        findings=tuple(_finding_from(each) for each in window.findings),
        log_family=window.log_family,
        log_threshold=window.log_threshold,
        detectors=window.detectors,
        baseline_digest=window.baseline_digest,
        baseline_origin=window.baseline_origin,
        edges_digest=window.edges_digest,
        reference=_reference(window.reference),
        tolerance=window.tolerance,
        alarmed=tuple(window.alarmed),
    )


def _finding_from(finding: pb.Finding) -> Finding:
    return Finding(
        stream=finding.stream,
        check=_check(finding.check),
        baseline=tuple(finding.baseline),
        window=tuple(finding.window),
        n=finding.n,
        m=finding.m,
        effect=finding.effect,
        tolerated=finding.tolerated,
        statistic=finding.statistic,
        df=finding.df,
        noncentrality=finding.noncentrality,
        p=finding.p,
        e=finding.e,
        log_detector=finding.log_detector,
        log_threshold=finding.log_threshold,
        alarm=finding.alarm,
        effects=dict(finding.effects),
    )


def _quality_from(key: VersionKey, arm: str, quality: pb.Quality) -> QualityReading:
    risk = quality.risk
    return QualityReading(
        key=key,
        arm=arm,
        outcomes=dict(quality.outcomes),
        served=quality.served,
        labelled=quality.labelled,
        realised=_metrics_from(quality.realised),
        recent=_metrics_from(quality.recent),
        recent_start_us=quality.recent_start_us,
        estimated=_metrics_from(quality.estimated),
        risk=RiskReading(
            risk.loss_mean, risk.loss_low, risk.bound, risk.rows, risk.log_detector, risk.log_threshold, risk.alarm
        )
        if quality.HasField("risk")
        else None,
    )


def _metrics_from(metrics: Mapping[str, pb.Metric]) -> dict[str, Metric]:
    return {name: Metric(one.value, one.low, one.high, one.rows) for name, one in metrics.items()}
