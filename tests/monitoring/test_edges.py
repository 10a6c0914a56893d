"""Frozen bins: of equal mass where values allow it, atoms by themselves, and the same comparison in every type."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from server.monitoring.edges import BINS, MAX_ROWS, MAX_SCALE, MAX_UNITS, MIN_SCALE, numeric
from server.monitoring.edges import edges as edges_of
from server.monitoring.streams import SUM_SCALE

Values = NDArray[np.float32] | NDArray[np.float64]


def filled(values: Values) -> list[int]:
    """How many values each bin has, one by one."""
    stream = numeric("x", "input", values)
    bins = [0] * stream.bins
    for value in values.tolist():
        bins[sum(value > edge for edge in stream.edges)] += 1
    return bins


def test_sums_of_every_row_there_may_be_fit_into_64_bits() -> None:
    assert MAX_ROWS * MAX_UNITS * SUM_SCALE < 2**63
    assert np.isfinite(SUM_SCALE / MIN_SCALE)
    assert SUM_SCALE / MAX_SCALE > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_of_distinct_values_have_equal_mass(dtype: Any) -> None:
    values = np.random.default_rng(1).standard_t(2, 10_000).astype(dtype)
    assert filled(values) == [1000] * BINS


def test_low_high_quantiles_center_and_scale_are_values_that_occurred() -> None:
    stream = numeric("x", "output", np.arange(1, 2001, dtype=np.float32)[::-1])
    assert (stream.low, stream.high) == (1.0, 2000.0)
    assert stream.winsor == (2.0, 1998.0)
    assert (stream.center, stream.scale) == (1000.0, 1000.0)
    assert stream.edges == tuple(200.0 * step for step in range(1, 10))


def test_a_constant_column_has_one_bin() -> None:
    stream = numeric("x", "input", np.full(100, 7.0))
    assert (stream.edges, stream.bins) == ((), 1)
    assert (stream.low, stream.high, stream.center, stream.scale) == (7.0, 7.0, 7.0, 7.0)
    assert numeric("x", "input", np.zeros(100)).scale == 1.0


def test_a_column_without_numbers_has_nothing_in_range() -> None:
    stream = numeric("x", "input", np.array([], dtype=np.float32))
    assert (stream.bins, stream.low, stream.high, stream.scale) == (1, np.inf, np.inf, 1.0)


def test_an_atom_has_its_own_bin_and_what_lies_beside_it_has_others() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([np.zeros(3000), rng.normal(0, 1, 7000)]).astype(np.float32)
    stream = numeric("x", "input", values)
    at = stream.edges.index(0.0)
    below = np.nextafter(np.float32(0), np.float32(-1))
    assert stream.edges[at - 1] == float(below)
    bins = filled(values)
    assert bins[at] == 3000
    # a half of 7,000 either side is 3.5 bins of 1,000 each: 3 or 4 of equal mass
    assert all(800 < count < 1250 for place, count in enumerate(bins) if place != at)


def test_atoms_beside_each_other_leave_no_empty_bin() -> None:
    values = np.array([0.0] * 40 + [1.0] * 40 + [0.5] * 20)
    assert numeric("x", "input", values).edges == (0.0, 0.5)
    assert filled(values) == [40, 20, 40]


def test_a_flag_that_is_rarely_set_keeps_its_bin_and_one_that_hardly_ever_is_has_none() -> None:
    assert filled(np.array([0.0] * 1999 + [1.0])) == [1999, 1]
    assert filled(np.array([1.0] * 1999 + [0.0])) == [1, 1999]
    assert filled(np.array([0.0] * 2001 + [1.0])) == [2002]
    assert filled(np.array([0.0] * 2001 + [0.5] + [1.0] * 1999)) == [2001, 2000]


def test_two_edges_that_are_one_come_once() -> None:
    # 9 % of the mass is no atom, and still spans the ends of two bins' worth of ranks
    values = np.repeat(np.arange(12.0), [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1])
    stream = numeric("x", "input", values)
    assert len(set(stream.edges)) == len(stream.edges)
    assert sum(filled(values)) == 100
    assert min(filled(values)) > 0


def test_scale_stands_in_where_the_quartiles_are_equal() -> None:
    mostly = np.array([5.0] * 996 + [1.0, 1.0, 9.0, 9.0])
    assert numeric("x", "input", mostly).scale == 8.0  # the winsorised range
    rarely = np.array([5.0] * 9999 + [6.0])
    assert numeric("x", "input", rarely).scale == 1.0  # the whole range
    assert numeric("x", "input", np.array([-3.0])).scale == 3.0


def test_heavy_tails_huge_and_tiny_values_have_a_scale_that_sums_can_be_kept_in() -> None:
    heavy = np.concatenate([np.linspace(0, 1, 900), np.full(100, 1e300)])
    assert numeric("x", "input", heavy).scale == pytest.approx(1e300 / MAX_UNITS)
    huge = np.array([-1.7e308, 0.0, 1.7e308])
    assert numeric("x", "input", huge).scale == MAX_SCALE
    tiny = np.array([5e-324, 1e-323, 1.5e-323])
    assert numeric("x", "input", tiny).scale == MIN_SCALE


def test_denormals_are_told_apart() -> None:
    values = (np.arange(1, 1001) * np.float32(1e-45)).astype(np.float32)
    assert filled(values) == [100] * BINS


@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 200),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0]),
    )
)
def test_edges_are_exact_in_the_columns_own_type_and_bins_hold_everything(values: NDArray[np.float32]) -> None:
    edges = edges_of(np.sort(values))
    assert list(edges) == sorted(set(edges))
    assert all(float(np.float32(edge)) == edge for edge in edges)
    assert len(edges) <= 2 * BINS + 2
    assert sum(filled(values)) == len(values)
    assert min(filled(values)) > 0
    stream = numeric("x", "input", values)
    assert stream.low <= stream.winsor[0] <= stream.center <= stream.winsor[1] <= stream.high
    assert max(stream.winsor[1] - stream.center, stream.center - stream.winsor[0]) <= stream.scale * MAX_UNITS * (1 + 1e-9)
    distinct, counts = np.unique(values, return_counts=True)
    for atom in distinct[counts * BINS >= len(values)]:
        place = sum(float(atom) > edge for edge in edges)
        alone = [value for value in distinct.tolist() if sum(value > edge for edge in edges) == place]
        assert alone == [float(atom)]
