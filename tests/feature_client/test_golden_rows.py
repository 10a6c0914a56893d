"""Golden rows have what breaks functions, and are compared to the bit."""

import numpy as np
import pytest

from feature_client.aggregation import count, last, mean
from feature_client.errors import DefinitionError
from feature_client.golden_rows import golden_inputs, golden_outputs, matches, shown, ulps_apart, unequal
from feature_client.schema import DTYPES, Array, Entity, EventLog, Feature
from feature_client.view import View, feature_view
from tests.feature_client import views
from tests.feature_client.views import bytes_column


def of_types(*names: str) -> View:
    return View("v", 1, "request", {f"x{at}": name for at, name in enumerate(names)}, (Feature("y", "int8", 0),), dict)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_has_its_special_and_its_ordinary_values(dtype: str) -> None:
    column = golden_inputs(of_types(dtype))["x0"]
    assert column.dtype == DTYPES[dtype]
    assert column.shape == (64,)
    kind = column.dtype.kind
    if kind == "f":
        limits = np.finfo(column.dtype)
        assert np.isnan(column).any()
        assert {np.inf, -np.inf, 0.0, limits.max, limits.min, limits.tiny} <= set(column.tolist())
        assert set(np.signbit(column[column == 0]).tolist()) == {True, False}
        assert (np.abs(column[np.isfinite(column)]) < limits.tiny).sum() > 2
    elif kind == "O":
        assert {None, b"", b"never seen before", "東京".encode()} <= set(column.tolist())
        assert sum(value in (b"JFK", b"LGA", b"UA", b"DL", b"N12345") for value in column.tolist()) >= 16
    elif kind in "iu":
        assert {0, np.iinfo(column.dtype).max, np.iinfo(column.dtype).min} <= set(column.tolist())
    else:
        assert set(column.tolist()) == {True, False}


def test_golden_inputs_are_the_same_for_the_same_seed() -> None:
    first, again = (golden_inputs(of_types("float64", "float64")) for _ in range(2))
    assert not unequal(first["x0"], again["x0"]).any()
    assert unequal(first["x0"], first["x1"]).any()
    assert unequal(first["x0"], golden_inputs(of_types("float64"), seed=1)["x0"]).any()
    assert len(golden_inputs(of_types("bytes"), rows=3)["x0"]) == 3


def test_a_stored_view_is_given_aggregates() -> None:
    assert {name: column.dtype for name, column in golden_inputs(views.aircraft).items()} == {
        "flights": np.int64,
        "delay": np.float64,
        "late": np.float64,
        "latest": np.float64,
        "seats": np.int64,
        "carrier": object,
    }


def test_categories_that_a_state_knows_are_asked_for() -> None:
    column = golden_inputs(
        of_types("bytes"), state={"known": bytes_column(b"B6", None), "more": np.array([b"EV"]), "n": np.ones(1)}
    )
    assert {b"B6", b"EV"} <= set(column["x0"].tolist())


def test_a_view_without_inputs_has_no_rows() -> None:
    @feature_view(inputs={}, features=[Feature("y", "float64", 0.0)])
    def view() -> dict[str, Array]:
        return {"y": np.zeros(0)}

    assert golden_inputs(view) == {}
    assert golden_outputs(view, {})["y"].shape == (0,)


def test_only_a_row_alone_or_the_order_may_tell() -> None:
    entity, log = Entity("e", {"k": "int64"}), EventLog("l", {"k": "int64", "event_us": "int64", "x": "float64"})

    @feature_view(
        entity=entity,
        source=log,
        inputs={"n": count(1), "m": mean("x", 1), "x": last("x")},
        features=[Feature("y", "float64", 0.0)],
    )
    def lonely(n: Array, m: Array, x: Array) -> dict[str, Array]:
        return {"y": np.where(len(n) == 1, 1.0, 0.0) * np.ones(len(n))}

    @feature_view(inputs={"x": "bool"}, features=[Feature("y", "float64", 0.0)])
    def first(x: Array) -> dict[str, Array]:
        made = np.zeros(len(x))
        made[0] = 1.0
        return {"y": made if len(x) > 1 else np.zeros(1) + (1.0 if len(x) == 1 else 0.0)}

    with pytest.raises(DefinitionError, match=r"golden row 0 gives 0.0 with the others and 1.0 alone"):
        golden_outputs(lonely, golden_inputs(lonely))
    with pytest.raises(DefinitionError, match="with the others and"):
        golden_outputs(first, golden_inputs(first))


def test_one_row_backwards_is_the_same_row() -> None:
    made = golden_outputs(views.standardised, golden_inputs(views.standardised, rows=1), views.STATE)
    assert made["late_z"].shape == (1,)


def test_ulps_count_the_values_between() -> None:
    for name in ("float16", "float32", "float64"):
        one = np.array([1.0, -1.0, 0.0, np.nan, np.inf, 2.0], dtype=name)
        other = np.nextafter(np.nextafter(one, np.array(9, name)), np.array(9, name))
        other[3:5] = -np.nan, np.inf
        assert ulps_apart(one, other) == [2, 2, 2, 0, 0, 2]
        assert ulps_apart(one, -one)[2] == 1
    assert ulps_apart(np.array([1.0]), np.array([np.nan])) == [None]
    assert ulps_apart(np.array([1, 2, 3]), np.array([1, 5, -3])) == [0, 3, 6]
    assert ulps_apart(np.array([True]), np.array([False])) == [1]
    assert ulps_apart(bytes_column(b"a", None), bytes_column(b"b", None)) == [None, 0]
    pairs = np.array([[1.0, 2.0], [np.nan, 3.0]]), np.array([[1.0, np.nextafter(2.0, 3)], [np.nan, np.nextafter(3.0, 9)]])
    assert ulps_apart(*pairs) == [1, 1]


def test_nans_are_one_value_and_zeros_are_two() -> None:
    assert unequal(np.array([np.nan, 0.0]), np.array([-np.nan, -0.0])).tolist() == [False, True]
    assert unequal(bytes_column(b"", None), bytes_column(None, None)).tolist() == [True, False]


def test_values_are_shown_to_the_last_bit() -> None:
    assert [shown(value) for value in (np.float32(0.1), b"a", None, np.array([1.5, 2]))] == [
        "0.10000000149011612",
        "b'a'",
        "None",
        "[1.5, 2.0]",
    ]


def test_a_recorded_column_must_be_one_of_its_feature() -> None:
    feature = Feature("y", "float32", 0.0, shape=(2,))
    assert matches(feature, np.zeros((3, 2), np.float32), 3)
    assert not matches(feature, np.zeros((3, 2)), 3)
    assert not matches(feature, np.zeros(3, np.float32), 3)
