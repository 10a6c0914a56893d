"""What can be written in a definition, and what is refused, with why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from feature_client.errors import ContractError, DefinitionError
from feature_client.schema import DEFAULTED, DTYPES, Entity, EventLog, Feature, Status, days, hours, minutes, status_text, stray
from tests.feature_client.views import bytes_column


def test_durations_are_microseconds() -> None:
    assert minutes(1) == 60_000_000
    assert hours(0.5) == minutes(30)
    assert days(2) == hours(48)
    assert isinstance(minutes(0.1), int)


def test_statuses_are_ordered_from_good_to_bad() -> None:
    assert [each.name for each in sorted(Status)] == [
        "PRESENT",
        "GIVEN",
        "NULL",
        "STALE",
        "NOT_FOUND",
        "TIMEOUT",
        "FP_MISMATCH",
    ]
    assert max(Status) < DEFAULTED
    assert [status_text(each) for each in Status] == [each.name for each in Status]
    assert status_text(Status.NULL | DEFAULTED) == "DEFAULTED(NULL)"
    assert status_text(int(np.uint8(Status.TIMEOUT | DEFAULTED))) == "DEFAULTED(TIMEOUT)"


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Entity("1st", {"a": "int64"}), "'1st' cannot be the name of an entity"),
    (lambda: Entity("a" * 101, {"a": "int64"}), "at most 100"),
    (lambda: Entity("a", {}), "has no join key"),
    (lambda: Entity("a", {"b c": "int64"}), "name of a join key"),
    (lambda: Entity("a", {"b": "int32"}), "'int32'; one of int64, bytes"),
    (lambda: EventLog("", {"event_us": "int64"}), "name of an event log"),
    (lambda: EventLog("a", {"event-us": "int64"}), "name of a column"),
    (lambda: EventLog("a", {"event_us": "int64", "x": "float32"}), "'float32'; one of float64, int64, bool, bytes"),
    (lambda: EventLog("a", {}), "'event_us' of the event log 'a' must be one of its columns"),
    (lambda: EventLog("a", {"event_us": "float64"}), "of type int64"),
    (lambda: EventLog("a", {"event_us": "int64"}, created_time="b"), "'b' of the event log 'a'"),
    (lambda: EventLog("a", {"event_us": "int64", "b": "bytes"}, created_time="b"), "'b' of the event log 'a'"),
    (lambda: EventLog("a", {"event_us": "int64"}, event_id="b"), "'b' of the event log 'a' must be a column of type int64 or"),
    (lambda: EventLog("a", {"event_us": "int64", "b": "bool"}, event_id="b"), "int64 or bytes"),
    (lambda: Feature("a b", "int64", 0), "name of a feature"),
    (lambda: Feature("a", "text", ""), "of type 'text'"),
    (lambda: Feature("a", "int64", 0, shape=(0,)), r"cannot have the shape \[0\]"),
    (lambda: Feature("a", "bytes", b"", shape=(2,)), r"cannot have the shape \[2\]"),
    (lambda: Feature("a", "float32", 0, null="none"), "null is 'default' or 'keep'"),  # type: ignore[arg-type]
    (lambda: Feature("a", "float32", 0, max_age_us=-1), "max_age_us at least 0"),
    (lambda: Feature("a", "int64", 0, null="keep"), "cannot keep nulls: int64 has none"),
    (lambda: Feature("a", "bool", False, null="keep"), "cannot keep nulls"),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_cannot_be_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        make()


NO_DEFAULTS: list[tuple[str, Any]] = [
    ("bytes", "text"),
    ("bytes", None),
    ("bytes", 0),
    ("float32", "0.5"),
    ("float32", None),
    ("float32", b""),
    ("float32", [1.0, 2.0]),
    ("float32", np.zeros(2)),
    ("float32", np.str_("1")),
    ("float32", 1j),
    ("float32", 1e39),
    ("float16", 70000),
    ("float64", 10**400),
    ("int64", float("nan")),
    ("int64", float("inf")),
    ("int64", 0.5),
    ("int64", 2**63),
    ("int64", -(2**63) - 1),
    ("int8", 128),
    ("uint8", -1),
    ("uint64", 2**64),
    ("bool", 2),
    ("bool", 0.5),
]


@pytest.mark.parametrize(("dtype", "default"), NO_DEFAULTS)
def test_defaults_that_the_type_cannot_hold_are_refused(dtype: str, default: Any) -> None:
    with pytest.raises(DefinitionError, match=f"the default of the feature 'a' is no {dtype}"):
        Feature("a", dtype, default)


@pytest.mark.parametrize("dtype", DTYPES)
def test_defaults_that_the_type_holds(dtype: str) -> None:
    if dtype == "bytes":
        assert Feature("a", dtype, b"\xff").nullable
        return
    kind = DTYPES[dtype].kind
    extremes = [0, 1, True, np.int8(1), np.float32(1.0), np.bool_(False)]
    if kind in "iu":
        extremes += [np.iinfo(dtype).min, np.iinfo(dtype).max, np.array(3, dtype)[()]]
    if kind == "f":
        extremes += [float("nan"), -np.inf, np.finfo(dtype).max, 0.1]
    for default in extremes:
        feature = Feature("a", dtype, default)
        assert feature.nullable == (kind == "f")
        assert np.full(feature.shape, feature.default, dtype).dtype == DTYPES[dtype]


def test_the_number_of_elements() -> None:
    assert Feature("a", "float32", 0).elements == 1
    assert Feature("a", "float32", 0, shape=(3, 4)).elements == 12


def test_stray_values_among_bytes() -> None:
    assert stray(np.zeros(3)) is None
    assert stray(bytes_column()) is None
    assert stray(bytes_column(b"", None)) is None
    assert stray(np.array([None, "text", 1], dtype=object)) == 1
    assert stray(np.array([b"a", np.bytes_(b"b")], dtype=object)) == 1
    assert stray(np.array([[b"a"], [0]], dtype=object)) == 1


def test_a_contract_error_has_a_line_for_each_difference() -> None:
    error = ContractError("no match", ["one", "two"])
    assert str(error) == "no match\n  one\n  two"
    assert error.differences == ("one", "two")
