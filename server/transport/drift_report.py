"""What monitoring tells of itself, as the message of `GetDrift`.

Floor 6. A report has every number that a verdict was found by, so that whoever reads it can find the verdict again; what it
leaves out it counts. `drift_reading` is the way back.
"""

from collections.abc import Mapping, Sequence

from protos import monitoring_pb2 as pb
from server.core.errors import InvalidRequest, NotFound
from server.monitoring.baseline import Baseline
from server.monitoring.reading import KEPT_WINDOWS, MonitoringReading, VersionReading
from server.monitoring.streams import Numeric
from server.monitoring.verdict import Finding, Metric, QualityReading, WindowVerdict

MAX_REPORT_BYTES = 16 * 2**20
"""A report stops at the window that would make it larger. A window of 100 features has about 100 kB; every version's last
window is there whatever its size."""


def report_of(reading: MonitoringReading, model: str, version: str, windows: int) -> pb.DriftReport:
    """The last `windows` verdicts of a model's versions and arms, the last first; 0: one. `version` "": all that are monitored.

    Raises: NotFound for what is not monitored; InvalidRequest for a version that is no number, for more windows than are kept.
    """
    if windows > KEPT_WINDOWS:
        raise InvalidRequest(f"{windows} windows were asked for; the last {KEPT_WINDOWS} are kept")
    found = [each for each in reading.versions if each.key.model == model]
    if version:
        number = _number(version)
        found = [each for each in found if each.key.version == number]
    if not found:
        what = f"version {version} of model '{model}'" if version else f"model '{model}'"
        raise NotFound(f"{what} is not monitored")
    report = pb.DriftReport(versions=[_version(each) for each in found])
    _fill(report, found, max(windows, 1))
    return report


def _number(version: str) -> int:
    if not (version.isascii() and version.isdecimal()) or int(version) == 0:
        raise InvalidRequest(f"a version is a number from 1 on, not '{version}'")
    return int(version)


def _fill(report: pb.DriftReport, found: Sequence[VersionReading], windows: int) -> None:
    """Add windows from the last back, of all versions alike, until the report is full."""
    size, full = report.ByteSize(), False
    for back in range(windows):
        for target, source in zip(report.versions, found, strict=True):
            if back >= len(source.windows):
                continue
            window = _window(source.windows[back]) if not full else None
            # its tag and its length take a few bytes more
            size += window.ByteSize() + 8 if window is not None else 0
            full = full or (back > 0 and size > MAX_REPORT_BYTES)
            if full or window is None:
                target.windows_left_out += 1
            else:
                target.windows.append(window)


def _version(reading: VersionReading) -> pb.VersionDrift:
    return pb.VersionDrift(
        model_name=reading.key.model,
        model_version=str(reading.key.version),
        arm=reading.arm,
        state=reading.state,
        learned_rows=reading.learned_rows,
        learning_rows=reading.learning_rows,
        quality=None if reading.quality is None else _quality(reading.quality),
        open_rows=reading.open_rows,
        alarms=reading.alarms,
        last_alarm=None if reading.last_alarm is None else _window(reading.last_alarm),
        late_rows=reading.late_rows,
        misdated_rows=reading.misdated_rows,
        streams=[] if reading.baseline is None else _streams(reading.baseline),
    )


def _streams(baseline: Baseline) -> list[pb.Stream]:
    return [
        pb.Stream(name=stream.name, origin=stream.origin, edges=stream.edges, low=stream.low, high=stream.high)
        if isinstance(stream, Numeric)
        else pb.Stream(name=stream.name, origin=stream.origin, vocabulary=stream.vocabulary)
        for stream in baseline.streams
    ]


def _window(verdict: WindowVerdict) -> pb.Window:
    return pb.Window(
        start_us=verdict.start_us,
        end_us=verdict.end_us,
        rows=verdict.rows,
        offered=verdict.offered,
        dropped=verdict.dropped,
        state=verdict.state,
        log_family=verdict.log_family,
        log_threshold=verdict.log_threshold,
        detectors=verdict.detectors,
        baseline_digest=verdict.baseline_digest,
        baseline_origin=verdict.baseline_origin,
        edges_digest=verdict.edges_digest,
        reference=verdict.reference,
        tolerance=verdict.tolerance,
        alarmed=verdict.alarmed,
        findings=[_finding(each) for each in verdict.findings],
    )


def _finding(finding: Finding) -> pb.Finding:
    return pb.Finding(
        stream=finding.stream,
        check=finding.check,
        baseline=finding.baseline,
        window=finding.window,
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
        effects=finding.effects,
    )


def _quality(quality: QualityReading) -> pb.Quality:
    risk = quality.risk
    return pb.Quality(
        outcomes={str(status): count for status, count in quality.outcomes.items()},
        served=quality.served,
        labelled=quality.labelled,
        realised=_metrics(quality.realised),
        recent=_metrics(quality.recent),
        recent_start_us=quality.recent_start_us,
        estimated=_metrics(quality.estimated),
        risk=None
        if risk is None
        else pb.Risk(
            loss_mean=risk.loss_mean,
            loss_low=risk.loss_low,
            bound=risk.bound,
            rows=risk.rows,
            log_detector=risk.log_detector,
            log_threshold=risk.log_threshold,
            alarm=risk.alarm,
        ),
    )


def _metrics(metrics: Mapping[str, Metric]) -> dict[str, pb.Metric]:
    return {name: pb.Metric(value=one.value, low=one.low, high=one.high, rows=one.rows) for name, one in metrics.items()}
