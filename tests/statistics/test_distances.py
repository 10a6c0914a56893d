"""Distances on counts, against scipy's on the same shares."""

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon

from server.monitoring import streams
from server.statistics.distances import SUM_SCALE, jensen_shannon, kolmogorov_smirnov, psi, psi_bias, wasserstein

Counts = NDArray[np.int64]
TABLES = st.integers(1, 12).flatmap(
    lambda bins: st.tuples(*(st.lists(st.integers(0, 10**6), min_size=bins, max_size=bins) for _ in range(2)))
)
DISTANCES = (psi, jensen_shannon, kolmogorov_smirnov)


def tables(seed: int, count: int) -> list[tuple[Counts, Counts]]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        bins = int(random.integers(2, 30))
        shares = random.dirichlet(np.ones(bins), 2)
        first, second = (random.multinomial(int(random.integers(1, 10**6)), share) for share in shares)
        made.append((first, second))
    return made


def test_psi_is_the_sum_of_both_divergences_of_the_smoothed_shares() -> None:
    for first, second in tables(1, 50):
        p, q = (first + 0.5) / (first + 0.5).sum(), (second + 0.5) / (second + 0.5).sum()
        assert psi(first, second) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), rel=1e-12)


def test_jensen_shannon_is_the_square_of_scipys_distance_in_base_2() -> None:
    for first, second in tables(2, 50):
        expected = jensenshannon(first / first.sum(), second / second.sum(), base=2) ** 2
        assert jensen_shannon(first, second) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_kolmogorov_smirnov_is_that_of_values_that_lie_at_the_edges() -> None:
    random = np.random.default_rng(3)
    for _ in range(30):
        first, second = (random.integers(0, 8, int(random.integers(1, 500))) for _ in range(2))
        counts = [np.bincount(values, minlength=8) for values in (first, second)]
        assert kolmogorov_smirnov(*counts) == pytest.approx(stats.ks_2samp(first, second).statistic, rel=1e-12)


def test_wasserstein_is_scipys_of_the_bins_means() -> None:
    random = np.random.default_rng(4)
    for first, second in tables(4, 50):
        places = np.arange(first.size) * SUM_SCALE
        sums = [counts * places + random.integers(0, SUM_SCALE, counts.size) * counts for counts in (first, second)]
        means = [
            total[counts > 0] / counts[counts > 0] / SUM_SCALE for total, counts in zip(sums, (first, second), strict=True)
        ]
        expected = stats.wasserstein_distance(*means, first[first > 0], second[second > 0])
        assert wasserstein(first, second, *sums) == pytest.approx(expected, rel=1e-12)


def test_wasserstein_is_in_the_units_that_streams_count_in() -> None:
    assert SUM_SCALE == streams.SUM_SCALE
    assert wasserstein([4], [2], [4 * SUM_SCALE], [5 * SUM_SCALE]) == 1.5


def test_wasserstein_is_near_that_of_the_values() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(size=20_000), random.normal(0.3, 1.2, size=5_000)
    edges = np.quantile(first, np.arange(1, 10) / 10)
    bins = [np.searchsorted(edges, values) for values in (first, second)]
    counts = [np.bincount(places, minlength=10) for places in bins]
    fixed = [np.rint(values * SUM_SCALE) for values in (first, second)]
    sums = [np.bincount(places, weights=values, minlength=10) for places, values in zip(bins, fixed, strict=True)]
    found, exact = wasserstein(*counts, *sums), stats.wasserstein_distance(first, second)
    # between the difference of the means, which bins keep, and as much more as values are from their bin's mean
    within = [np.abs(v - (s / c)[b] / SUM_SCALE).mean() for v, b, s, c in zip((first, second), bins, sums, counts, strict=True)]
    assert abs(second.mean() - first.mean()) - 1e-4 <= found
    assert abs(found - exact) <= sum(within)


def test_the_bias_is_the_mean_of_a_psi_without_drift() -> None:
    random = np.random.default_rng(6)
    n, m, bins, times = 20_000, 1_000, 10, 4_000
    first, second = (random.multinomial(size, np.full(bins, 1 / bins), times) for size in (n, m))
    found = np.array([psi(a, b) for a, b in zip(first, second, strict=True)])
    debiased = found - psi_bias(bins, n, m)
    # four standard errors, and what is of second order in 1/m
    assert abs(debiased.mean()) < 4 * found.std() / np.sqrt(times) + 0.02 * psi_bias(bins, n, m)
    assert psi_bias(bins, n, m) == 9 * (1 / n + 1 / m)


