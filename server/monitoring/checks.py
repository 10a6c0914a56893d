"""The checks of one stream: its counts in a window against those of a baseline, with evidence and effects. **Pure.**

Floor 4, below `judge`. One distribution check for each stream, of which the PSI alone is judged and other distances are told
beside, and rates of what is in no bin, or should not be. How unlikely a difference is says `server.statistics.evidence`; here
it says of what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np

from server.monitoring.streams import SUM_SCALE, Category, Cells, Counts, Layout, Numeric, Stream
from server.monitoring.verdict import Check
from server.statistics.distances import jensen_shannon, kolmogorov_smirnov, psi, psi_bias, wasserstein
from server.statistics.evidence import Evidence, homogeneity_evidence, psi_evidence, rate_evidence, tolerated_psi
from server.statistics.supported import supported_psi

LEAST_EXPECTED = 5
"""Rows that a bin must be expected to have, in the window and in the reference: below, the chi-square law does not hold."""


@dataclass(frozen=True, slots=True)
class Place:
    """One check of one stream: the `index`-th of the layout."""

    index: int
    stream: Stream
    check: Check

    def __str__(self) -> str:
        return f"{self.stream.name}:{self.check}"


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared, before it meets its detector."""

    baseline: tuple[int, ...]
    window: tuple[int, ...]
    n: int
    m: int
    effect: float = 0.0
    tolerated: float = 0.0
    evidence: Evidence | None = None
    effects: Mapping[str, float] = field(default_factory=dict)


def places(layout: Layout, counts: Counts) -> tuple[Place, ...]:
    """All checks of a baseline. A stream that has less than two bins with rows in it has no distribution to compare."""
    made = []
    for index, stream in layout:
        bins = layout.cells(counts, index).bins
        if len(pools(bins, int(bins.sum()))) > 1:
            made.append(Place(index, stream, "distribution"))
        rates: tuple[Check, ...] = ("missing", "out_of_range", "non_finite")
        made += [Place(index, stream, check) for check in (rates if isinstance(stream, Numeric) else ("missing", "unseen"))]
    return tuple(made)


@dataclass(frozen=True, slots=True)
class Harmless:
    """What is tolerated. `tolerance`: a shift in standard deviations. `lasting`: other windows have the same reference, and so
    meet the same error of it. `variation`: what windows differ by for being windows, of a distribution as PSI, of a rate in
    standard deviations of one row.
    """

    tolerance: float
    lasting: bool
    variation: float = 0.0

    def psi(self, df: int, n: int) -> float:
        """Of a distribution in df + 1 bins, of which the reference has n rows."""
        least = supported_psi(self.tolerance, df, n) if self.lasting else tolerated_psi(self.tolerance)
        return max(least, self.variation)


def compare(place: Place, own: Cells, now: Cells, harmless: Harmless) -> Compared:
    """One check. `own`: the reference's counts, `now` the window's."""
    if place.check != "distribution":
        return _rate(place.check, own, now, max(harmless.tolerance, harmless.variation))
    if isinstance(place.stream, Category):
        return _categories(own, now, harmless)
    return _numbers(own, now, harmless)


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


def _numbers(own: Cells, now: Cells, harmless: Harmless) -> Compared:
    compared = Compared(_ints(own.bins), _ints(now.bins), own.present, now.present)
    starts = pools(own.bins, now.present)
    if len(starts) < 2:
        return compared
    n, m, size = compared.n, compared.m, len(starts)
    whole = size == len(own.bins)
    before, after = (own.bins, now.bins) if whole else (np.add.reduceat(each.bins, starts) for each in (own, now))
    distance, tolerated = psi(before, after), harmless.psi(size - 1, n)
    return replace(
        compared,
        effect=distance - psi_bias(size, n, m),
        tolerated=tolerated,
        evidence=psi_evidence(distance, size, n, m, tolerated),
        effects=_numeric_effects(own, now),
    )


def _categories(own: Cells, now: Cells, harmless: Harmless) -> Compared:
    before, after = np.append(own.bins, own.unseen), np.append(now.bins, now.unseen)
    compared = Compared(_ints(before), _ints(after), own.present, now.present)
    if not (compared.n and compared.m):
        return compared
    n, m = compared.n, compared.m
    # what is tolerated depends on how many categories are left once rare ones count as one
    df = homogeneity_evidence(before, after, 0.0).df
    if df == 0:
        return compared
    tolerated = harmless.psi(df, n)
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


def _rate(check: Check, own: Cells, now: Cells, tolerance: float) -> Compared:
    (known, n), (found, m) = meant(check, own), meant(check, now)
    compared = Compared((n - known, known), (m - found, found), n, m)
    if not (n and m):
        return compared
    evidence = rate_evidence(known, n, found, m, tolerance)
    return replace(
        compared,
        effect=found / m - known / n,
        tolerated=evidence.noncentrality - known / n,
        evidence=evidence,
    )


def meant(check: Check, cells: Cells) -> tuple[int, int]:
    """How many values a rate is about, and of how many."""
    if check == "missing":
        return cells.missing, cells.rows
    if check == "non_finite":
        return cells.non_finite, cells.rows
    return (cells.unseen if check == "unseen" else cells.below + cells.above), cells.present


def _ints(counts: Counts) -> tuple[int, ...]:
    return tuple(counts.tolist())
