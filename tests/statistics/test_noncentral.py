"""The tail of the non-central chi-square law, against 30 digits, and against scipy.stats where that is exact."""

import itertools

import mpmath
import numpy as np
import pytest
from scipy import stats

from server.statistics.noncentral import MIXTURE_BELOW, contour, mixture, survival

DISTANCES = (-3.0, -1.0, 0.0, 0.5, 1.0, 3.0, 8.0, 20.0, 35.0)
"""In standard deviations above the mean."""


def exactly(x: float, df: int, noncentrality: float) -> mpmath.mpf:
    """Poisson's mixture, with central tails by their recurrence: sums of positive terms, in 30 digits."""
    with mpmath.workdps(30):
        half, lam = mpmath.mpf(x) / 2, mpmath.mpf(noncentrality) / 2
        shape = mpmath.mpf(1) / 2 if df % 2 else mpmath.mpf(1)
        tail = mpmath.erfc(mpmath.sqrt(half)) if df % 2 else mpmath.exp(-half)
        rise = mpmath.exp(shape * mpmath.log(half) - half - mpmath.loggamma(shape + 1))
        for _ in range((df - 1) // 2):
            shape, tail, rise = shape + 1, tail + rise, rise * half / (shape + 1)
        weight, total = mpmath.exp(-lam), mpmath.mpf(0)
        peak = max(noncentrality, (noncentrality * x) ** 0.5) / 2
        for number in range(int(peak + 14 * peak**0.5 + 80)):
            total += weight * tail
            shape, tail, rise = shape + 1, tail + rise, rise * half / (shape + 1)
            weight *= lam / (number + 1)
        return total


def places(df: int, noncentrality: float) -> list[float]:
    spread = (2 * (df + 2 * noncentrality)) ** 0.5
    return [x for distance in DISTANCES if (x := df + noncentrality + distance * spread) > 0]


@pytest.mark.parametrize("df", [1, 2, 3, 9, 19, 256])
@pytest.mark.parametrize("noncentrality", [0.01, 0.5, 3.0, 20.0, 60.0, 96.0, 960.0, 5000.0])
def test_it_has_twelve_digits_however_small_it_is(df: int, noncentrality: float) -> None:
    compared = 0
    for x in places(df, noncentrality):
        expected = exactly(x, df, noncentrality)
        if expected > 1e-300:
            assert float(survival(x, df, noncentrality) / expected) == pytest.approx(1, abs=1e-12)
            compared += 1
    assert compared >= 5


def test_it_goes_down_to_the_least_number() -> None:
    x = 1341.0
    assert 1e-300 < exactly(x, 9, 1.0) < 1e-260
    assert float(survival(x, 9, 1.0) / exactly(x, 9, 1.0)) == pytest.approx(1, abs=1e-12)
    assert survival(1e6, 9, 1.0) == 0
    assert survival(1e9, 9, 1e5) == 0


@pytest.mark.parametrize("noncentrality", [1e5, 1e6, 1e7])
def test_large_noncentralities(noncentrality: float) -> None:
    for df in (9, 19):
        for x in places(df, noncentrality)[2:6]:
            assert survival(x, df, noncentrality) == pytest.approx(stats.ncx2.sf(x, df, noncentrality), rel=1e-9)


def test_both_ways_agree_where_they_meet() -> None:
    for df in (1, 2, 9, 64, 300):
        for x in (0.5, 5.0, 30.0, 90.0, 400.0):
            lam = MIXTURE_BELOW**2 / x
            assert contour(x, df, lam) == pytest.approx(mixture(x, df, lam), rel=1e-11)


@pytest.mark.parametrize("noncentrality", [50.0, 960.0, 1e7])
def test_far_below_the_mean_there_is_nothing(noncentrality: float) -> None:
    for x in (5e-324, 1e-3):
        assert survival(x, 1, noncentrality) == pytest.approx(1, rel=1e-11)
    spread = (2 * (9 + 2 * noncentrality)) ** 0.5
    for distance in np.linspace(4, 13, 40):
        x = 9 + noncentrality - distance * spread
        assert survival(x, 9, noncentrality) == pytest.approx(1 - stats.ncx2.cdf(x, 9, noncentrality), rel=1e-12)


def test_nothing_tolerated_is_the_central_law() -> None:
    for x in (0.0, 1e-9, 3.0, 50.0, 1400.0):
        assert survival(x, 9, 0.0) == pytest.approx(stats.chi2.sf(x, 9), rel=1e-12)
    assert survival(0.0, 9, 4.0) == survival(-1.0, 9, 4.0) == 1


def test_it_is_a_tail() -> None:
    for noncentrality in (5.0, 500.0):
        values = [survival(x, 9, noncentrality) for x in np.linspace(0, 2000, 300)]
        assert all(0 <= after <= before <= 1 for before, after in itertools.pairwise(values))
        assert values[0] == 1