def test_one_outlier_hardly_moves_the_effect() -> None:
    random = np.random.default_rng(7)
    first, second = random.normal(size=100_000), random.normal(0.5, 1, size=5_000)
    edges = np.quantile(first, np.arange(1, 10) / 10)
    before = np.bincount(np.searchsorted(edges, first), minlength=10)
    effects = []
    for values in (second, np.append(second, 1e4)):
        after = np.bincount(np.searchsorted(edges, values), minlength=10)
        effects.append(psi(before, after) - psi_bias(10, len(first), len(values)))
    assert effects[0] > 0.2
    assert abs(effects[1] / effects[0] - 1) < 0.01


@settings(deadline=None)
@given(TABLES)
def test_distances_are_symmetric_finite_and_zero_of_the_same(table: tuple[list[int], list[int]]) -> None:
    first, second = table
    for distance in DISTANCES:
        value = distance(first, second)
        assert np.isfinite(value)
        assert value >= 0
        assert value == pytest.approx(distance(second, first), rel=1e-9, abs=1e-12)
        assert distance(first, first) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(first, second) <= 1
    assert kolmogorov_smirnov(first, second) <= 1 + 1e-12


@settings(deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_bins_matters_only_where_they_are_ordered(table: tuple[list[int], list[int]], random: Random) -> None:
    first, second = (np.array(side) for side in table)
    order = np.random.default_rng(random.getrandbits(32)).permutation(first.size)
    for distance in (psi, jensen_shannon):
        assert distance(first[order], second[order]) == pytest.approx(distance(first, second), rel=1e-9, abs=1e-12)
    assert kolmogorov_smirnov(first[::-1], second[::-1]) == pytest.approx(kolmogorov_smirnov(first, second), abs=1e-12)


@settings(deadline=None)
@given(TABLES)
def test_fewer_bins_show_no_larger_difference(table: tuple[list[int], list[int]]) -> None:
    first, second = (np.array(side) for side in table)
    starts = np.arange(0, first.size, 2)
    merged = [np.add.reduceat(side, starts) for side in (first, second)]
    for distance in (jensen_shannon, kolmogorov_smirnov):
        assert distance(*merged) <= distance(first, second) + 1e-12


@settings(deadline=None)
@given(TABLES)
def test_all_is_as_many_times_the_same(table: tuple[list[int], list[int]]) -> None:
    first, second = (np.array(side) for side in table)
    for distance in (jensen_shannon, kolmogorov_smirnov):
        assert distance(first * 7, second * 7) == pytest.approx(distance(first, second), abs=1e-9)


def test_an_empty_side_differs_by_nothing_that_is_known() -> None:
    for first, second in itertools.permutations(([0, 0, 0], [3, 0, 9])):
        assert [distance(first, second) for distance in DISTANCES] == [0, 0, 0]
        assert wasserstein(first, second, [0, 0, 0], [0, 0, 0]) == 0
    assert psi_bias(10, 0, 5) == psi_bias(10, 5, 0) == 0


def test_one_bin_holds_everything_on_both_sides() -> None:
    assert [distance([5], [9]) for distance in DISTANCES] == [0, 0, 0]
    assert psi_bias(1, 5, 9) == 0


@pytest.mark.parametrize(
    ("first", "second"), [([1, 2], [1]), ([], []), ([[1]], [[1]]), ([-1, 2], [1, 2]), ([1, 2], [np.nan, 2])]
)
def test_what_are_no_counts_on_the_same_bins_is_refused(first: list[float], second: list[float]) -> None:
    for distance in DISTANCES:
        with pytest.raises(ValueError, match="count"):
            distance(first, second)
    with pytest.raises(ValueError, match="count"):
        wasserstein(first, second, [0], [0])


def test_a_sum_is_needed_for_each_bin() -> None:
    for sums in (([0], [0, 0]), ([0, 0], [0])):
        with pytest.raises(ValueError, match="sum for each bin"):
            wasserstein([1, 2], [2, 1], *sums)
