"""Verdicts made by hand for tests: their numbers belong together, by scipy's distributions and none of the server's code."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.reading import MonitoringReading, SamplingReading, VersionReading
from server.monitoring.streams import Category, Layout, Numeric, Stream
from server.monitoring.verdict import (
    Check,
    DriftState,
    Finding,
    Metric,
    QualityReading,
    RiskReading,
    WindowVerdict,
)

KEY = VersionKey("ranker", 3)
HOUR_US = 3_600_000_000
START_US = 1_767_225_600_000_000
"""2026-01-01, midnight in UTC."""
TOLERATED = 0.0096
WINDOWS = 672
STREAMS: tuple[Stream, ...] = (
    Numeric("distance", "feature", (100.0, 200.0, 400.0), 1.0, 900.0, (1.5, 890.0), 200.0, 150.0),
    Category("carrier", "input", ("AA", "UA"), (17,)),
    Numeric("output:score", "output", (0.25, 0.5, 0.75), 0.0, 1.0, (0.01, 0.99), 0.5, 0.25),
)
BASELINE_COUNTS = {
    "distance": (5000, 5000, 5000, 5000),
    "carrier": (9000, 10_000, 1000, 0),
    "output:score": (5000, 5000, 5000, 5000),
}


def psi(baseline: Sequence[int], window: Sequence[int]) -> float:
    """With half a row added to every bin."""
    p = (np.array(baseline) + 0.5) / (sum(baseline) + 0.5 * len(baseline))
    q = (np.array(window) + 0.5) / (sum(window) + 0.5 * len(window))
    return float(((p - q) * np.log(p / q)).sum())


def e_value(p: float) -> float:
    p = min(max(p, 1e-300), 1 - 1e-9)
    if p > 0.999:
        # the first terms of the series at 1, where the formula loses its digits
        return 0.5 - math.log(p) / 6 + math.log(p) ** 2 / 24
    return (1 - p + p * math.log(p)) / (p * math.log(p) ** 2)


def numbers(stream: str, window: Sequence[int], before: float = -math.inf, alarmed: bool = False) -> Finding:
    """The distribution of a numeric stream against its baseline; `before`: its detector after the window before."""
    baseline = BASELINE_COUNTS[stream]
    n, m, bins = sum(baseline), sum(window), len(baseline)
    unit = 1 / n + 1 / m
    found = psi(baseline, window)
    statistic, noncentrality = found / unit, TOLERATED / unit
    p = float(stats.ncx2.sf(statistic, bins - 1, noncentrality))
    e = e_value(p)
    detector = math.log((1 + math.exp(before)) * e)
    return Finding(
        stream=stream,
        check="distribution",
        baseline=baseline,
        window=tuple(window),
        n=n,
        m=m,
        effect=found - (bins - 1) * unit,
        tolerated=TOLERATED,
        statistic=statistic,
        df=bins - 1,
        noncentrality=noncentrality,
        p=p,
        e=e,
        log_detector=detector,
        log_threshold=math.inf,  # see `weighted`
        alarm=alarmed,
        effects={"jensen_shannon": 0.25, "kolmogorov_smirnov": 0.5},
    )


def rate(stream: str, missing: int, rows: int, before: float = -math.inf, check: Check = "missing") -> Finding:
    """How many of a window's rows miss a stream (or what `check` says) that 20 of 20,020 missed in the baseline."""
    p = float(stats.binom.sf(missing - 1, rows, 0.01))
    e = e_value(p)
    return Finding(
        stream=stream,
        check=check,
        baseline=(20_000, 20),
        window=(rows - missing, missing),
        n=20_020,
        m=rows,
        effect=missing / rows - 20 / 20_020,
        tolerated=0.009,
        statistic=float(missing),
        df=0,
        noncentrality=0.0,
        p=p,
        e=e,
        log_detector=math.log((1 + math.exp(before)) * e),
        log_threshold=math.inf,  # see `weighted`
        alarm=False,
    )


def weighted(findings: Sequence[Finding]) -> list[Finding]:
    """With the thresholds that follow from what each has to say in the family: distributions have four fifths."""
    shapes = sum(each.check == "distribution" for each in findings)
    rates = len(findings) - shapes

    def weight(finding: Finding) -> float:
        if not shapes or not rates:
            return 1 / len(findings)
        return 0.8 / shapes if finding.check == "distribution" else 0.2 / rates

    return [replace(each, log_threshold=math.log(WINDOWS / weight(each))) for each in findings]


