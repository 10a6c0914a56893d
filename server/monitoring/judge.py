"""One window's counts against a baseline's: findings, detectors, a verdict. **Pure.**

Floor 4. Every check of every stream has a p-value against a shift that is tolerated, an e-value made of it, and a
Shiryaev-Roberts detector. The mean of all K detectors is the family's; an alarm is raised when it reaches A,
`alarm_every_windows`: without a shift beyond the tolerated one, A windows pass on average before the first. One detector
reaches that alone at A * K.

An alarm names the largest detectors, as few as leave the mean of the others below A, and these begin anew: so the next window
does not repeat it for what has been said. The alarm lasts, as a state, while any check that it named finds more evidence for a
harmful shift than against one (e > 1); it is raised again, and counted again, only by a detector that has reached A * K anew.

A check without enough to go by is not made: p = 1, e = 1, and its detector stays. (A detector that is fed e = 1 grows by one a
window, and would raise an alarm about nothing after A of them.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import log, sqrt
from typing import Literal

import numpy as np

from server.core.monitoring_settings import ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import edges_digest
from server.monitoring.build import reference as compared_with
from server.monitoring.streams import SUM_SCALE, Category, Cells, Counts, Numeric, Stream
from server.monitoring.verdict import Check, DriftState, Finding, WindowVerdict
from server.monitoring.windows import Closed
from server.statistics.detector import EMPTY, e_value, family, step
from server.statistics.distances import jensen_shannon, kolmogorov_smirnov, psi, psi_bias, wasserstein
from server.statistics.evidence import Evidence, homogeneity_evidence, psi_evidence, rate_evidence, tolerated_psi

LEAST_EXPECTED = 5
"""Rows that a bin must be expected to have, in the window and in the reference: below, the chi-square law does not hold."""
REFERENCE_SHARE = {"all": 20, "hours_of_week": 1}
"""The reference is a sample too. By its error alone, of n rows in B bins, windows without any shift keep a PSI of (B - 1) / n
on average. What is tolerated is at least so many times that: 20 times where every window meets the same error, which a detector
would add up; once where an hour's error is met again only after a week."""
DEGRADED_ABOVE = 0.01
"""Share of the chosen rows of a window that may be lost."""


@dataclass(frozen=True, slots=True)
class Place:
    """One check of one stream: the `index`-th of the layout."""

    index: int
    stream: Stream
    check: Check

    def __str__(self) -> str:
        return f"{self.stream.name}:{self.check}"


@dataclass(frozen=True, slots=True)
class Detectors:
    """What is remembered between windows. `logs`: of each check, in the order of `Reference.places`; `lasting`: the places of
    checks that the last alarm named, while it lasts.
    """

    logs: tuple[float, ...]
    lasting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reference:
    """A baseline and what is tolerated: everything that windows are judged by."""

    baseline: Baseline
    tolerance: float
    alarm_every_windows: int

    @classmethod
    def of(cls, baseline: Baseline, settings: ModelMonitoring) -> "Reference":
        """By a model's settings."""
        return cls(baseline, settings.tolerance, settings.alarm_every_windows)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """All checks. A stream that has less than two bins with rows in the baseline has no distribution to compare."""
        made = []
        for index, stream in self.baseline.layout:
            bins = self.baseline.layout.cells(self.baseline.counts, index).bins
            if len(pools(bins, int(bins.sum()))) > 1:
                made.append(Place(index, stream, "distribution"))
            rates: tuple[Check, ...] = ("missing", "out_of_range", "non_finite")
            made += [Place(index, stream, check) for check in (rates if isinstance(stream, Numeric) else ("missing", "unseen"))]
        return tuple(made)

    @cached_property
    def edges_digest(self) -> str:
        """SHA-256 of the frozen bins."""
        return edges_digest(self.baseline.layout)

    @property
    def log_family_threshold(self) -> float:
        """ln A."""
        return log(self.alarm_every_windows)

    @property
    def log_threshold(self) -> float:
        """ln(A * K): of one detector alone."""
        return log(self.alarm_every_windows * len(self.places))

    @property
    def fresh(self) -> Detectors:
        """Nothing has been judged."""
        return Detectors((EMPTY,) * len(self.places))


