"""Keys of rows: one canonical form per entity, safe against everything a value can be."""

from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.aggregation import count
from feature_client.errors import EntityError
from feature_client.keys import MAX_VALUE_BYTES, misfits, row_keys
from feature_client.schema import Array, Entity, EventLog, Feature, hours
from feature_client.view import View, feature_view


def view_of(name: str = "trips", **keys: str) -> View:
    log = EventLog("log", {**keys, "event_us": "int64"})
    made = feature_view(
        features=[Feature("n", "int64", 0)],
        inputs={"n": count(hours(1))},
        entity=Entity("user", keys),
        source=log,
        version=3,
        name=name,
    )
    return made(lambda n: {"n": n})


BY_ID = view_of(id="int64")
BY_NAME = view_of(name="names", text="bytes")
BY_BOTH = view_of(name="both", text="bytes", id="int64")


def texts(*values: object) -> Array:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def test_the_form_of_a_key() -> None:
    assert row_keys("podium", BY_ID, {"id": np.array([7, -1])}) == [
        b"f1:podium:{user:i7}:trips@3",
        b"f1:podium:{user:i-1}:trips@3",
    ]
    assert row_keys("p", BY_NAME, {"text": texts(b"JFK", "Zürich".encode())}) == [
        b"f1:p:{user:sJFK}:names@3",
        "f1:p:{user:sZürich}:names@3".encode(),
    ]
    both = {"id": np.array([1, 2]), "text": texts(b"a|i1", b""), "other": np.zeros(5)}
    assert row_keys("p", BY_BOTH, both) == [b"f1:p:{user:sa%7Ci1|i1}:both@3", b"f1:p:{user:s|i2}:both@3"]
    assert row_keys("p", BY_ID, {"id": np.array([], np.int64)}) == []
    assert row_keys("p", BY_NAME, {"text": texts()}) == []


def test_a_project_cannot_break_the_key() -> None:
    assert row_keys("a:{b}", BY_ID, {"id": np.array([1])}) == [b"f1:a%3A%7Bb%7D:{user:i1}:trips@3"]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "object", ">i8"])
def test_an_integer_is_one_entity_whatever_its_width(dtype: str) -> None:
    assert row_keys("p", BY_ID, {"id": np.array([0, 100], dtype)}) == row_keys("p", BY_ID, {"id": np.array([0, 100])})


def test_integers_of_numpy_in_an_array_of_objects() -> None:
    column = texts(np.int8(5), np.uint64(5), 5)
    assert set(row_keys("p", BY_ID, {"id": column})) == {b"f1:p:{user:i5}:trips@3"}
    assert misfits(BY_ID, {"id": column}) == {}


def test_the_ends_of_int64() -> None:
    ends = np.array([-(2**63), 2**63 - 1])
    assert row_keys("p", BY_ID, {"id": ends}) == [
        b"f1:p:{user:i-9223372036854775808}:trips@3",
        b"f1:p:{user:i9223372036854775807}:trips@3",
    ]


def test_bytes_of_fixed_width_and_of_a_subclass() -> None:
    wanted = row_keys("p", BY_NAME, {"text": texts(b"ab", b"c")})
    assert row_keys("p", BY_NAME, {"text": np.array([b"ab", b"c"])}) == wanted
    assert row_keys("p", BY_NAME, {"text": texts(np.bytes_(b"ab"), b"c")}) == wanted


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
@settings(deadline=None)
def test_every_value_has_a_key_of_its_own_that_it_can_be_read_from(values: list[bytes]) -> None:
    keys = row_keys("p", BY_NAME, {"text": texts(*values)})
    for key, value in zip(keys, values, strict=True):
        typed = key.removeprefix(b"f1:p:{user:s").removesuffix(b"}:names@3")
        assert unquote_to_bytes(typed) == value
        assert not set(typed) & set(b"{}|: \n\0\x7f")


@given(st.lists(st.tuples(st.binary(max_size=6), st.integers(-(2**63), 2**63 - 1)), unique=True, min_size=1, max_size=20))
@settings(deadline=None)
def test_composite_keys_never_meet(pairs: list[tuple[bytes, int]]) -> None:
    keys = row_keys(
        "p", BY_BOTH, {"text": texts(*(text for text, _ in pairs)), "id": np.array([number for _, number in pairs])}
    )
    assert len(set(keys)) == len(pairs)


@pytest.mark.parametrize(
    ("view", "column", "text"),
    [
        (BY_ID, texts(1, None), "row 1: the join key 'id' has no value"),
        (BY_ID, np.array([1.0]), "row 0: the join key 'id' must be an integer, not float"),
        (BY_ID, np.array([True]), "row 0: the join key 'id' must be an integer, not bool"),
        (BY_ID, texts(1, np.True_), "row 1: the join key 'id' must be an integer, not bool"),
        (BY_ID, np.array(["1"]), "row 0: the join key 'id' must be an integer, not str"),
        (BY_ID, np.array([1, 2**63], np.uint64), "row 1: the join key 'id' does not fit int64: 9223372036854775808"),
        (BY_NAME, texts(b"a", "b"), "row 1: the join key 'text' must be bytes, not str: encode it as UTF-8"),
        (BY_NAME, np.array(["b"]), "must be bytes, not str"),
        (BY_NAME, np.array([1]), "row 0: the join key 'text' must be bytes, not int"),
        (BY_NAME, texts(None), "row 0: the join key 'text' has no value"),
        (BY_NAME, texts(b"x" * (MAX_VALUE_BYTES + 1)), "row 0: the join key 'text' has 513 bytes; 512 at most"),
    ],
)
def test_what_cannot_be_a_key(view: View, column: Array, text: str) -> None:
    name = "id" if view is BY_ID else "text"
    with pytest.raises(EntityError, match=text):
        row_keys("p", view, {name: column})
    (why,) = misfits(view, {name: column}).values()
    assert why in text or text in why


def test_the_longest_value() -> None:
    longest = b"%" * MAX_VALUE_BYTES
    assert row_keys("p", BY_NAME, {"text": texts(longest)}) == [b"f1:p:{user:s" + b"%25" * MAX_VALUE_BYTES + b"}:names@3"]


def test_misfits_name_each_row_once() -> None:
    keys = {"text": texts(None, b"a", "b"), "id": texts(None, 1, 2)}
    assert misfits(BY_BOTH, keys) == {
        0: "the join key 'text' has no value",
        2: "the join key 'text' must be bytes, not str: encode it as UTF-8",
    }


def test_columns_that_cannot_be_keys_at_all() -> None:
    for keys in ({}, {"id": [1]}, {"id": np.array([[1]])}, {"id": np.array(1)}):
        with pytest.raises(EntityError, match="the join key 'id' of 'user'"):
            row_keys("p", BY_ID, keys)  # type: ignore[arg-type]  # a list is what people try
    with pytest.raises(EntityError, match="not equally many: text, id"):
        row_keys("p", BY_BOTH, {"id": np.array([1, 2]), "text": texts(b"a")})


def test_a_view_without_rows_has_no_keys() -> None:
    view = feature_view(features=[Feature("a", "float64", 0.0)], inputs={"b": "float64"}, name="made")(lambda b: {"a": b})
    with pytest.raises(EntityError, match="'made@1' is computed from the request"):
        row_keys("p", view, {})
