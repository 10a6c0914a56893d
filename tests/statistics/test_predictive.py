"""A rate against one that is known from a count: exact where nothing is tolerated, and never too small where something is."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from server.statistics.evidence import Evidence, rate_evidence
from server.statistics.predictive import lowered, raised, stirling_rest, tail


def fisher(k0: int, n: int, k: int, m: int) -> float:
    """The probability that so many or more of the k + k0 that are meant are in the window, in whole numbers."""
    meant = k + k0
    ways = sum(math.comb(m, inside) * math.comb(n, meant - inside) for inside in range(k, min(m, meant) + 1))
    return float(Fraction(ways, math.comb(n + m, meant)))


def by_quadrature(k0: int, n: int, k: int, m: int, sd: float) -> mpmath.mpf:
    """P(V < raised(U)) by adaptive quadrature in 25 digits, in log odds."""
    a, b = k0 + 1, n - k0

    def density(x: mpmath.mpf) -> mpmath.mpf:
        rate = 1 / (1 + mpmath.exp(-x))
        least = rate + sd * mpmath.sqrt(rate * (1 - rate)) if rate * (1 + sd * sd) < 1 else mpmath.mpf(1)
        below = mpmath.betainc(k, m - k + 1, 0, least, regularized=True) if least < 1 else 1
        return rate**a * (1 - rate) ** b / mpmath.beta(a, b) * below

    with mpmath.workdps(25):
        center, spread, kink = math.log(a / b), math.sqrt(1 / a + 1 / b), -2 * math.log(sd)
        points = {center + spread * step for step in range(-8, 16)} | {center - 60, center - 20, center + 60, kink}
        return mpmath.quad(density, sorted(points))


@settings(deadline=None)
@given(st.data())
def test_with_nothing_tolerated_it_is_fishers_exact_test(data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    k0, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, m))
    assert tail(k0, n, k, m, 0.0) == pytest.approx(fisher(k0, n, k, m), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    "counts",
    [(0, 20_000, 3, 1000), (5, 20_000, 30, 1000), (200, 20_000, 300, 1000), (10, 10**5, 400, 10**6), (0, 50, 10, 1000)],
)
def test_also_of_many_rows_and_far_out(counts: tuple[int, int, int, int]) -> None:
    # scipy's hypergeometric tail has ten digits here
    k0, n, k, m = counts
    assert tail(*counts, 0.0) == pytest.approx(stats.hypergeom.sf(k - 1, n + m, m, k + k0), rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "sd"),
    [
        ((0, 50, 3, 20), 0.1),
        ((2, 100, 9, 50), 0.1),
        ((20, 200, 70, 150), 0.1),
        ((3, 40, 50, 100), 0.2),
        ((39, 40, 20, 20), 0.1),
        ((35, 40, 19, 20), 0.5),
        ((0, 30, 6, 90), 0.1),
    ],
)
def test_with_a_tolerance_it_is_the_integral(counts: tuple[int, int, int, int], sd: float) -> None:
    assert float(tail(*counts, sd) / by_quadrature(*counts, sd)) == pytest.approx(1, abs=1e-11)


def test_it_is_what_uniforms_do() -> None:
    # U is the 3rd smallest of 40 uniforms, V the 5th smallest of 25
    random = np.random.default_rng(1)
    upper = np.sort(random.random((40_000, 40)), axis=1)[:, 2]
    lower = np.sort(random.random((40_000, 25)), axis=1)[:, 4]
    expected = tail(2, 40, 5, 25, 0.3)
    share = float((lower < raised(upper, 0.3)).mean())
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 40_000)


def outcomes(n: int, m: int, sd: float) -> np.ndarray:
    """`[n + 1, m + 1]` of p-values."""
    return np.array([[rate_evidence(k0, n, k, m, sd).p for k in range(m + 1)] for k0 in range(n + 1)])


def masses(size: int, rate: float) -> np.ndarray:
    return np.asarray(stats.binom.pmf(np.arange(size + 1), size, rate))


@pytest.mark.parametrize(("n", "m"), [(10, 5), (12, 12), (30, 8), (8, 40), (60, 20)])
@pytest.mark.parametrize("sd", [0.0, 0.1, 0.3, 1.0])
def test_no_p_value_is_more_probable_than_it_says(n: int, m: int, sd: float) -> None:
    """All outcomes of small samples, for rates all over, at the highest rate that is tolerated: P(p <= a) <= a for each a."""
    values = outcomes(n, m, sd).ravel()
    order = np.argsort(values)
    sizes = values[order]
    # one step for p-values that differ by rounding alone
    last = np.append(sizes[1:] > sizes[:-1] * (1 + 1e-9), True)
    for rate in np.concatenate((np.geomspace(1e-4, 0.04, 15), np.linspace(0.05, 0.99, 20))):
        probable = np.cumsum(np.outer(masses(n, rate), masses(m, float(raised(rate, sd)))).ravel()[order])
        assert (probable[last] <= sizes[last] * (1 + 1e-9) + 1e-15).all()


def test_nor_of_samples_of_usual_sizes() -> None:
    random = np.random.default_rng(2)
    n, m, sd, times = 20_000, 1_000, 0.1, 3_000
    for rate in (0.00005, 0.01, 0.3):
        first, second = random.binomial(n, rate, times), random.binomial(m, float(raised(rate, sd)), times)
        p = np.array([rate_evidence(int(k0), n, int(k), m, sd).p for k0, k in zip(first, second, strict=True)])
        for level in (0.05, 0.01):
            # no more than chance allows above the level, once in 100,000 seeds
            assert (p <= level).sum() <= stats.binom.ppf(1 - 1e-5, times, level)


def test_it_finds_what_is_beyond_the_tolerance() -> None:
    # a rate of 1 % comes to 5 %: four times the 0.1 standard deviations that are tolerated
    assert rate_evidence(200, 20_000, 50, 1_000, 0.1).p < 1e-6
    assert rate_evidence(200, 20_000, 20, 1_000, 0.1).p > 0.4
    # of what the baseline has none of, three in a thousand are chance, and thirty are not
    assert rate_evidence(0, 20_000, 3, 1_000, 0.1).p > 0.01
    assert rate_evidence(0, 20_000, 30, 1_000, 0.1).p < 1e-12


def test_many_rows_and_large_tails_are_finite() -> None:
    for counts in (
        (0, 10**6, 10**6, 10**6),
        (10**6 - 1, 10**6, 10**6, 10**6),
        (0, 1, 10**6, 10**6),
        (10**8 // 2, 10**8, 1, 10**8),
    ):
        assert 0 <= rate_evidence(*counts, 0.1).p <= 1
    assert rate_evidence(0, 10**6, 10**6, 10**6, 0.1).p == 0
    assert rate_evidence(5_000, 10**6, 50_000, 10**6, 0.1).p == 0
    assert 1e-300 < rate_evidence(5_000, 10**6, 14_000, 10**6, 0.1).p < 1e-9


@settings(deadline=None)
@given(st.data())
def test_more_of_them_is_more_evidence(data: st.DataObject) -> None:
    n, m, sd = data.draw(st.integers(1, 5000)), data.draw(st.integers(2, 5000)), data.draw(st.sampled_from((0.0, 0.1, 0.5)))
    k0, k = data.draw(st.integers(0, n)), data.draw(st.integers(0, m - 1))
    p = rate_evidence(k0, n, k, m, sd).p
    assert rate_evidence(k0, n, k + 1, m, sd).p <= p * (1 + 1e-9)
    assert rate_evidence(k0, n, k, m, sd + 0.1).p >= p * (1 - 1e-9)


def test_without_anything_to_say_p_is_1() -> None:
    assert rate_evidence(3, 10, 0, 10, 0.1).p == rate_evidence(3, 10, 0, 0, 0.1).p == 1
    assert rate_evidence(0, 0, 5, 10, 0.1) == Evidence(5.0, 0, 1.0, 1.0)
    assert rate_evidence(10, 10, 9, 10, 0.1).p == 1


def test_it_says_what_it_compared() -> None:
    found = rate_evidence(200, 20_000, 50, 1_000, 0.1)
    assert (found.statistic, found.df) == (50.0, 0)
    assert found.noncentrality == pytest.approx(0.01 + 0.1 * math.sqrt(0.01 * 0.99), rel=1e-12)


@pytest.mark.parametrize(
    "counts", [(-1, 5, 1, 5, 0.1), (6, 5, 1, 5, 0.1), (1, 5, 6, 5, 0.1), (1, 5, -1, 5, 0.1), (1, 5, 1, 5, -0.1)]
)
def test_what_are_no_counts_of_a_total_is_refused(counts: tuple[int, int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="counts within totals"):
        rate_evidence(*counts)
    with pytest.raises(ValueError, match="counts within totals"):
        rate_evidence(1, 5, 1, 5, math.inf)


def test_lowered_undoes_raised() -> None:
    rates = np.concatenate((np.geomspace(1e-12, 0.1, 30), np.linspace(0.1, 0.9, 30)))
    for sd in (0.0, 0.1, 0.33):
        assert lowered(raised(rates, sd), sd) == pytest.approx(rates, rel=1e-9)
        assert (raised(rates, sd) <= 1).all()
    assert float(raised(0.999, 0.1)) == float(raised(1.0, 0.0)) == 1
    assert float(lowered(1.0, 0.5)) == pytest.approx(0.8)


def test_stirlings_rest() -> None:
    for z in (1.0, 2.5, 31.9, 32.0, 1e3, 1e8):
        with mpmath.workdps(40):
            exact = mpmath.loggamma(z) - (mpmath.mpf(z) - 0.5) * mpmath.log(z) + z - mpmath.log(2 * mpmath.pi) / 2
        assert stirling_rest(z) == pytest.approx(float(exact), abs=1e-13)
    assert special.gammaln(40.0) == pytest.approx(
        39.5 * math.log(40) - 40 + math.log(2 * math.pi) / 2 + stirling_rest(40), rel=1e-14
    )
