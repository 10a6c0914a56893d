"""A verdict found again from the counts that it was told with, and compared number by number. **Pure.**

Floor 7, for `podium drift --recompute`. It goes the way that a person would go by hand (docs/MONITORING.md): from counts to
effect, statistic, p, e and detector, by `server.statistics` alone and none of the state that a monitor keeps.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from server.commands.drift_moved import plain
from server.commands.drift_text import minute
from server.monitoring.checks import pools
from server.monitoring.verdict import Finding, WindowVerdict
from server.statistics.detector import EMPTY, e_value, family, step
from server.statistics.distances import psi, psi_bias
from server.statistics.evidence import Evidence, homogeneity_evidence, psi_evidence, rate_evidence
from server.transport.drift_reading import ReportedVersion, StreamBins

RELATIVE = 1e-9
"""Numbers that are found by the same steps on another machine may differ in their last digits."""
_ABSOLUTE: Mapping[str, float] = {"effect": 1e-12, "tolerated": 1e-12, "log_detector": 1e-9, "log_family": 1e-9}
"""Beside that, for numbers that are differences of larger ones, or may be 0. A p has none: it may be as small as it likes."""


class Difference(NamedTuple):
    """A number that came out otherwise. `subject`: the stream and check, or the family."""

    window_us: int
    subject: str
    number: str
    told: float
    found: float


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What came out otherwise, of one version and arm."""

    name: str
    differences: tuple[Difference, ...]

    def lines(self) -> Iterator[str]:
        """For a person."""
        for one in self.differences:
            yield (
                f"{plain(self.name)} {minute(one.window_us)} {plain(one.subject)}: {one.number} was told as {one.told!r},"
                f" and comes out as {one.found!r}"
            )


class _Numbers(NamedTuple):
    """`made` False: there was too little to go by, and the detector stays as it was."""

    n: float
    m: float
    effect: float
    tolerated: float
    statistic: float
    df: float
    noncentrality: float
    p: float
    e: float
    made: bool


def recompute(version: ReportedVersion) -> Recomputed:
    """Every finding of every window, and where the window before is told as well, the detectors that follow from it."""
    reading = version.reading
    differences: list[Difference] = []
    for place, window in enumerate(reading.windows):
        before = _before(reading.windows[place + 1 :], window)
        for finding in window.findings:
            differences += _compare(window, finding, version.streams.get(finding.stream), before)
        # of older windows a monitor keeps only what alarms named
        if window.findings and len(window.findings) == window.detectors:
            # a detector's weight is in the threshold that it has by itself
            weights = [math.exp(window.log_threshold - finding.log_threshold) for finding in window.findings]
            found = family([finding.log_detector for finding in window.findings], weights)
            differences += _differing(window, "all checks together", {"log_family": (window.log_family, found)})
    return Recomputed(f"{reading.key.model}:{reading.key.version} {reading.arm}", tuple(differences))


def _compare(
    window: WindowVerdict, finding: Finding, stream: StreamBins | None, before: Mapping[str, float] | None
) -> list[Difference]:
    subject = f"{finding.stream}:{finding.check}"
    rate = finding.check != "distribution"
    found = _rate(finding, window.tolerance) if rate else _distribution(finding, stream)
    names = (name for name in _Numbers._fields if name != "made")
    pairs = {name: (float(getattr(finding, name)), float(getattr(found, name))) for name in names}
    if before is not None and subject in before:
        last = before[subject]
        pairs["log_detector"] = finding.log_detector, step(last, found.e) if found.made else last
    pairs["alarm"] = float(finding.alarm), float(finding.log_detector >= finding.log_threshold)
    return _differing(window, subject, pairs)


def _before(older: Sequence[WindowVerdict], window: WindowVerdict) -> Mapping[str, float] | None:
    """The detectors that a window began with, as far as they are told; None where none before it was judged alike."""
    for last in older:
        if not last.rows:
            continue  # without rows detectors stay as they are
        if (last.baseline_digest, last.edges_digest) != (window.baseline_digest, window.edges_digest):
            return None
        # what an alarm named begins anew
        named = frozenset(last.alarmed)
        subjects = ((f"{one.stream}:{one.check}", one.log_detector) for one in last.findings)
        return {subject: EMPTY if subject in named else log for subject, log in subjects}
    return None


def _distribution(finding: Finding, stream: StreamBins | None) -> _Numbers:
    before, after = np.array(finding.baseline, dtype=np.int64), np.array(finding.window, dtype=np.int64)
    n, m = int(before.sum()), int(after.sum())
    # the vocabulary, the others, and what is unseen
    if categories := stream is not None and len(finding.baseline) == len(stream.vocabulary) + 2:
        df = homogeneity_evidence(before, after, 0.0).df if n and m else 0
        bins = int(np.count_nonzero(before + after))
    else:
        starts = pools(before, m)
        df = bins = len(starts)
        df -= 1
        if 1 < bins < len(before):
            before, after = (np.add.reduceat(counts, starts) for counts in (before, after))
    if df < 1:
        return _nothing(n, m)
    distance, tolerated = psi(before, after), finding.tolerated
    evidence = homogeneity_evidence(before, after, tolerated) if categories else psi_evidence(distance, bins, n, m, tolerated)
    return _numbers(n, m, distance - psi_bias(bins, n, m), tolerated, evidence)


def _rate(finding: Finding, tolerance: float) -> _Numbers:
    known, found = finding.baseline[1], finding.window[1]
    n, m = sum(finding.baseline), sum(finding.window)
    if not (n and m):
        return _nothing(n, m)
    if 0 < known < n:
        # where the baseline's own windows differ by more, that is tolerated: what is told, in standard deviations of one row
        rate = known / n
        told = finding.tolerated / math.sqrt(rate * (1 - rate))
        tolerance = told if told > tolerance * (1 + RELATIVE) else tolerance
    evidence = rate_evidence(known, n, found, m, tolerance)
    return _numbers(n, m, found / m - known / n, evidence.noncentrality - known / n, evidence)


def _numbers(n: int, m: int, effect: float, tolerated: float, evidence: Evidence) -> _Numbers:
    statistic, df, noncentrality, p = evidence
    return _Numbers(n, m, effect, tolerated, statistic, df, noncentrality, p, e_value(p), made=True)


def _nothing(n: int, m: int) -> _Numbers:
    return _Numbers(n, m, 0.0, 0.0, 0.0, 0, 0.0, 1.0, 1.0, made=False)


def _differing(window: WindowVerdict, subject: str, pairs: Mapping[str, tuple[float, float]]) -> list[Difference]:
    return [
        Difference(window.start_us, subject, name, told, found)
        for name, (told, found) in pairs.items()
        if not _same(name, told, found)
    ]


def _same(name: str, told: float, found: float) -> bool:
    if math.isnan(told) or math.isnan(found):
        return math.isnan(told) and math.isnan(found)
    return math.isclose(told, found, rel_tol=RELATIVE, abs_tol=_ABSOLUTE.get(name, 0.0))
