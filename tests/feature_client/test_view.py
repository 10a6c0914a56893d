"""A view's function on columns of any length, what it may give, and what cannot be declared."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.aggregation import count, last, mean, rate
from feature_client.errors import DefinitionError, EventError
from feature_client.schema import DTYPES, Array, Columns, Entity, EventLog, Feature
from feature_client.view import View, feature_view
from tests.feature_client.views import AIRCRAFT, FLIGHTS, STATE, aircraft, bytes_column, planned, route, standardised

FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -0.0, np.nan])
ROWS = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), FLOATS, FLOATS, FLOATS, st.integers(0, 999), st.none() | st.binary(max_size=3)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_one_row_is_what_it_is_among_others(rows: list[tuple[Any, ...]]) -> None:
    kinds = ("i8", "f8", "f8", "f8", "i8", "O")
    columns = [np.array(column, dtype=kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
    named = dict(zip(("flights", "delay", "late", "latest", "seats", "carrier"), columns, strict=True))
    whole = aircraft.compute(named)
    assert tuple(whole) == aircraft.names
    for at in range(len(rows)):
        alone = aircraft.compute({name: column[at : at + 1] for name, column in named.items()})
        for name, column in whole.items():
            assert column.flags.c_contiguous
            if column.dtype == object:
                assert alone[name].tolist() == [column[at]]
            else:
                assert alone[name].tobytes() == column[at : at + 1].tobytes()


def test_no_rows_make_no_rows() -> None:
    made = planned.compute(
        {"distance_mi": np.zeros(0), "speed_kn": np.zeros(0), "tail_delay": np.zeros(0, np.float32)},
    )
    assert {name: (column.dtype, column.shape) for name, column in made.items()} == dict.fromkeys(
        planned.names, (np.dtype("f4"), (0,))
    )


def test_state_is_given_to_model_views() -> None:
    made = standardised.compute({"distance_mi": np.array([1250.0]), "tail_late": np.array([0.5])}, STATE)
    assert (made["distance_z"].tolist(), made["late_z"].tolist()) == ([1.0], [2.0])
    assert standardised.fit is not None
    learnt = standardised.fit(distance_mi=np.array([1.0, 3.0]), tail_late=np.array([0.5, 0.5]))
    assert learnt["distance"].tolist() == [2.0, 1.0 + 1e-9]


def test_what_a_view_is() -> None:
    assert [(view.ref, view.kind) for view in (aircraft, route, planned, standardised)] == [
        ("aircraft@2", "stored"),
        ("route@1", "stored"),
        ("planned@1", "request"),
        ("standardised@1", "model"),
    ]
    assert route.names == ("route_flights", "route_delay")
    assert feature_view(features=[Feature("a", "int64", 0)], inputs={"a": "int64"}, name="other")(dict).ref == "other@1"


def request_view(function: Callable[..., Any], feature: Feature | None = None, dtype: str = "float64") -> View:
    return feature_view(features=[feature or Feature("y", "float32", 0)], inputs={"x": dtype}, name="v")(function)


def y_of(function: Callable[..., Any], feature: Feature, *values: Any, dtype: str = "float64") -> Array:
    return request_view(lambda x: {"y": function(x)}, feature, dtype).compute({"x": np.array(values, DTYPES[dtype])})["y"]


WRONG: list[tuple[Callable[[Array], Any], str]] = [
    (lambda x: None, "'v@1' must give exactly y; it gave NoneType"),
    (lambda x: {}, "exactly y; it gave $"),
    (lambda x: {"y": x, "a": x}, "exactly y; it gave a, y"),
    (lambda x: {"y": 1.0}, r"'y' of 'v@1' must be \[3, \*\[\]\], not float"),
    (lambda x: {"y": x.tolist()}, "not list"),
    (lambda x: {"y": x[:2]}, r"not \[2\]"),
    (lambda x: {"y": x.sum()}, "must be"),
    (lambda x: {"y": x[:, None]}, r"not \[3, 1\]"),
    (lambda x: {"y": x.astype(str)}, "must be float32, not <U"),
    (lambda x: {"y": x * 1j}, "must be float32, not complex128"),
    (lambda x: {"y": x.astype(object)}, "must be float32, not object"),
]


@pytest.mark.parametrize(("function", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_a_function_may_not_give(function: Callable[[Array], Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        request_view(function).compute({"x": np.arange(3.0)})


def test_results_become_the_declared_type() -> None:
    integer = Feature("y", "int32", 0)
    assert y_of(lambda x: x > 1, integer, 1.0, 2.0).tolist() == [0, 1]
    assert y_of(lambda x: x, Feature("y", "float32", 0), 1e300, 0.1).tolist() == [np.inf, float(np.float32(0.1))]
    assert y_of(lambda x: x.astype(">f8"), Feature("y", "float64", 0), 1.5).dtype == np.dtype("=f8")
    assert y_of(lambda x: np.stack([x, -x])[:, ::1].T, Feature("y", "float64", 0, shape=(2,)), 1.5).flags.c_contiguous
    with pytest.raises(DefinitionError, match="must be int32, not float64"):
        y_of(lambda x: x, integer, 1.0)
    with pytest.raises(DefinitionError, match="must be bool, not int64"):
        y_of(lambda x: x.astype(np.int64), Feature("y", "bool", False), 1.0)


@pytest.mark.parametrize(
    ("made", "declared", "values", "wanted"),
    [
        ("int64", "int8", [-(2**40), -129, 5, 128], [-128, -128, 5, 127]),
        ("int64", "int32", [2**31, -(2**31) - 1], [2**31 - 1, -(2**31)]),
        ("uint64", "int64", [2**63, 5], [2**63 - 1, 5]),
        ("uint64", "uint8", [256, 255], [255, 255]),
    ],
)
def test_integers_become_the_nearest_that_the_type_holds(
    made: str, declared: str, values: list[int], wanted: list[int]
) -> None:
    assert y_of(lambda x: x, Feature("y", declared, 0), *values, dtype=made).tolist() == wanted


def test_bytes_are_bytes() -> None:
    texts = Feature("y", "bytes", b"")
    assert y_of(lambda x: np.array([b"a", b""]), texts, 1, 2).tolist() == [b"a", b""]
    assert y_of(lambda x: bytes_column(None, b"b"), texts, 1, 2).tolist() == [None, b"b"]
    with pytest.raises(DefinitionError, match="'y' of 'v@1' must be bytes or None, not str in row 1"):
        y_of(lambda x: np.array([b"a", "b"], dtype=object), texts, 1, 2)
    for wrong in (np.array(["a", "b"]), np.zeros(2)):
        with pytest.raises(DefinitionError, match="must be bytes, not"):
            y_of(lambda x, wrong=wrong: wrong, texts, 1, 2)


def test_a_function_cannot_write_to_what_others_read() -> None:
    def careless(x: Array) -> Mapping[str, Array]:
        x[np.isnan(x)] = 0.0
        return {"y": x}

    column = np.array([1.0, np.nan])
    with pytest.raises(ValueError, match="read-only"):
        request_view(careless).compute({"x": column})
    assert column.flags.writeable
    assert request_view(lambda x: {"y": x}, Feature("y", "float64", 0)).compute({"x": column})["y"].tolist()[0] == 1.0


def test_columns_that_do_not_fit_together() -> None:
    with pytest.raises(EventError, match="'v@1' needs the input 'x'"):
        request_view(lambda x: {"y": x}).compute({"z": np.zeros(2)})
    columns: Columns = {"distance_mi": np.zeros(2), "speed_kn": np.zeros(1), "tail_delay": np.zeros(2, np.float32)}
    with pytest.raises(EventError, match=r"different lengths: distance_mi \[2\], speed_kn \[1\]"):
        planned.compute(columns)


def test_columns_may_be_read_only_and_with_gaps() -> None:
    column = np.arange(6.0)[::2]
    column.flags.writeable = False
    assert request_view(lambda x: {"y": x}).compute({"x": column})["y"].tolist() == [0.0, 2.0, 4.0]


def test_what_the_function_raises_is_raised() -> None:
    def fails(x: Array) -> Mapping[str, Array]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        request_view(fails).compute({"x": np.zeros(1)})


Y = [Feature("y", "float32", 0)]
OTHER = EventLog("other", {"event_us": "int64", "tail": "int64", "x": "float64", "n": "int64", "b": "bool", "s": "bytes"})


def stored(**inputs: Any) -> View:
    return feature_view(features=Y, inputs=inputs, entity=AIRCRAFT, source=OTHER, name="v")(lambda **_: {})


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: feature_view(features=Y, inputs={"x": "int64"}, name="a b")(dict), "'a b' cannot be the name of a view"),
    (lambda: feature_view(features=Y, inputs={"x": "int64"})(lambda x: {}), "'<lambda>' cannot be the name of a view"),
    (lambda: feature_view(features=Y, inputs={"x": "int64"}, version=0)(dict), "must be 1 or more"),
    (lambda: feature_view(features=[], inputs={"x": "int64"})(dict), "must have features"),
    (lambda: feature_view(features=Y * 2, inputs={"x": "int64"})(dict), "each with a name of its own"),
    (lambda: feature_view(features=Y, inputs={})(dict), "no inputs"),
    (lambda: feature_view(features=Y, inputs={"x y": "int64"})(dict), "name of an input"),
    (lambda: feature_view(features=Y, inputs={"x": "text"})(dict), "the input 'x' of 'dict@1' must be a type"),
    (lambda: feature_view(features=Y, inputs={"x": count(1)})(dict), "must be a type"),
    (lambda: feature_view(features=Y, inputs={"x": "int64"}, max_age_us=-1)(dict), "max_age_us at least 0"),
    (lambda: feature_view(features=Y, inputs={"x": "int64"}, on_stale="ignore")(dict), "'default' or 'fail'"),  # type: ignore[arg-type]
    (lambda: stored(x="float64"), "the input 'x' of the stored view 'v@1' must be an aggregation"),
    (lambda: stored(x=mean("s", 5)), "needs a column of type float64 or int64 or bool"),
    (lambda: stored(x=mean("unknown", 5)), "needs a column"),
    (lambda: stored(x=rate("n", 5)), "needs a column of type bool"),
    (lambda: stored(x=last("y")), "needs a column of type float64 or int64 or bool or bytes"),
    (lambda: replace(stored(x=last("s")), entity=Entity("e", {"n": "bytes"})), r"the event log 'other' lacks 'n' \(bytes\)"),
    (lambda: replace(stored(x=count(5)), entity=None), "needs an entity and a source"),
    (lambda: replace(stored(x=count(5)), source=None), "needs an entity and a source"),
    (lambda: replace(aircraft, fit=dict), "model views have 'fit', no others have"),
    (lambda: replace(standardised, fit=None), "model views have 'fit'"),
    (lambda: replace(standardised, inputs={"state": "int64"}), "'state' is what it gives"),
    (lambda: replace(planned, function=lambda distance_mi: {}), "the function of 'planned@1' does not take distance_mi, speed"),
    (lambda: replace(planned, function=lambda a, **_: {}), "does not take"),
    (lambda: replace(standardised, function=lambda distance_mi, tail_late: {}), "does not take distance_mi, tail_late, state"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_cannot_be_declared(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        make()


def test_functions_that_say_nothing_about_themselves_are_taken() -> None:
    view = feature_view(features=[Feature("x", "int64", 0)], inputs={"x": "int64"})(dict)
    assert view.compute({"x": np.arange(2)})["x"].tolist() == [0, 1]
    assert FLIGHTS.name == "flights"