def verdict(number: int = 0, state: DriftState = DriftState.OK, findings: Sequence[Finding] | None = None) -> WindowVerdict:
    """The verdict of the hour of that number."""
    if findings is None:
        findings = (
            numbers("distance", (260, 250, 240, 250)),
            numbers("output:score", (250, 250, 250, 250)),
            rate("distance", 2, 1002),
        )
    findings = weighted(findings)
    mean = sum(math.exp(each.log_detector - each.log_threshold) * WINDOWS for each in findings)
    alarmed = tuple(f"{each.stream}:{each.check}" for each in findings if each.alarm)
    return WindowVerdict(
        key=KEY,
        arm="champion",
        start_us=START_US + number * HOUR_US,
        end_us=START_US + (number + 1) * HOUR_US,
        rows=1002,
        offered=1010,
        dropped=8,
        state=state,
        findings=tuple(findings),
        log_family=math.log(mean) if mean else -math.inf,
        log_threshold=math.log(WINDOWS),
        detectors=len(findings),
        baseline_digest="b" * 64,
        baseline_origin="registration",
        edges_digest="e" * 64,
        reference="all",
        tolerance=0.1,
        alarmed=alarmed,
    )


def alarming(number: int = 1) -> WindowVerdict:
    """The distribution of `distance` has moved up: its first bin lost, its last gained."""
    moved = numbers("distance", (100, 200, 300, 400), alarmed=True)
    return verdict(number, DriftState.ALARM, (moved, numbers("output:score", (245, 250, 255, 250)), rate("distance", 1, 1002)))


def baseline() -> Baseline:
    """20,000 rows of a uniform distance, mostly two carriers, and a uniform score."""
    layout = Layout(STREAMS)
    counts = layout.empty()
    for index, stream in enumerate(STREAMS):
        layout.cells(counts, index).bins[:] = BASELINE_COUNTS[stream.name][: stream.bins]
    quality = ReferenceQuality("binary", 20_000, {"auc": 0.81, "log_loss": 0.42}, 0.42, 0.43, 20_000)
    return Baseline(STREAMS, counts, 20_000, quality=quality, digest="b" * 64)


def quality(alarm: bool = False) -> QualityReading:
    """Realised, recent and estimated figures, with the loss watched."""
    return QualityReading(
        key=KEY,
        arm="champion",
        outcomes={"accepted": 400, "duplicate": 3, "late": 2},
        served=800,
        labelled=400,
        realised={"auc": Metric(0.79, 0.71, 0.86, 400), "log_loss": Metric(0.44, 0.39, 0.5, 400)},
        recent={"auc": Metric(0.77, 0.6, 0.9, 60)},
        recent_start_us=START_US,
        estimated={"auc": Metric(0.8, 0.8, 0.8, 1000)},
        risk=RiskReading(0.47, 0.44, 0.45, 400, 7.5 if alarm else 1.25, math.log(WINDOWS), alarm),
    )


def version(
    *windows: WindowVerdict, state: DriftState | None = None, key: VersionKey = KEY, arm: str = "champion"
) -> VersionReading:
    """A version with these windows, the newest first."""
    return VersionReading(
        key=key,
        arm=arm,
        state=state or (windows[0].state if windows else DriftState.NO_DATA),
        baseline=baseline(),
        windows=tuple(replace(each, key=key, arm=arm) for each in windows),
        open_rows=17,
        learned_rows=0,
        learning_rows=20_000,
        late_rows=5,
        misdated_rows=2,
        alarms=4,
        last_alarm=replace(alarming(1), key=key, arm=arm),
        quality=replace(quality(), key=key, arm=arm),
    )


def sampling(offered: int = 1010, dropped: Mapping[tuple[str, str], int] | None = None) -> SamplingReading:
    return SamplingReading(
        offered={(KEY, "champion"): offered},
        rates={(KEY, "champion"): 0.05},
        dropped=dropped if dropped is not None else {("process", "full"): 8},
        written={"process": 1002},
        waiting={"process": 3},
    )


def reading(*versions: VersionReading, offered: int = 1010) -> MonitoringReading:
    """Everything, with these versions; without any, with one that alarms."""
    return MonitoringReading(
        versions=versions or (version(alarming(1), verdict(0)),),
        sampling=sampling(offered),
        lag_s=1.5,
        events={("ranker", "drift", "delivered"): 2},
    )


def every_family() -> MonitoringReading:
    """A reading in which every family of metrics has a sample."""
    checks: tuple[Check, ...] = ("missing", "unseen", "out_of_range", "non_finite")
    all_checks = (numbers("distance", (260, 250, 240, 250)), *(rate("distance", 2, 1002, check=check) for check in checks))
    learning = version(state=DriftState.LEARNING, arm="shadow")
    return reading(version(verdict(0, findings=all_checks)), replace(learning, learned_rows=5000))
