"""The histogram: edges, exactness, addition, quantiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.histogram import LATENCY_EDGES_NS, ROWS_EDGES, Histogram

_VALUES = st.lists(st.integers(0, 2**50), max_size=80)


def _filled(values: list[int], edges: tuple[int, ...] = LATENCY_EDGES_NS) -> Histogram:
    histogram = Histogram(edges)
    histogram.observe(np.array(values, np.int64))
    return histogram


def _state(histogram: Histogram) -> tuple[list[int], int, int]:
    return histogram.counts.tolist(), histogram.sum, histogram.count


def test_latency_edges_reach_from_50_us_to_30_s_and_rows_to_the_largest_batch() -> None:
    assert (LATENCY_EDGES_NS[0], LATENCY_EDGES_NS[-1]) == (50_000, 30 * 10**9)
    assert (ROWS_EDGES[0], ROWS_EDGES[-1]) == (1, 65_536)
    for edges in (LATENCY_EDGES_NS, ROWS_EDGES):
        assert list(edges) == sorted(set(edges))


@given(_VALUES)
def test_observing_an_array_is_observing_its_values_one_by_one(values: list[int]) -> None:
    single = Histogram(LATENCY_EDGES_NS)
    for value in values:
        single.observe_one(value)
    assert _state(_filled(values)) == _state(single)


@given(_VALUES)
def test_an_edge_counts_exactly_the_values_that_do_not_exceed_it(values: list[int]) -> None:
    values = [*values, *LATENCY_EDGES_NS, *(edge + 1 for edge in LATENCY_EDGES_NS)]
    histogram = _filled(values)
    assert list(histogram.cumulative()) == [(edge, sum(value <= edge for value in values)) for edge in LATENCY_EDGES_NS]
    assert histogram.count == len(values)
    assert histogram.sum == sum(values)


@given(st.lists(_VALUES, max_size=5))
def test_merging_parts_is_observing_the_whole(parts: list[list[int]]) -> None:
    merged = Histogram(LATENCY_EDGES_NS)
    for part in parts:
        merged.merge(_filled(part))
    assert _state(merged) == _state(_filled([value for part in parts for value in part]))


@given(st.integers(0, 2**50), st.integers(0, 1000))
def test_one_value_many_times(value: int, times: int) -> None:
    histogram = Histogram(LATENCY_EDGES_NS)
    histogram.observe_one(value, times)
    assert _state(histogram) == _state(_filled([value] * times))


def test_a_sum_beyond_64_bits_stays_exact() -> None:
    histogram = Histogram((1,))
    histogram.observe_one(2**62 - 1, 7)
    histogram.observe(np.array([2**62 + 1], np.int64))
    assert histogram.sum == 7 * (2**62 - 1) + 2**62 + 1


def test_a_copy_is_independent() -> None:
    histogram = _filled([1, 2, 3], (2, 5))
    twin = histogram.copy()
    histogram.observe_one(4)
    assert _state(twin) == ([2, 1, 0], 6, 3)
    assert _state(histogram) == ([2, 2, 0], 10, 4)


@pytest.mark.parametrize("edges", [(), (2, 1), (1, 1)])
def test_edges_must_ascend(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Histogram(edges)


def test_histograms_with_other_edges_are_not_added() -> None:
    with pytest.raises(ValueError, match="different edges"):
        Histogram((1, 2)).merge(Histogram((1, 3)))


def test_quantiles_interpolate_within_a_bucket() -> None:
    histogram = _filled([5] * 10 + [15] * 10, (10, 20, 30))
    assert histogram.quantile(0.0) == 0
    assert histogram.quantile(0.25) == 5
    assert histogram.quantile(0.5) == 10
    assert histogram.quantile(0.75) == 15
    assert histogram.quantile(1.0) == 20


def test_a_quantile_above_the_last_edge_is_the_last_edge() -> None:
    assert _filled([99], (10, 20)).quantile(0.5) == 20


def test_no_values_have_no_quantile() -> None:
    assert Histogram((1,)).quantile(0.5) is None


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_quantile_is_a_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Histogram((1,)).quantile(ratio)


@given(st.lists(st.integers(1, 30 * 10**9), min_size=1, max_size=80), st.floats(0.001, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[int], ratio: float) -> None:
    estimate = _filled(values).quantile(ratio)
    true = sorted(values)[max(0, int(np.ceil(ratio * len(values))) - 1)]
    upper = next(edge for edge in LATENCY_EDGES_NS if true <= edge)
    lower = max((edge for edge in LATENCY_EDGES_NS if edge < true), default=0)
    assert estimate is not None
    assert lower <= estimate <= upper * (1 + 1e-9)
