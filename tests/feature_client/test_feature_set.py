"""Views put together: their order, what the call has to bring, what it may state itself, and what is known of results."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from feature_client.errors import DefinitionError, EventError
from feature_client.feature_set import FeatureSet
from feature_client.schema import DEFAULTED, Array, Entity, Feature, Status
from feature_client.served import Served, absent_rows, serve
from feature_client.view import View, feature_view
from tests.feature_client.views import AIRCRAFT, FLIGHTS, STATES, VIEWS, aircraft, bytes_column, planned, route, standardised

REQUEST = {"distance_mi": np.array([900.0, np.nan]), "speed_kn": np.array([400.0, 400.0])}


def rows_of(view: View, status: Status, count: int = 2) -> Served:
    """Rows of zeros, or of defaults where the status says that there are none."""
    found = absent_rows(view, count, Status.PRESENT)
    for feature in view.features:
        if feature.dtype == "bytes":
            found.values[feature.name][...] = b""
    found.row_status[:] = status
    return serve(view, found, 0)


def computed(name: str, feature: Feature, **inputs: str) -> View:
    """A request view that gives its first input."""
    return feature_view(features=[feature], inputs=inputs, name=name)(
        lambda **columns: {feature.name: next(iter(columns.values()))}
    )


def test_stored_views_come_first_and_each_after_what_it_is_given() -> None:
    a = computed("a", Feature("fa", "float64", 0), x="float64")
    b = computed("b", Feature("fb", "float64", 0), fa="float64", tail_late="float64")
    c = computed("c", Feature("fc", "float64", 0), fb="float64", x="float64")
    for views in permutations([c, b, a, aircraft]):
        assert FeatureSet(views).views == (aircraft, a, b, c)
    features = FeatureSet([a, c, b, aircraft])
    assert (features.request, features.keys) == ({"x": "float64"}, {"tail": "int64"})
    assert features.view_of["fb"] is b
    assert list(features.features)[:2] == ["fa", "fc"]


def test_what_a_set_needs() -> None:
    features = FeatureSet(VIEWS, STATES)
    assert features.request == {"distance_mi": "float64", "speed_kn": "float64"}
    assert features.keys == {"tail": "int64", "origin": "bytes", "destination": "bytes"}
    assert features.views == (aircraft, route, planned, standardised)


PLANE = Entity("plane", {"tail": "bytes"})
BYTES_TAIL = replace(FLIGHTS, columns={**FLIGHTS.columns, "tail": "bytes"})
F = Feature("f", "float64", 0)
G = Feature("g", "float64", 0)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: FeatureSet([computed("a", F, x="int64"), computed("b", F, x="int64")]), "both 'a@1' and 'b@1' have 'f'"),
    (lambda: FeatureSet([aircraft, replace(aircraft, version=3)]), "both 'aircraft@2' and 'aircraft@3'"),
    (lambda: FeatureSet([computed("a", F, g="float64"), computed("b", G, f="float64")]), "wait for each other: a@1, b@1"),
    (lambda: FeatureSet([computed("a", F, f="float64")]), "wait for each other: a@1"),
    (lambda: FeatureSet([aircraft, computed("a", F, tail_late="float32")]), "is float32, but the feature is float64"),
    (lambda: FeatureSet([aircraft, computed("a", F, tail_pair="float32")]), "the input 'tail_pair' of 'a@1'"),
    (lambda: FeatureSet([computed("a", F, x="float64"), computed("b", G, x="float32")]), "'x' of the request has two types"),
    (lambda: FeatureSet([aircraft, computed("a", F, tail="float64")]), "'tail' has two types: int64 as a join key, float64 of"),
    (lambda: FeatureSet([computed("a", F)]), "the view 'a@1' has no inputs"),
    (
        lambda: FeatureSet([aircraft, replace(route, entity=PLANE, source=BYTES_TAIL)]),
        "the join key 'tail' has two types",
    ),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_sets_that_cannot_be(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        make()


def test_a_join_key_may_be_a_value_of_the_call_as_well() -> None:
    features = FeatureSet([aircraft, computed("a", Feature("f", "int64", 0), tail="int64")])
    assert (features.request, features.keys) == ({"tail": "int64"}, {"tail": "int64"})
    assert AIRCRAFT.keys == features.keys


def test_computed_features_have_the_worst_status_of_what_they_are_made_of() -> None:
    """Whatever the order of the inputs; NULL of their own does not hide worse."""
    a, b = (replace(aircraft, name=name, features=(Feature(f"{name}_x", "float64", 0.0),)) for name in "ab")
    statuses = [Status.PRESENT, Status.NULL, Status.NULL | DEFAULTED, Status.TIMEOUT | DEFAULTED, Status.GIVEN]
    statuses = [*statuses, Status.FP_MISMATCH, Status.NOT_FOUND | DEFAULTED]
    pairs = np.array([(one, other) for one in statuses for other in statuses], np.uint8)

    def rank(status: int) -> tuple[int, int]:
        return status & ~DEFAULTED, status

    for inputs in (("a_x", "b_x"), ("b_x", "a_x")):
        both = computed("both", Feature("f", "float64", 0, null="keep"), **dict.fromkeys(inputs, "float64"))
        served = {}
        for view, column in ((a, pairs[:, :1]), (b, pairs[:, 1:])):
            values: dict[str, Array] = {view.names[0]: np.ones(len(pairs))}
            served[view.ref] = Served(values, column, np.zeros(len(pairs), np.bool_))
        made = FeatureSet([a, b, both]).assemble(len(pairs), {}, {}, served)
        worst = [max(pair, key=rank) for pair in pairs.tolist()]
        assert made.statuses["f"].tolist() == [Status.PRESENT if each == Status.GIVEN else each for each in worst]


@pytest.mark.parametrize("null", ["keep", "default"])
@pytest.mark.parametrize(
    ("of_input", "wanted"),
    [
        (Status.PRESENT, Status.NULL),
        (Status.GIVEN, Status.NULL),
        (Status.NULL, Status.NULL),
        (Status.STALE | DEFAULTED, Status.STALE | DEFAULTED),
        (Status.TIMEOUT | DEFAULTED, Status.TIMEOUT | DEFAULTED),
    ],
)
def test_a_computed_null_is_kept_or_defaulted(null: Any, of_input: int, wanted: int) -> None:
    view = replace(aircraft, features=(Feature("x", "float64", 0.0),))
    made_of = computed("c", Feature("f", "float64", 7.0, null=null), x="float64")
    served = Served({"x": np.array([np.nan, 1.0])}, np.full((2, 1), of_input, np.uint8), np.zeros(2, np.bool_))
    made = FeatureSet([view, made_of]).assemble(2, {}, {}, {view.ref: served})
    assert made.statuses["f"][0] == (wanted if null == "keep" else wanted | DEFAULTED)
    assert made.statuses["f"][1] == (of_input if of_input > Status.GIVEN else Status.PRESENT)
    np.testing.assert_array_equal(made.values["f"], [np.nan if null == "keep" else 7.0, 1.0])


def test_defaults_of_computed_features_with_shapes_and_of_bytes() -> None:
    @feature_view(
        inputs={"x": "float64", "s": "bytes"},
        features=[
            Feature("pair", "float32", -1, shape=(2,)),
            Feature("text", "bytes", b"?"),
            Feature("kept", "bytes", b"", null="keep"),
        ],
    )
    def v(x: Array, s: Array) -> Mapping[str, Array]:
        return {"pair": np.stack([x, x + 1], axis=1), "text": s, "kept": s}

    made = FeatureSet([v]).assemble(2, {"x": np.array([np.nan, 1.0]), "s": bytes_column(b"a", None)}, {}, {})
    assert made.values["pair"].tolist() == [[-1.0, -1.0], [1.0, 2.0]]
    assert made.values["pair"].flags.c_contiguous
    assert made.values["pair"].dtype == np.float32
    assert made.values["text"].tolist() == [b"a", b"?"]
    assert made.values["kept"].tolist() == [b"a", None]
    assert made.statuses["text"].tolist() == [0, Status.NULL | DEFAULTED]
    assert made.statuses["kept"].tolist() == [0, Status.NULL]


def test_a_state_belongs_to_one_view() -> None:
    stored = {aircraft.ref: rows_of(aircraft, Status.NOT_FOUND)}
    made = FeatureSet([aircraft, standardised], STATES).assemble(2, REQUEST, {}, stored)
    assert made.values["late_z"].tolist() == [0.0, 0.0]
    assert made.statuses["late_z"].tolist() == [Status.NOT_FOUND | DEFAULTED] * 2
    assert made.statuses["distance_z"].tolist() == [Status.NOT_FOUND | DEFAULTED] * 2
    with pytest.raises(DefinitionError, match="the model view 'standardised@1' has no state"):
        FeatureSet([aircraft, standardised], {"other@1": {}}).assemble(2, REQUEST, {}, stored)


def test_the_caller_may_state_features_itself() -> None:
    features = FeatureSet([aircraft, planned])
    given = {"tail_delay": np.array([2.0, 3.0], np.float32), "delay_ratio": np.array([9.0, np.nan], np.float32)}
    made = features.assemble(2, REQUEST, given, {aircraft.ref: rows_of(aircraft, Status.NOT_FOUND)})
    assert made.values["tail_delay"] is given["tail_delay"]
    assert made.statuses["tail_delay"].tolist() == [Status.GIVEN] * 2
    assert made.values["delay_ratio"] is given["delay_ratio"]
    assert made.statuses["delay_ratio"].tolist() == [Status.GIVEN] * 2
    assert made.statuses["flight_min"].tolist() == [Status.PRESENT, Status.NULL | DEFAULTED]


def test_views_of_which_all_is_given_need_neither_rows_nor_inputs() -> None:
    given = {feature.name: np.zeros((2, *feature.shape), feature.dtype) for feature in (*route.features, *planned.features)}
    made = FeatureSet([route, planned]).assemble(2, {}, given, {})
    assert set(made.values) == set(given)
    assert all((status == Status.GIVEN).all() for status in made.statuses.values())


def test_a_row_that_nobody_needs_refuses_nothing() -> None:
    missing = {route.ref: rows_of(route, Status.NOT_FOUND)}
    delay, number = {"route_delay": np.zeros(2)}, {"route_flights": np.zeros(2, np.int64)}
    features = FeatureSet([route])
    assert features.assemble(2, {}, {}, missing).refused.tolist() == [True, True]
    assert features.assemble(2, {}, delay, missing).refused.tolist() == [True, True]
    assert features.assemble(2, {}, delay | number, missing).refused.tolist() == [False, False]


def test_rows_that_are_not_there_are_named() -> None:
    with pytest.raises(EventError, match="there are no rows of 'route@1', and 'route_delay' is not given"):
        FeatureSet([route]).assemble(2, {}, {"route_flights": np.zeros(2, np.int64)}, {})


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"speed_kn": None}, {}, r"the request's 'speed_kn' is missing; 'planned@1' needs float64 \[2\]"),
    ({"speed_kn": np.ones(2, np.float32)}, {}, r"'speed_kn' is float32 \[2\]"),
    ({"speed_kn": np.ones(1)}, {}, r"'speed_kn' is float64 \[1\]; 'planned@1' needs float64 \[2\]"),
    ({"speed_kn": np.ones((2, 1))}, {}, r"'speed_kn' is float64 \[2, 1\]"),
    ({"text": np.array([b"a", "b"], dtype=object)}, {}, "the request's 'text' has str in row 1, not bytes or None"),
    ({}, {"tail_delay": np.zeros(2)}, r"the given 'tail_delay' is float64 \[2\], not float32 \[2\]"),
    ({}, {"tail_pair": np.zeros(2, np.float32)}, r"the given 'tail_pair' is float32 \[2\], not float32 \[2, 2\]"),
    ({}, {"tail_carrier": np.array(["a", "b"], dtype=object)}, "the given 'tail_carrier' is object"),
    ({}, {"flight_min": np.zeros(3, np.float32)}, "the given 'flight_min'"),
]


@pytest.mark.parametrize(("request_part", "given", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_columns_of_other_types_and_lengths_are_named(request_part: dict[str, Any], given: dict[str, Any], text: str) -> None:
    words = computed("words", Feature("w", "bytes", b""), text="bytes")
    columns = {**REQUEST, "text": bytes_column(b"a", None), **request_part}
    columns = {name: column for name, column in columns.items() if column is not None}
    with pytest.raises(EventError, match=text):
        FeatureSet([aircraft, planned, words]).assemble(2, columns, given, {aircraft.ref: rows_of(aircraft, Status.PRESENT)})


def test_names_that_are_nobodys_features_are_ignored_among_given_ones() -> None:
    """Whether a caller may send them is not decided here."""
    made = FeatureSet([route]).assemble(2, {}, {"other": np.zeros(5)}, {route.ref: rows_of(route, Status.PRESENT)})
    assert set(made.values) == set(route.names)


def test_no_rows() -> None:
    stored = {view.ref: rows_of(view, Status.PRESENT, 0) for view in (aircraft, route)}
    request = {name: column[:0] for name, column in REQUEST.items()}
    made = FeatureSet(VIEWS, STATES).assemble(0, request, {}, stored)
    assert all(len(column) == 0 for column in (*made.values.values(), *made.statuses.values(), made.refused))