def judge(
    key: VersionKey, arm: str, window: Closed, reference: Reference, detectors: Detectors
) -> tuple[WindowVerdict, Detectors]:
    """The verdict on one window, and the detectors after it.

    A window without rows is NO_DATA, and leaves the detectors as they are.
    """
    findings: tuple[Finding, ...] = ()
    named: tuple[int, ...] = ()
    log_family = family(detectors.logs)
    kind: Literal["all", "hours_of_week"] = "all"
    state, after = DriftState.NO_DATA, detectors
    if window.counts is not None:
        counts, kind = compared_with(reference.baseline, window.start_us, window.end_us)
        findings = tuple(_findings(reference, counts, REFERENCE_SHARE[kind], window.counts, detectors))
        logs = [finding.log_detector for finding in findings]
        log_family = family(logs)
        named = _named(logs, reference.log_family_threshold)
        lasting = tuple(place for place in detectors.lasting if findings[place].e > 1)
        after = Detectors(tuple(EMPTY if place in named else each for place, each in enumerate(logs)), named or lasting)
        degraded = window.dropped > DEGRADED_ABOVE * window.offered
        calm = DriftState.DEGRADED if degraded else DriftState.OK
        state = DriftState.ALARM if after.lasting else calm
    verdict = WindowVerdict(
        key=key,
        arm=arm,
        start_us=window.start_us,
        end_us=window.end_us,
        rows=window.rows,
        offered=window.offered,
        dropped=window.dropped,
        state=state,
        findings=findings,
        log_family=log_family,
        log_threshold=reference.log_family_threshold,
        detectors=len(reference.places),
        baseline_digest=reference.baseline.digest,
        baseline_origin=reference.baseline.origin,
        edges_digest=reference.edges_digest,
        reference=kind,
        alarmed=tuple(str(reference.places[place]) for place in named),
    )
    return verdict, after


def pools(expected: Counts, rows: int) -> list[int]:
    """Neighbouring bins put together until each has enough to go by: the first bin of each pool; empty where there is none.

    Shapes: `expected` `[B]`, the reference's counts; `rows`: of the window. The last pool has what remains. Which bins are put
    together depends on the window by its number of rows only, never by where they are: the law of what is tested stays.

    >>> pools(np.array([50, 3, 2, 20, 4]), 100)
    [0, 1, 3]
    """
    total = int(expected.sum())
    weight, starts, begin, held = min(total, rows), [], 0, 0
    for place, count in enumerate(expected.tolist(), 1):
        held += count
        if held * weight >= LEAST_EXPECTED * total > 0:
            starts.append(begin)
            begin, held = place, 0
    return starts


def _named(logs: list[float], log_threshold: float) -> tuple[int, ...]:
    """The largest detectors, as few as leave the family below its threshold."""
    left, named = list(logs), []
    for place in sorted(range(len(logs)), key=lambda place: (-logs[place], place)):
        if family(left) < log_threshold:
            break
        left[place] = EMPTY
        named.append(place)
    return tuple(named)


@dataclass(frozen=True, slots=True)
class _Compared:
    """What was compared, before it meets its detector."""

    baseline: tuple[int, ...]
    window: tuple[int, ...]
    n: int
    m: int
    effect: float = 0.0
    tolerated: float = 0.0
    evidence: Evidence | None = None
    effects: Mapping[str, float] = field(default_factory=dict)


def _findings(reference: Reference, counts: Counts, share: int, window: Counts, detectors: Detectors) -> Iterator[Finding]:
    layout, threshold = reference.baseline.layout, reference.log_threshold
    for place, before in zip(reference.places, detectors.logs, strict=True):
        own, now = layout.cells(counts, place.index), layout.cells(window, place.index)
        compared = (
            _distribution(place.stream, own, now, reference.tolerance, share)
            if place.check == "distribution"
            else _rate(place.check, own, now, reference.tolerance)
        )
        evidence = compared.evidence or Evidence(0.0, 0, 0.0, 1.0)
        e = 1.0 if compared.evidence is None else e_value(evidence.p)
        after = before if compared.evidence is None else step(before, e)
        yield Finding(
            stream=place.stream.name,
            check=place.check,
            baseline=compared.baseline,
            window=compared.window,
            n=compared.n,
            m=compared.m,
            effect=compared.effect,
            tolerated=compared.tolerated,
            statistic=evidence.statistic,
            df=evidence.df,
            noncentrality=evidence.noncentrality,
            p=evidence.p,
            e=e,
            log_detector=after,
            log_threshold=threshold,
            alarm=after >= threshold,
            effects=compared.effects,
        )


