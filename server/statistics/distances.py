"""Distances between a baseline's counts and a window's on the same frozen bins: how large a difference is. **Pure.**

Floor 1: arithmetic on counts. A distance says nothing about chance; `evidence` does.

Of all functions: **Shapes**: counts `[B]`, B >= 1, the same for both sides. Where a side has no counts at all, nothing is
known to differ: the distance is 0. **Raises** ValueError where shapes differ, there is no bin, or a count is negative.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.float64]
SMOOTHING = 0.5
"""Added to every count of a PSI (Jeffreys' prior), so that it is finite and continuous without a floor of its own."""
SUM_SCALE = 2**16
"""Units of a bin's sum in one unit of its stream's scale; `server.monitoring.streams` counts in the same."""


def pair(baseline: ArrayLike, window: ArrayLike) -> tuple[Counts, Counts]:
    """Both sides' counts as float64 (exact below 2^53), checked."""
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(window, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(f"counts on the same bins are needed, not shapes {first.shape} and {second.shape}")
    if not (first.min() >= 0 and second.min() >= 0):
        raise ValueError("counts cannot be negative")
    return first, second


def psi(baseline: ArrayLike, window: ArrayLike) -> float:
    """The population stability index: KL(p|q) + KL(q|p), in nats, of the smoothed shares of bins (Jeffreys' divergence).

    Without any difference it is `psi_bias` on average, not 0.

    >>> round(psi([100, 100, 100], [10, 10, 16]), 4)
    0.0482
    """
    first, second = pair(baseline, window)
    n, m = first.sum(), second.sum()
    if not (n and m):
        return 0.0
    extra = SMOOTHING * first.size
    p, q = (first + SMOOTHING) / (n + extra), (second + SMOOTHING) / (m + extra)
    return float(np.dot(p - q, np.log(p / q)))


def psi_bias(bins: int, n: int, m: int) -> float:
    """What a PSI of two samples of one distribution is on average: (B - 1)(1/n + 1/m); 0 where a side is empty, as `psi` is.

    Source: PSI / (1/n + 1/m) is chi-square with B - 1 degrees of freedom in the limit (Yurdakul 2018).
    """
    return (bins - 1) * (1 / n + 1 / m) if n and m else 0.0


def jensen_shannon(baseline: ArrayLike, window: ArrayLike) -> float:
    """The Jensen-Shannon divergence, base 2, in [0, 1]: not its root, which is the distance.

    >>> jensen_shannon([5, 0], [0, 3])
    1.0
    """
    first, second = pair(baseline, window)
    n, m = first.sum(), second.sum()
    if not (n and m):
        return 0.0
    p, q = first / n, second / m
    middle = (p + q) / 2
    in_p, in_q = p > 0, q > 0
    bits = np.dot(p[in_p], np.log2(p[in_p] / middle[in_p])) + np.dot(q[in_q], np.log2(q[in_q] / middle[in_q]))
    return min(max(float(bits) / 2, 0.0), 1.0)


def kolmogorov_smirnov(baseline: ArrayLike, window: ArrayLike) -> float:
    """The largest difference of the distribution functions at the frozen edges, in [0, 1]; of the values it may be larger.

    >>> kolmogorov_smirnov([5, 5], [10, 0])
    0.5
    """
    first, second = pair(baseline, window)
    n, m = first.sum(), second.sum()
    if not (n and m):
        return 0.0
    return float(np.abs(np.cumsum(first) / n - np.cumsum(second) / m).max())


def wasserstein(baseline: ArrayLike, window: ArrayLike, baseline_sums: ArrayLike, window_sums: ArrayLike) -> float:
    """The first Wasserstein distance with each bin's counts at that bin's own mean: at least the difference of the means.

    Shapes: sums `[B]`, of the values in each bin, in units of 1 / SUM_SCALE of the stream's scale.
    Units: of the result, the stream's scale.
    """
    first, second = pair(baseline, window)
    own, other = np.asarray(baseline_sums, dtype=np.float64), np.asarray(window_sums, dtype=np.float64)
    if own.shape != first.shape or other.shape != first.shape:
        raise ValueError(f"a sum for each bin is needed, not shapes {own.shape} and {other.shape}")
    n, m = first.sum(), second.sum()
    if not (n and m):
        return 0.0
    a, b = first > 0, second > 0
    places = np.concatenate((own[a] / first[a], other[b] / second[b]))
    mass = np.concatenate((first[a] / n, -second[b] / m))
    order = np.argsort(places, kind="stable")
    return float(np.dot(np.abs(np.cumsum(mass[order]))[:-1], np.diff(places[order]))) / SUM_SCALE
