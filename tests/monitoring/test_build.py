"""Baselines of rows: streams, counts, hours of the week, and what a window is compared with."""

from datetime import UTC, datetime

import numpy as np
import pytest

from server.core.settings import ModelSettings
from server.monitoring import build as building
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.build import build, hour_rows, reference
from server.monitoring.streams import Category, Layout, Numeric
from tests.monitoring.plain_rows import HOUR_US, rows_of, texts

PLAIN = ModelSettings()
TOLERANT = ModelSettings.model_validate({"monitoring": {"tolerance": 1.0}})
"""An hour needs 10 rows."""


def test_streams_stand_in_the_order_of_tensors_inputs_first() -> None:
    samples = rows_of(
        {"t": texts(b"a", b"b"), "x": np.ones((2, 2), dtype=np.float32)},
        {"score": np.array([[0.1], [0.9]])},
    )
    made = build(samples, PLAIN)
    assert [(stream.name, stream.origin) for stream in made.streams] == [
        ("t", "input"),
        ("x[0]", "input"),
        ("x[1]", "input"),
        ("output:score", "output"),
    ]
    assert (made.rows, made.origin, made.quality, made.latency_us, made.digest) == (2, "registration", None, (0, 0, 0), "")


def test_what_is_known_beside_the_rows_is_kept() -> None:
    quality = ReferenceQuality("binary", 2, {"auc": 0.5}, 0.1, 0.2, 2)
    made = build(rows_of({"x": np.ones((2, 1))}), PLAIN, quality=quality, latency_us=(1.0, 2.0, 3.0), origin="learned")
    assert (made.quality, made.latency_us, made.origin) == (quality, (1.0, 2.0, 3.0), "learned")


def test_pieces_are_one_set_of_rows() -> None:
    values = np.random.default_rng(4).normal(size=(300, 2))
    whole = build(rows_of({"x": values}), PLAIN)
    pieces = build([rows_of({"x": part}) for part in np.array_split(values, 7)], PLAIN)
    assert whole.streams == pieces.streams
    assert whole.counts.tobytes() == pieces.counts.tobytes()


def test_bins_have_equal_mass_and_missing_values_have_none() -> None:
    values = np.random.default_rng(5).normal(size=(1000, 1)).astype(np.float32)
    values[:100] = np.nan
    values[100:110] = np.inf
    made = build(rows_of({"x": values}), PLAIN)
    cells = made.layout.cells(made.counts, 0)
    assert cells.bins.tolist() == [89] * 10
    assert (cells.missing, cells.non_finite, cells.below, cells.above, cells.rows) == (100, 10, 0, 0, 1000)


def test_what_features_had_no_value_for_makes_no_bins() -> None:
    statuses = np.array([[4 | 128]] * 50 + [[0]] * 50, dtype=np.uint8)
    values = np.concatenate([np.full(50, -1.0), np.arange(50.0)])[:, None]
    made = build(rows_of({"f": values}, features=("f",), statuses=statuses), PLAIN)
    (stream,) = made.streams
    assert isinstance(stream, Numeric)
    assert (stream.low, stream.origin) == (0.0, "feature")
    assert made.layout.cells(made.counts, 0).missing == 50


def test_the_unseen_cell_is_how_often_a_further_row_brings_a_new_category() -> None:
    """Left out one at a time, exactly the categories of one row are not in the rest."""
    values = [b"a"] * 60 + [b"b"] * 38 + [b"once", b"also once"]
    made = build(rows_of({"t": texts(*values)}), PLAIN)
    (stream,) = made.streams
    assert isinstance(stream, Category)
    assert stream.vocabulary == ("a", "b")
    assert len(stream.others) == 2
    cells = made.layout.cells(made.counts, 0)
    assert (cells.bins.tolist(), cells.unseen) == ([60, 38, 0], 2)
    left_out = sum(values.count(value) == 1 for value in values)
    assert cells.unseen == left_out


def test_the_most_frequent_have_a_cell_and_the_rest_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "VOCABULARY", 2)
    monkeypatch.setattr(building, "OTHERS", 1)
    values = [b"a"] * 5 + [b"c"] * 4 + [b"b"] * 4 + [b"d"] * 2 + [b"e"] * 2
    made = build(rows_of({"t": texts(*values)}), PLAIN)
    (stream,) = made.streams
    assert isinstance(stream, Category)
    # of equals the first by name, so that the same rows in any order are the same baseline
    assert (stream.vocabulary, len(stream.others)) == (("a", "b"), 1)
    cells = made.layout.cells(made.counts, 0)
    assert (cells.bins.tolist(), cells.unseen) == ([5, 4, 4], 4)


