"""Evidence: how probable a difference this large would be if the truth differed by no more than what is harmless. **Pure.**

Floor 1. Large windows make every difference significant, and small ones none of them important; so the null hypothesis is not
equality but a tolerated effect, and the size of the effect is reported beside (`distances`).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from server.statistics.distances import pair
from server.statistics.noncentral import survival
from server.statistics.predictive import raised, tail

LEAST_EXPECTED = 5.0
"""Categories of which fewer are expected in a sample are judged together: the chi-square law is not theirs (Cochran's rule)."""


class Evidence(NamedTuple):
    """A test's outcome: `statistic`, if the effect were the tolerated one, would be this large or larger with probability `p`.

    `df`, `noncentrality`: of the chi-square law that says so; of a rate 0 and the tolerated rate, since its law is another.
    """

    statistic: float
    df: int
    noncentrality: float
    p: float


@lru_cache(maxsize=256)
def tolerated_psi(sd: float) -> float:
    """The PSI of a normal distribution on its deciles when its mean moves by `sd` standard deviations.

    >>> round(tolerated_psi(0.1), 4)
    0.0096
    """
    if not 0 <= sd < 10:
        raise ValueError(f"a tolerated shift is at least 0 and less than 10 standard deviations, not {sd}")
    edges = np.concatenate(([-np.inf], special.ndtri(np.arange(1, 10) / 10), [np.inf]))
    # the upper half by its distance from above, so that small shares keep their digits
    lower, upper = edges[:-1] - sd, edges[1:] - sd
    flip = lower > 0
    share = special.ndtr(np.where(flip, -lower, upper)) - special.ndtr(np.where(flip, -upper, lower))
    return float(np.dot(0.1 - share, np.log(0.1 / share)))


def psi_evidence(psi: float, bins: int, n: int, m: int, tolerated: float) -> Evidence:
    """PSI / (1/n + 1/m) against the chi-square law with B - 1 degrees of freedom and non-centrality tolerated / (1/n + 1/m).

    Where a side is empty or there is one bin, there is no evidence: p is 1. Windows that are compared with one baseline share
    its error: their p-values are independent only as far as `tolerated` is much more than that, than (B - 1) / n.

    Raises: ValueError where psi or tolerated is negative.
    Source: Potgieter et al., "Population Resemblance Statistic" (arXiv 2307.11878).
    """
    if not (psi >= 0 and tolerated >= 0):
        raise ValueError(f"a PSI is not negative: {psi}, {tolerated}")
    df = max(bins - 1, 0)
    if not (n and m):
        return Evidence(0.0, df, 0.0, 1.0)
    spread = 1 / n + 1 / m
    statistic, noncentrality = psi / spread, tolerated / spread
    return Evidence(statistic, df, noncentrality, survival(statistic, df, noncentrality) if df else 1.0)


def homogeneity_evidence(baseline: ArrayLike, window: ArrayLike, tolerated: float, least: float = LEAST_EXPECTED) -> Evidence:
    """Whether both sides' counts are of one distribution: the chi-square of the 2 x B table, expectations from both together.

    With s = 1/n + 1/m the statistic is the sum of (p - q)^2 / pooled share, divided by s; that sum and the PSI are equal to
    second order in p - q. So a tolerated PSI is a non-centrality of tolerated / s, and tolerated 0 is the plain test.
    Categories of which fewer than `least` are expected in the smaller sample count as one: a choice by column totals alone,
    which the null law is conditional on. df is the number of columns left that are not empty, minus 1; where it is 0, p is 1.

    Raises: ValueError as the distances do, and where tolerated is negative.
    """
    first, second = pair(baseline, window)
    if not tolerated >= 0:
        raise ValueError(f"a tolerated PSI is not negative: {tolerated}")
    n, m = float(first.sum()), float(second.sum())
    if not (n and m):
        return Evidence(0.0, 0, 0.0, 1.0)
    first, second = merged(first, second, least)
    total = first + second
    spread = 1 / n + 1 / m
    statistic = float(np.sum((first / n - second / m) ** 2 * ((n + m) / total))) / spread
    df, noncentrality = total.size - 1, tolerated / spread
    return Evidence(statistic, df, noncentrality, survival(statistic, df, noncentrality) if df else 1.0)


def merged(first: np.ndarray, second: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Both sides without empty columns, and with those too rare for the chi-square law added up in one."""
    n, m = first.sum(), second.sum()
    total = first + second
    order = np.argsort(total, kind="stable")
    order = order[total[order] > 0]
    expected = total[order] * (min(n, m) / (n + m))
    rare = int(np.count_nonzero(expected < least))
    # what is rare together may still be rare: it takes the next larger column with it
    if rare and rare < order.size and expected[:rare].sum() < least:
        rare += 1
    groups = np.concatenate((np.zeros(rare, dtype=np.intp), np.arange(order.size - rare) + (rare > 0)))
    return np.bincount(groups, weights=first[order]), np.bincount(groups, weights=second[order])


def rate_evidence(k0: int, n: int, k: int, m: int, tolerated_sd: float) -> Evidence:
    """Whether k of m is a higher rate than k0 of n, by more than `tolerated_sd` times sqrt(r (1 - r)) of the baseline's rate r.

    `noncentrality` is the rate that would be tolerated if the baseline's were k0 / n exactly; p knows that it is not
    (`predictive`). Where the window has none, or either side is empty, there is no evidence: p is 1.

    Raises: ValueError where a count is not within its total, or tolerated_sd is negative.
    """
    if not (0 <= k0 <= n and 0 <= k <= m and 0 <= tolerated_sd < math.inf):
        raise ValueError(f"not counts within totals and a tolerance: {k0} of {n}, {k} of {m}, {tolerated_sd}")
    rate = float(raised(k0 / n, tolerated_sd)) if n else 1.0
    p = 1.0 if k == 0 or k0 == n else tail(k0, n, k, m, tolerated_sd)
    return Evidence(float(k), 0, rate, p)