def _distribution(stream: Stream, own: Cells, now: Cells, tolerance: float, share: int) -> _Compared:
    if isinstance(stream, Category):
        return _categories(own, now, tolerance, share)
    compared = _Compared(_ints(own.bins), _ints(now.bins), own.present, now.present)
    starts = pools(own.bins, now.present)
    if len(starts) < 2:
        return compared
    n, m, size = compared.n, compared.m, len(starts)
    whole = size == len(own.bins)
    before, after = (own.bins, now.bins) if whole else (np.add.reduceat(each.bins, starts) for each in (own, now))
    distance, tolerated = psi(before, after), _tolerated(tolerance, share * (size - 1) / n)
    return replace(
        compared,
        effect=distance - psi_bias(size, n, m),
        tolerated=tolerated,
        evidence=psi_evidence(distance, size, n, m, tolerated),
        effects=_numeric_effects(own, now),
    )


def _categories(own: Cells, now: Cells, tolerance: float, share: int) -> _Compared:
    before, after = np.append(own.bins, own.unseen), np.append(now.bins, now.unseen)
    compared = _Compared(_ints(before), _ints(after), own.present, now.present)
    if not (compared.n and compared.m):
        return compared
    n, m = compared.n, compared.m
    # what is tolerated depends on how many categories are left once rare ones count as one
    df = homogeneity_evidence(before, after, 0.0).df
    if df == 0:
        return compared
    tolerated = _tolerated(tolerance, share * df / n)
    return replace(
        compared,
        effect=psi(before, after) - psi_bias(int(np.count_nonzero(before + after)), n, m),
        tolerated=tolerated,
        evidence=homogeneity_evidence(before, after, tolerated),
        effects={
            "jensen_shannon": jensen_shannon(before, after),
            "largest_difference": float(np.abs(before / n - after / m).max()),
        },
    )


def _tolerated(tolerance: float, least: float) -> float:
    return max(tolerated_psi(tolerance), least)


def _numeric_effects(own: Cells, now: Cells) -> dict[str, float]:
    """Units: of all but the divergence and the KS distance the stream's scale. The deviation is that between bins."""
    means, deviations = [], []
    for cells in (own, now):
        total = cells.present
        mean = int(cells.sums.sum()) / total
        filled = cells.bins > 0
        squares = float(np.dot(cells.sums[filled] / cells.bins[filled], cells.sums[filled])) / total
        means.append(mean / SUM_SCALE)
        deviations.append(sqrt(max(squares - mean * mean, 0.0)) / SUM_SCALE)
    return {
        "jensen_shannon": jensen_shannon(own.bins, now.bins),
        "kolmogorov_smirnov": kolmogorov_smirnov(own.bins, now.bins),
        "wasserstein": wasserstein(own.bins, now.bins, own.sums, now.sums),
        "mean_difference": means[1] - means[0],
        "deviation_difference": deviations[1] - deviations[0],
    }


def _rate(check: Check, own: Cells, now: Cells, tolerance: float) -> _Compared:
    (meant, n), (found, m) = _meant(check, own), _meant(check, now)
    compared = _Compared((n - meant, meant), (m - found, found), n, m)
    if not (n and m):
        return compared
    evidence = rate_evidence(meant, n, found, m, tolerance)
    usual = (meant + 0.5) / (n + 1)
    return replace(
        compared,
        effect=found / m - meant / n,
        tolerated=tolerance * sqrt(usual * (1 - usual)),
        evidence=evidence,
    )


def _meant(check: Check, cells: Cells) -> tuple[int, int]:
    """How many values a rate is about, and of how many."""
    if check == "missing":
        return cells.missing, cells.rows
    if check == "non_finite":
        return cells.non_finite, cells.rows
    return (cells.unseen if check == "unseen" else cells.below + cells.above), cells.present


def _ints(counts: Counts) -> tuple[int, ...]:
    return tuple(counts.tolist())