def test_what_is_rarer_than_a_window_can_tell_has_no_cell_of_its_own() -> None:
    made = build(rows_of({"t": texts(*[b"a"] * 9990, *[b"b"] * 6, *[b"c"] * 4)}), PLAIN)
    (stream,) = made.streams
    assert isinstance(stream, Category)
    assert stream.vocabulary == ("a", "b")


def test_nothing_to_count_is_said() -> None:
    with pytest.raises(ValueError, match="there are none"):
        build([], PLAIN)
    with pytest.raises(ValueError, match="nothing to monitor"):
        build(rows_of({"t": texts(b"a", b"b").reshape(1, 2)}), PLAIN)


def test_more_rows_than_sums_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MAX_ROWS", 1)
    with pytest.raises(ValueError, match="2 rows are more"):
        build(rows_of({"x": np.ones((2, 1))}), PLAIN)


def test_a_tensor_whose_rows_differ_in_shape_has_no_streams() -> None:
    pieces = [rows_of({"x": np.ones((2, size)), "y": np.ones((2, 1))}) for size in (1, 3)]
    assert [stream.name for stream in build(pieces, PLAIN).streams] == ["y"]
    assert [stream.name for stream in build(pieces[1], PLAIN, free={"x"}).streams] == ["y"]


def test_an_optional_input_that_some_rows_leave_out_is_missing_in_them() -> None:
    made = build([rows_of({"y": np.ones((2, 1))}), rows_of({"y": np.ones((3, 1)), "x": np.ones((3, 1))})], PLAIN)
    assert [stream.name for stream in made.streams] == ["y", "x"]
    assert made.layout.cells(made.counts, 1).missing == 2


def test_of_two_tensors_that_claim_a_name_the_first_has_it() -> None:
    made = build(rows_of({"x": np.ones((2, 2)), "x[0]": np.zeros((2, 1))}), PLAIN)
    assert [stream.name for stream in made.streams] == ["x[0]", "x[1]"]
    assert made.layout.cells(made.counts, 0).rows == 2
    assert isinstance(made.streams[0], Numeric)
    assert made.streams[0].low == 1.0


def at(*hours: int, rows: int = 10) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Instants of so many rows in each of these hours since 1970."""
    return np.repeat(np.array(hours, dtype=np.int64) * HOUR_US + 5, rows)


def test_hours_of_the_week_begin_on_monday_at_midnight_utc() -> None:
    monday = int(datetime(2013, 6, 3, tzinfo=UTC).timestamp()) // 3600
    times = at(monday, monday + 25, monday + 167)
    made = build(rows_of({"x": np.arange(30.0)[:, None]}, time_us=times), TOLERANT)
    assert sorted(made.hourly) == [0, 25, 167]
    assert sum(made.hourly.values(), start=made.layout.empty()).tobytes() == made.counts.tobytes()


def test_an_hour_needs_rows_enough_to_be_quieter_than_what_is_tolerated() -> None:
    assert hour_rows(TOLERANT) == 10
    assert hour_rows(PLAIN) == 939
    times = np.concatenate([at(96, rows=10), at(97, rows=9)])
    made = build(rows_of({"x": np.arange(19.0)[:, None]}, time_us=times), TOLERANT)
    assert sorted(made.hourly) == [0]
    assert build(rows_of({"x": np.arange(19.0)[:, None]}, time_us=times), TOLERANT, timed=False).hourly == {}


def hourly() -> Baseline:
    values = np.concatenate([np.zeros(10), np.ones(20), np.full(10, 2.0)])[:, None]
    times = np.concatenate([at(96), at(97, rows=20), at(98)])
    return build(rows_of({"x": values}, time_us=times), TOLERANT)


@pytest.mark.parametrize(
    ("start_h", "end_h", "which", "bins"),
    [
        (96, 97, "hours_of_week", [10, 0, 0]),
        (96.5, 96.75, "hours_of_week", [10, 0, 0]),
        (96, 98, "hours_of_week", [10, 20, 0]),
        (97.5, 98.5, "hours_of_week", [0, 20, 10]),
        (96 + 168 * 2000, 97 + 168 * 2000, "hours_of_week", [10, 0, 0]),
        (95, 97, "all", [10, 20, 10]),
        (96, 96 + 168, "all", [10, 20, 10]),
        (96, 96, "hours_of_week", [10, 0, 0]),
        (-72, -71, "hours_of_week", [10, 0, 0]),
    ],
)
def test_a_window_is_compared_with_the_hours_it_touches(start_h: float, end_h: float, which: str, bins: list[int]) -> None:
    made = hourly()
    counts, said = reference(made, round(start_h * HOUR_US), round(end_h * HOUR_US))
    assert (said, made.layout.cells(counts, 0).bins.tolist()) == (which, bins)


def test_a_layout_is_made_once_per_baseline() -> None:
    made = hourly()
    assert made.layout is made.layout
    assert isinstance(made.layout, Layout)
