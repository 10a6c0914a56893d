"""Counting: what each cell has, and the same bits whatever the blocks, the order and the type."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_client.schema import DEFAULTED, Status
from server.core.settings import ModelSettings
from server.monitoring import counting
from server.monitoring.build import build
from server.monitoring.counting import Counter
from server.monitoring.samples import Samples
from server.monitoring.streams import SUM_SCALE, Category, Cells, Counts, Layout, Numeric
from tests.monitoring.plain_rows import rows_of, texts

PLAIN = ModelSettings()
NUMBER = Numeric("x", "input", (0.0, 1.0, 2.5), -1.0, 4.0, (-0.5, 3.0), 1.0, 2.0)
TEXT = Category("t", "input", ("a", "b"), tuple(sorted({3, 5})))
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 2.5, -1.0, 4.0, 5e-324, 1e-45, 3.4e38, -3.4e38]


def cells(stream: Any, samples: Samples, model: ModelSettings = PLAIN) -> Cells:
    layout = Layout((stream,))
    return layout.cells(Counter(layout, model).count(samples), 0)


def by_hand(stream: Numeric, values: list[float]) -> list[int]:
    """The cells of a stream, value by value."""
    bins, sums = [0] * stream.bins, [0] * stream.bins
    missing = non_finite = below = above = 0
    for value in values:
        if np.isnan(value):
            missing += 1
        elif np.isinf(value):
            non_finite += 1
        else:
            place = sum(value > edge for edge in stream.edges)
            bins[place] += 1
            below += value < stream.low
            above += value > stream.high
            held = min(max(value, stream.winsor[0]), stream.winsor[1])
            sums[place] += round((held - stream.center) * (SUM_SCALE / stream.scale))
    return [*bins, missing, non_finite, below, above, *sums]


def counted(stream: Numeric, values: NDArray[Any]) -> list[int]:
    layout = Layout((stream,))
    return list(map(int, Counter(layout, PLAIN).count(rows_of({"x": values[:, None]}))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_cell_of_a_number_is_what_it_is_by_hand(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(1, 2, 500), SPECIAL, np.repeat([0.0, 1.0, 2.5], 20)]).astype(dtype)
    assert counted(NUMBER, values) == by_hand(NUMBER, values.astype(np.float64).tolist())


@given(
    st.lists(st.floats(width=32) | st.sampled_from([0.1, 0.3, float(np.float32(0.1))]).map(np.float32).map(float), max_size=50),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64, min_value=-1e39, max_value=1e39), max_size=4),
)
@settings(max_examples=100)
def test_numbers_of_32_and_64_bits_are_compared_alike_with_any_edge(values: list[float], edges: list[float]) -> None:
    """Edges that float32 does not have, and those beyond its range, too."""
    stream = Numeric("x", "input", tuple(sorted({*edges, 0.1})), 0.1, 0.3, (-1.0, 1.0), 0.1, 0.7)
    narrow = np.array(values, dtype=np.float32)
    want = by_hand(stream, narrow.astype(np.float64).tolist())
    assert counted(stream, narrow) == want
    assert counted(stream, narrow.astype(np.float64)) == want


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_numbers_of_every_type_are_counted(dtype: Any) -> None:
    values = np.array([0, 1, 2, 3, 5], dtype=dtype)
    assert counted(NUMBER, values) == by_hand(NUMBER, values.astype(np.float64).tolist())


def test_a_column_without_numbers_in_its_baseline_has_all_that_comes_out_of_range() -> None:
    stream = Numeric("x", "input", (), np.inf, np.inf, (0.0, 0.0), 0.0, 1.0)
    for dtype in (np.float32, np.float64):
        own = cells(stream, rows_of({"x": np.array([[1.0], [-np.inf], [np.inf], [np.finfo(dtype).max]], dtype=dtype)}))
        assert (own.bins.tolist(), own.below, own.above, own.non_finite) == ([2], 2, 0, 2)


def test_sums_stay_within_64_bits_whatever_the_stream_says() -> None:
    wild = Numeric("x", "input", (), -1e308, 1e308, (-1e308, 1e308), 0.0, 2.0**-960)
    rows = 5000
    own = cells(wild, rows_of({"x": np.full((rows, 1), 1e308)}))
    assert own.sums.tolist() == [rows * 2**20 * SUM_SCALE]


def base(rows: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    packed = rng.standard_t(2, (rows, 3)).astype(np.float32)
    packed[rng.random((rows, 3)) < 0.1] = np.nan
    statuses = np.where(rng.random((rows, 2)) < 0.1, Status.NOT_FOUND | DEFAULTED, 0).astype(np.uint8)
    words = np.array([b"a", b"b", b"c", b"", None, b"\xff", "d", "\ufffd"], dtype=object)
    return rows_of(
        {
            "v": packed,
            "age": rng.integers(0, 9, (rows, 1)),
            "t": words[rng.integers(0, len(words), (rows, 1))],
            "flag": rng.random((rows, 1)) < 0.3,
        },
        {"score": rng.random((rows, 1))},
        time_us=rng.integers(0, 10**15, rows),
        features=("age", "t"),
        statuses=statuses,
    )


BASELINE = build(base(2000, 1), PLAIN)
WINDOW = base(700, 2)
AT_ONCE = Counter(BASELINE.layout, PLAIN).count(WINDOW)


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_any_blocks_in_any_order_add_up_to_the_same_bits(seed: int, pieces: int) -> None:
    rng = np.random.default_rng(seed)
    counter = Counter(BASELINE.layout, PLAIN)
    total: Counts = BASELINE.layout.empty()
    shuffled = rng.permutation(WINDOW.rows)
    for chosen in np.array_split(shuffled, np.sort(rng.integers(0, WINDOW.rows, pieces - 1))):
        total += counter.count(WINDOW.part(chosen))
    assert total.tobytes() == AT_ONCE.tobytes()


def test_every_stream_counts_every_row() -> None:
    for index, _ in BASELINE.layout:
        assert BASELINE.layout.cells(AT_ONCE, index).rows == WINDOW.rows
        assert BASELINE.layout.cells(BASELINE.counts, index).rows == 2000


def test_more_rows_and_columns_than_are_sorted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BLOCK_ROWS", 64)
    monkeypatch.setattr(counting, "_BLOCK_VALUES", 64)
    assert Counter(BASELINE.layout, PLAIN).count(WINDOW).tobytes() == AT_ONCE.tobytes()


def test_columns_that_a_sample_does_not_have_are_missing_in_all_its_rows() -> None:
    layout = Layout((NUMBER, TEXT))
    counts = Counter(layout, PLAIN).count(rows_of({"other": np.ones((7, 1))}))
    assert [layout.cells(counts, index).missing for index in (0, 1)] == [7, 7]
    assert counts.sum() == 14


def test_a_column_of_texts_where_the_baseline_has_numbers_is_missing() -> None:
    assert cells(NUMBER, rows_of({"x": texts(b"1", b"2")})).missing == 2


def test_what_is_ignored_since_counts_nothing() -> None:
    ignoring = ModelSettings.model_validate({"monitoring": {"ignore": ["x", "t"]}})
    layout = Layout((NUMBER, TEXT))
    assert not Counter(layout, ignoring).count(rows_of({"x": np.ones((3, 1)), "t": texts(b"a", b"b", b"c")})).any()


def test_categories_are_in_the_vocabulary_other_unseen_or_missing() -> None:
    from_baseline = build(rows_of({"t": texts(*[b"a"] * 9000, *[b"b"] * 4000, *[b"rare"] * 2, b"once")}), PLAIN)
    (stream,) = from_baseline.streams
    assert isinstance(stream, Category)
    assert stream.vocabulary == ("a", "b")
    own = cells(stream, rows_of({"t": texts(b"b", b"rare", b"once", b"new", b"", None, "a")}))
    assert (own.bins.tolist(), own.unseen, own.missing, own.rows) == ([1, 1, 2], 1, 2, 7)


def test_codes_are_categories_of_a_baseline_that_has_them_as_such_whatever_settings_say_now() -> None:
    codes = Category("x", "input", ("-1", "7"))
    own = cells(codes, rows_of({"x": np.array([[7], [-1], [7], [8]])}))
    assert (own.bins.tolist(), own.unseen) == ([1, 2, 0], 1)
    flags = Category("x", "input", ("0", "1"))
    assert cells(flags, rows_of({"x": np.array([[True], [False], [True]])})).bins.tolist() == [1, 2, 0]


def test_no_rows_count_nothing() -> None:
    assert not Counter(BASELINE.layout, PLAIN).count(WINDOW.part(slice(0, 0))).any()
