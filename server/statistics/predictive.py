"""The upper tail of a count whose rate is itself known from a count alone. **Pure.**

Floor 1. A baseline has k0 of n, a window k of m; think of uniforms that lie below a rate. That no more than k0 of n do says
that the k0 + 1st smallest, U ~ Beta(k0 + 1, n - k0), is above the rate; that k of m do, that the k-th smallest,
V ~ Beta(k, m - k + 1), is below it. P(V < raised(U)) is the p-value here. With nothing tolerated it is Fisher's exact test.
With a tolerated shift it is a p-value too: of small samples a test enumerates all outcomes.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
SPAN = 30.0
"""What is below e^-SPAN of the largest is left out."""
NODES = 128
COARSE = np.linspace(0.0, 1.0, 33)
STIRLING_FROM = 32.0


def raised(rate: Floats | float, sd: float) -> Floats:
    """The highest tolerated rate: `sd` standard deviations sqrt(r (1 - r)) above the rate r, and 1 at most."""
    rate = np.asarray(rate, dtype=np.float64)
    return np.where(rate * (1 + sd * sd) < 1, rate + sd * np.sqrt(rate * (1 - rate)), 1.0)


def lowered(rate: Floats | float, sd: float) -> Floats:
    """The rate that `raised` makes this one of: the smaller root of (rate - r)^2 = sd^2 r (1 - r)."""
    rate, square = np.asarray(rate, dtype=np.float64), sd * sd
    return 2 * rate * rate / (2 * rate + square + sd * np.sqrt(square + 4 * rate * (1 - rate)))


def stirling_rest(z: float) -> float:
    """What ln gamma(z) is more than Stirling's (z - 1/2) ln z - z + ln(2 pi) / 2."""
    if z < STIRLING_FROM:
        return math.lgamma(z) - (z - 0.5) * math.log(z) + z - 0.5 * math.log(2 * math.pi)
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / (1680 * z * z)) / (z * z)) / (z * z)) / z


@lru_cache(maxsize=1)
def nodes() -> tuple[Floats, Floats]:
    """Places and weights of Gauss and Legendre on [0, 1]."""
    place, weight = np.polynomial.legendre.leggauss(NODES)
    return (place + 1) / 2, weight / 2


def region(log_density: Callable[[Floats], Floats], low: float, high: float) -> tuple[float, float]:
    """Where a density with one peak is not below e^-SPAN of its largest value: coarse grids, each in what the last one left."""
    while True:
        grid = low + (high - low) * COARSE
        value = log_density(grid)
        inside = np.flatnonzero(value >= value.max() - SPAN)
        first, last = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 1, grid.size - 1)
        low, high = float(grid[first]), float(grid[last])
        if last - first > grid.size // 2:
            return low, high


def tail(k0: int, n: int, k: int, m: int, sd: float) -> float:
    """P(V < raised(U)), where 0 <= k0 < n and 1 <= k <= m. Integrated over the one of the larger sample, in its log odds.

    Those are taken from where its odds are a / b, and its density from Stirling's formula, so that large numbers do not cancel.
    """
    over_baseline = n >= m
    a, b = (k0 + 1, n - k0) if over_baseline else (k, m - k + 1)
    share, center = a / (a + b), math.log(a / b)
    log_size = (math.log(a / (a + b)) + math.log(b) - math.log(2 * math.pi)) / 2
    log_size += stirling_rest(a + b) - stirling_rest(a) - stirling_rest(b)

    def log_density(x: Floats) -> Floats:
        rate = special.expit(x + center)
        if over_baseline:
            other = special.betainc(k, m - k + 1, raised(rate, sd))
        else:
            other = special.betaincc(k0 + 1, n - k0, lowered(rate, sd))
        own = -a * np.log1p((1 - share) * np.expm1(-x)) - b * np.log1p(share * np.expm1(x))
        with np.errstate(divide="ignore"):
            return np.asarray(own + log_size + np.log(other))

    elsewhere = lowered(k / (m + 1), sd) if over_baseline else raised((k0 + 1) / (n + 1), sd)
    apart = float(np.clip(special.logit(elsewhere), -40, 40)) - center
    # the density's slopes are at least 1 in log odds, and what it is multiplied by is level beyond its own middle
    low, high, beyond = min(apart, 0.0) - SPAN - 5, max(apart, 0.0) + SPAN + 5, 0.0
    if over_baseline and sd > 0:
        # from 1 / (1 + sd^2) on everything is tolerated, and the rest of the distribution is known
        high = min(high, -2 * math.log(sd) - center)
        beyond = float(special.betaincc(a, b, 1 / (1 + sd * sd)))
    low, high = region(log_density, low, high)
    place, weight = nodes()
    inside = float(np.dot(weight, np.exp(log_density(low + (high - low) * place)))) * (high - low)
    return min(inside + beyond, 1.0)
