"""Evidence against a tolerated effect: the right law where nothing drifts, and power where something does."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from server.statistics.detector import e_value
from server.statistics.distances import psi
from server.statistics.evidence import Evidence, homogeneity_evidence, psi_evidence, tolerated_psi

Counts = NDArray[np.int64]
DECILES = stats.norm.ppf(np.arange(1, 10) / 10)


def shifted(sd: float) -> NDArray[np.float64]:
    """The shares of a normal distribution's deciles once its mean has moved."""
    cdf = stats.norm.cdf(np.concatenate(([-np.inf], DECILES, [np.inf])), loc=sd)
    return np.asarray(np.diff(cdf))


def draws(seed: int, n: int, m: int, sd: float, times: int) -> tuple[Counts, Counts]:
    random = np.random.default_rng(seed)
    return random.multinomial(n, np.full(10, 0.1), times), random.multinomial(m, shifted(sd), times)


def found(first: Counts, second: Counts, tolerated: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The p-values of both tests, table by table."""
    by_psi = [psi_evidence(psi(a, b), 10, int(a.sum()), int(b.sum()), tolerated).p for a, b in zip(first, second, strict=True)]
    by_table = [homogeneity_evidence(a, b, tolerated).p for a, b in zip(first, second, strict=True)]
    return np.array(by_psi), np.array(by_table)


@pytest.mark.parametrize(
    ("sd", "expected"), [(0.05, 0.0024), (0.1, 0.0096), (0.15, 0.0216), (0.2, 0.0383), (0.3, 0.0861), (0.5, 0.238)]
)
def test_the_tolerated_psi_is_that_of_a_normal_on_its_deciles(sd: float, expected: float) -> None:
    p, q = np.full(10, 0.1), shifted(sd)
    assert tolerated_psi(sd) == pytest.approx(float(np.sum((p - q) * np.log(p / q))), rel=1e-12)
    assert tolerated_psi(sd) == pytest.approx(expected, rel=0.02)


def test_the_tolerated_psi_is_finite_far_out_and_nothing_for_nothing() -> None:
    assert tolerated_psi(0.0) == pytest.approx(0, abs=1e-28)
    assert tolerated_psi(1e-4) == pytest.approx(tolerated_psi(1e-2) * 1e-4, rel=1e-3)
    assert 30 < tolerated_psi(9.0) < 60
    for sd in (-0.1, 10.0, math.nan):
        with pytest.raises(ValueError, match="tolerated shift"):
            tolerated_psi(sd)


def test_psi_evidence_is_the_noncentral_law_of_psi_in_units_of_its_spread() -> None:
    spread = 1 / 20_000 + 1 / 1_000
    evidence = psi_evidence(0.05, 10, 20_000, 1_000, 0.0096)
    assert evidence[:3] == pytest.approx((0.05 / spread, 9, 0.0096 / spread), rel=1e-15)
    assert evidence.p == pytest.approx(stats.ncx2.sf(0.05 / spread, 9, 0.0096 / spread), rel=1e-9)
    assert psi_evidence(0.05, 10, 20_000, 1_000, 0.0).p == pytest.approx(stats.chi2.sf(0.05 / spread, 9), rel=1e-12)


def test_psi_evidence_of_very_many_rows() -> None:
    assert psi_evidence(0.0096, 10, 10**8, 10**8, 0.0096).p == pytest.approx(0.5, abs=0.01)
    assert psi_evidence(0.0105, 10, 10**8, 10**8, 0.0096).p < 1e-100
    assert psi_evidence(0.0087, 10, 10**8, 10**8, 0.0096).p == pytest.approx(1)


@settings(deadline=None)
@given(st.floats(0, 5), st.floats(0, 1), st.floats(0, 0.5), st.integers(2, 60), st.integers(50, 10**8), st.integers(50, 10**8))
def test_more_difference_is_more_evidence_and_more_tolerance_less(
    value: float, more: float, tolerated: float, bins: int, n: int, m: int
) -> None:
    p = psi_evidence(value, bins, n, m, tolerated).p
    assert 0 <= p <= 1
    # to the digits that a p-value has
    assert psi_evidence(value + more, bins, n, m, tolerated).p <= p * (1 + 1e-10)
    assert psi_evidence(value, bins, n, m, tolerated + more).p >= p * (1 - 1e-10)


def test_the_plain_homogeneity_test_is_scipys() -> None:
    random = np.random.default_rng(1)
    for _ in range(40):
        bins = int(random.integers(2, 20))
        first, second = (
            random.multinomial(int(random.integers(50, 10**5)), random.dirichlet(np.ones(bins) * 3)) for _ in range(2)
        )
        seen = first + second > 0
        expected = stats.chi2_contingency(np.array([first[seen], second[seen]]), correction=False)
        evidence = homogeneity_evidence(first, second, 0.0, least=0.0)
        assert evidence.statistic == pytest.approx(expected.statistic, rel=1e-12)
        assert evidence.df == expected.dof
        if expected.pvalue > 1e-290:
            assert evidence.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_rare_categories_count_as_one() -> None:
    first, second = np.array([1000, 3, 5, 800, 40, 2, 0]), np.array([900, 0, 9, 900, 30, 3, 0])
    # 3 and 5 of 3692 are expected less than 5 times among the window's 1842, also together: they take the 14 with them
    evidence = homogeneity_evidence(first, second, 0.0)
    merged = [[1000, 800, 40, 3 + 2 + 5], [900, 900, 30, 0 + 3 + 9]]
    expected = stats.chi2_contingency(merged, correction=False)
    assert evidence.df == 3
    assert evidence.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert evidence.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_rare_categories_that_are_enough_together_stay_by_themselves() -> None:
    first, second = np.array([500, 500, 6, 6, 6]), np.array([500, 500, 2, 2, 2])
    evidence = homogeneity_evidence(first, second, 0.0)
    expected = stats.chi2_contingency([[500, 500, 18], [500, 500, 6]], correction=False)
    assert evidence.df == 2
    assert evidence.statistic == pytest.approx(expected.statistic, rel=1e-12)


def test_one_row_of_a_rare_category_is_no_alarm() -> None:
    # of a chi-square with its own column it would be: 1 where 1 / 500 is expected
    first, second = np.array([50_000, 49_999, 1]), np.array([100, 99, 1])
    assert homogeneity_evidence(first, second, 0.0, least=0.0).p < 1e-20
    assert homogeneity_evidence(first, second, 0.0).p > 0.5


def test_the_tolerated_table_has_the_noncentrality_of_the_psi() -> None:
    first, second = np.full(10, 2000), np.round(shifted(0.2) * 1000).astype(int)
    evidence = homogeneity_evidence(first, second, 0.0096)
    spread = 1 / first.sum() + 1 / second.sum()
    assert evidence.df == 9
    assert evidence.noncentrality == pytest.approx(0.0096 / spread, rel=1e-12)
    assert evidence.p == pytest.approx(stats.ncx2.sf(evidence.statistic, 9, 0.0096 / spread), rel=1e-9)


def test_the_chi_square_of_a_shift_is_its_psi_to_second_order() -> None:
    # of shares that are exactly what they are on average: what a tolerated PSI is as a non-centrality
    for sd in (0.05, 0.1, 0.2):
        for n, m in ((10**8, 10**6), (10**6, 10**6)):
            second = shifted(sd) * m
            evidence = homogeneity_evidence(np.full(10, n / 10), second, 0.0)
            assert evidence.statistic * (1 / n + 1 / m) == pytest.approx(tolerated_psi(sd), rel=0.6 * sd)
            assert evidence.statistic * (1 / n + 1 / m) <= tolerated_psi(sd) * (1 + 0.3 * sd**2) or n > m


def test_without_drift_the_central_test_errs_as_often_as_it_says() -> None:
    """10,000 windows: at .999 within .0004 and .003, and homogeneity at .05 within .04 and .06."""
    for m in (500, 2_000):
        first, second = draws(2, 20_000, m, 0.0, 10_000)
        by_psi, by_table = found(first, second, 0.0)
        assert 0.0004 <= (by_psi <= 0.001).mean() <= 0.003
        assert 0.04 <= (by_table <= 0.05).mean() <= 0.06


def test_homogeneity_knows_that_the_baseline_is_a_sample() -> None:
    # a one-sample test errs five times as often as it says here
    first, second = draws(3, 500, 500, 0.0, 4_000)
    _, by_table = found(first, second, 0.0)
    assert 0.04 <= (by_table <= 0.05).mean() <= 0.06
    one_sample = [stats.chisquare(b, a / a.sum() * b.sum()).pvalue for a, b in zip(first, second, strict=True)]
    assert (np.array(one_sample) <= 0.05).mean() > 0.2


@pytest.mark.parametrize("m", [1_000, 10_000])
def test_a_tolerated_shift_errs_as_often_as_is_said_and_a_harmful_one_is_found(m: int) -> None:
    times, tolerated = 2_000, tolerated_psi(0.1)
    # at the tolerated shift: .05, and what a binomial of that rate exceeds once in 1,000 seeds, or the .06 of asymptotic laws
    most = max(0.065, stats.binom.ppf(0.999, times, 0.055) / times)
    for values in found(*draws(4, 100_000, m, 0.1, times), tolerated):
        assert 0.025 <= (values <= 0.05).mean() <= most
    for values in found(*draws(5, 100_000, m, 0.05, times), tolerated):
        assert (values <= 0.05).mean() <= 0.012
    for values in found(*draws(6, 100_000, m, 0.2, times), tolerated):
        assert (values <= 0.05).mean() >= 0.82


def test_the_plain_test_calls_a_harmless_wobble_drift_and_this_one_does_not() -> None:
    first, second = draws(7, 100_000, 10_000, 0.05, 500)
    central, _ = found(first, second, 0.0)
    tolerant, _ = found(first, second, tolerated_psi(0.1))
    assert (central < 0.001).mean() > 0.4
    assert (tolerant < 0.001).mean() == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
def test_homogeneity_knows_no_order_and_no_side(table: list[tuple[int, int]], random: Random) -> None:
    first, second = np.array(table).T
    evidence = homogeneity_evidence(first, second, 0.01)
    assert 0 <= evidence.p <= 1
    assert homogeneity_evidence(second, first, 0.01).p == pytest.approx(evidence.p, rel=1e-9, abs=1e-300)
    order = np.random.default_rng(random.getrandbits(32)).permutation(first.size)
    if len({*(first + second).tolist()}) == first.size:  # which of two equally rare ones is merged is a matter of order
        assert homogeneity_evidence(first[order], second[order], 0.01).p == pytest.approx(evidence.p, rel=1e-9, abs=1e-300)
    empty = homogeneity_evidence(np.append(first, 0), np.append(second, 0), 0.01)
    assert empty == pytest.approx(evidence, rel=1e-12)


def test_without_anything_to_compare_p_is_1() -> None:
    assert psi_evidence(0.0, 10, 0, 5, 0.01) == psi_evidence(0.0, 10, 5, 0, 0.01) == Evidence(0.0, 9, 0.0, 1.0)
    assert psi_evidence(0.3, 1, 5, 5, 0.01).p == psi_evidence(0.3, 0, 5, 5, 0.01).p == 1
    assert homogeneity_evidence([0, 0], [3, 4], 0.01) == Evidence(0.0, 0, 0.0, 1.0)
    one = homogeneity_evidence([50, 0], [3, 0], 0.01)
    assert (one.df, one.p) == (0, 1.0)
    few = homogeneity_evidence([1, 2], [1, 0], 0.01)
    assert (few.df, few.p) == (0, 1.0)


def test_what_cannot_be_is_refused() -> None:
    for value, tolerated in ((-0.1, 0.0), (0.1, -0.1), (math.nan, 0.0), (0.1, math.nan)):
        with pytest.raises(ValueError, match="not negative"):
            psi_evidence(value, 10, 5, 5, tolerated)
    with pytest.raises(ValueError, match="not negative"):
        homogeneity_evidence([1, 2], [3, 4], -0.1)
    with pytest.raises(ValueError, match="negative"):
        homogeneity_evidence([1, -2], [3, 4], 0.1)


def test_rare_categories_put_no_mean_of_e_values_above_1() -> None:
    """Twenty categories, each half as frequent as the one before, 20,000 rows against 200: alarms without merging."""
    share = 0.5 ** np.arange(1, 21)
    random, times = np.random.default_rng(8), 1_000
    first, second = (random.multinomial(size, share / share.sum(), times) for size in (20_000, 200))
    for least, low, high in ((5.0, 0.5, 1.0), (0.0, 1e6, math.inf)):
        tests = (homogeneity_evidence(a, b, tolerated_psi(0.1), least) for a, b in zip(first, second, strict=True))
        assert low <= np.mean([e_value(test.p) for test in tests]) <= high
