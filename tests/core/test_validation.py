"""Constraints on values: what a batch is told is what each row alone would be told."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from feature_client.schema import DEFAULTED, Status
from server.core.monitoring_settings import Constraint, ValidationSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec
from server.core.validation import Constraints, constraints_of


def signature(*inputs: TensorSpec, max_batch: int = 64) -> Signature:
    return Signature("m", inputs, (), max_batch)


def compiled(spec: TensorSpec, max_batch: int = 64, **stated: Any) -> Constraints:
    made = signature(spec, max_batch=max_batch)
    constraint = Constraint(name=spec.name, **stated)
    constraints = constraints_of(ValidationSettings(inputs=(constraint,)), made, made)
    assert constraints is not None
    return constraints


def broken(constraints: Constraints, array: Any, rows: int | None = None) -> dict[str, list[bool]]:
    """Which rows break which constraint of the input `x`."""
    found = constraints.brought({"x": array}, len(array) if rows is None else rows)
    return {breach.constraint: breach.rows.tolist() for breach in found}


def column(datatype: str, *values: Any) -> Any:
    return np.array(values, NUMPY_DTYPES[datatype])[:, None]


def bf16(*values: float) -> Any:
    return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)[:, None]


def test_nothing_stated_is_nothing_checked() -> None:
    made = signature(TensorSpec("x", "FP32", (1,)))
    assert constraints_of(ValidationSettings(), made, made) is None


def test_what_becomes_of_breaches_is_known() -> None:
    made, spec = signature(TensorSpec("x", "FP32", (1,))), (Constraint(name="x", finite=True),)
    counting = constraints_of(ValidationSettings(action="count", inputs=spec), made, made)
    refusing = constraints_of(ValidationSettings(inputs=spec), made, made)
    assert counting is not None
    assert refusing is not None
    assert (counting.action, counting.reject, refusing.action, refusing.reject) == ("count", False, "reject", True)


VALUES = st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf])
BOUNDS = st.none() | st.sampled_from([-1.0, 0.0, 0.1, 1.0])


@given(
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20),
    padding=st.integers(0, 5),
    datatype=st.sampled_from(["FP16", "FP32", "FP64"]),
    chosen=st.sampled_from([None, 0, 1]),
    low=BOUNDS,
    high=BOUNDS,
    complete=st.booleans(),
    finite=st.booleans(),
)
def test_a_batch_of_numbers_is_judged_row_by_row(
    rows: list[tuple[float, float]],
    padding: int,
    datatype: str,
    chosen: int | None,
    low: float | None,
    high: float | None,
    complete: bool,
    finite: bool,
) -> None:
    assume(low is not None or high is not None or complete or finite)
    assume(low is None or high is None or low <= high)
    stated: dict[str, Any] = {"column": chosen, "at_least": low, "at_most": high, "complete": complete, "finite": finite}
    dtype = NUMPY_DTYPES[datatype]
    array = np.array([*rows, *[(math.nan, math.inf)] * padding], dtype)
    expected: dict[str, list[bool]] = {}
    for row in rows:
        own = [float(dtype.type(value)) for value in (row if chosen is None else row[chosen : chosen + 1])]
        said = {
            "at_least": low is not None and any(value < float(dtype.type(low)) for value in own),
            "at_most": high is not None and any(value > float(dtype.type(high)) for value in own),
            "complete": complete and any(math.isnan(value) for value in own),
            "finite": finite and not all(math.isfinite(value) for value in own),
        }
        for kind, value in said.items():
            expected.setdefault(kind, []).append(value)
    found = broken(compiled(TensorSpec("x", datatype, (2,)), **stated), array, len(rows))
    assert found == {kind: each for kind, each in expected.items() if any(each)}


@given(
    values=st.lists(st.sampled_from([b"", b"a", "é".encode(), b"b", b"\xff"]), min_size=1, max_size=9), complete=st.booleans()
)
def test_a_batch_of_texts_is_judged_row_by_row(values: list[bytes], complete: bool) -> None:
    array = np.array([[value] for value in values], object)
    found = broken(compiled(TensorSpec("x", "BYTES", (1,)), one_of=("a", "é"), complete=complete), array)
    other, empty = [value not in (b"a", "é".encode()) for value in values], [value == b"" for value in values]
    assert found == ({"one_of": other} if any(other) else {}) | ({"complete": empty} if complete and any(empty) else {})


@given(
    values=st.lists(st.integers(-128, 127), min_size=1, max_size=9),
    allowed=st.lists(st.integers(-128, 127), min_size=1, max_size=4),
    low=st.floats(-200, 127),
    high=st.floats(-128, 200),
)
def test_a_batch_of_integers_is_judged_row_by_row(values: list[int], allowed: list[int], low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    low, high = min(low, 127.0), max(high, -128.0)
    found = broken(
        compiled(TensorSpec("x", "INT8", (1,)), one_of=tuple(allowed), at_least=low, at_most=high), column("INT8", *values)
    )
    expected = {
        "one_of": [value not in allowed for value in values],
        "at_least": [value < low for value in values],
        "at_most": [value > high for value in values],
    }
    assert found == {kind: each for kind, each in expected.items() if any(each)}


def test_large_integers_are_compared_exactly() -> None:
    exact = 2**53
    spec = TensorSpec("x", "INT64", (1,))
    array = column("INT64", exact - 1, exact, exact + 1)
    assert broken(compiled(spec, at_most=float(exact)), array) == {"at_most": [False, False, True]}
    assert broken(compiled(spec, at_least=float(exact)), array) == {"at_least": [True, False, False]}
    assert broken(compiled(TensorSpec("x", "UINT64", (1,)), at_least=-5.0, at_most=1e30), column("UINT64", 0, 2**64 - 1)) == {}


def test_truths_are_true_or_false() -> None:
    spec = TensorSpec("x", "BOOL", (1,))
    assert broken(compiled(spec, one_of=(1,)), column("BOOL", True, False)) == {"one_of": [False, True]}
    assert broken(compiled(spec, complete=True), column("BOOL", False)) == {}


def test_what_is_sent_for_a_bound_is_inside_it() -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        constraints = compiled(TensorSpec("x", datatype, (1,)), at_least=0.1, at_most=0.1)
        assert broken(constraints, column(datatype, 0.1)) == {}
        assert broken(constraints, column(datatype, 0.11, 0.09)) == {"at_most": [True, False], "at_least": [False, True]}


def test_bf16_is_compared_as_the_number_that_it_is() -> None:
    spec = TensorSpec("x", "BF16", (1,))
    array = bf16(-3.0, -0.5, 0.5, 3.0, math.nan, math.inf, -math.inf)
    assert broken(compiled(spec, at_least=-0.5, at_most=0.5, complete=True, finite=True), array) == {
        "at_least": [True, False, False, False, False, False, True],
        "at_most": [False, False, False, True, False, True, False],
        "complete": [False] * 4 + [True, False, False],
        "finite": [False] * 4 + [True] * 3,
    }


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "BF16"])
def test_beyond_what_a_type_holds_there_is_only_infinity(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (1,))
    array = bf16(math.inf, -math.inf, 1.0) if datatype == "BF16" else column(datatype, math.inf, -math.inf, 1.0)
    assert broken(compiled(spec, at_least=-1e300, at_most=1e300), array) == {
        "at_least": [False, True, False],
        "at_most": [True, False, False],
    }
    beyond: list[dict[str, Any]] = [{"at_least": 1e300}, {"at_most": -1e300}]
    for stated in beyond:
        with pytest.raises(ValueError, match=f"no finite {datatype} meets at_"):
            compiled(spec, **stated)


def test_free_dimensions_and_scalars() -> None:
    free = compiled(TensorSpec("x", "FP32", (-1, -1)), finite=True)
    array = np.zeros((3, 2, 2), np.float32)
    array[1, 0, 1] = math.inf
    assert broken(free, array) == {"finite": [False, True, False]}
    assert broken(free, np.zeros((3, 0, 2), np.float32)) == {}
    scalar = compiled(TensorSpec("x", "FP32", ()), max_batch=0, at_least=1.0)
    assert broken(scalar, np.array(0.0, np.float32), 1) == {"at_least": [True]}
    whole = compiled(TensorSpec("x", "FP32", (3,)), max_batch=0, column=2, at_least=1.0)
    assert broken(whole, np.array([0.0, 0.0, 1.0], np.float32), 1) == {}
    assert broken(whole, np.array([1.0, 1.0, 0.0], np.float32), 1) == {"at_least": [True]}


def test_what_cannot_be_told_from_padding_breaks_nothing() -> None:
    """Else whoever shares a batch with a longer row would be refused for the padding of its own."""
    padded = TensorSpec("x", "INT64", (-1,), pad_to=(2, 4), pad_value=-1)
    assert broken(compiled(padded, at_least=0), column("INT64", 0, 1, -1, -2)) == {"at_least": [False, False, False, True]}
    narrow = TensorSpec("x", "BF16", (-1,), pad_to=(4,), pad_value=0.5)
    assert broken(compiled(narrow, at_least=1.0), bf16(0.5, 0.25, 1.0)) == {"at_least": [False, True, False]}


def test_what_is_left_out_is_not_complete() -> None:
    spec, other = TensorSpec("x", "FP32", (1,), optional=True), TensorSpec("o", "FP32", (1,))
    made = signature(spec, other)
    stated = (Constraint(name="x", complete=True, at_least=0.0), Constraint(name="o", complete=True))
    constraints = constraints_of(ValidationSettings(inputs=stated), made, made)
    assert constraints is not None
    (breach,) = constraints.brought({"o": column("FP32", 1.0, 2.0)}, 2)
    assert (breach.stream, breach.constraint, breach.said, breach.rows.tolist()) == ("x", "complete", "complete", [True, True])


def test_a_breach_says_what_was_stated() -> None:
    def said(datatype: str, array: Any, **stated: Any) -> list[tuple[str, str]]:
        return [
            (each.stream, each.said) for each in compiled(TensorSpec("x", datatype, (2,)), **stated).brought({"x": array}, 1)
        ]

    numbers = np.array([[-1.0, math.inf]], np.float32)
    assert said("FP32", numbers, at_least=0.25, at_most=1e7, finite=True) == [
        ("x", "at_least = 0.25"),
        ("x", "at_most = 1e+07"),
        ("x", "finite"),
    ]
    assert said("FP32", numbers, column=0, at_least=123456789.0) == [("x[0]", "at_least = 123456789.0")]
    texts = np.array([[b"z", b"z"]], object)
    assert said("BYTES", texts, one_of=("a", "b")) == [("x", "one_of = ['a', 'b']")]
    assert said("BYTES", texts, one_of=tuple("abcdefghij")) == [
        ("x", "one_of = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', and 2 more]")
    ]


@pytest.mark.parametrize(
    ("datatype", "shape", "stated", "why"),
    [
        ("BYTES", (1,), {"at_least": 0}, "at_least is of numbers, and 'x' is BYTES"),
        ("BOOL", (1,), {"at_most": 0}, "at_most is of numbers, and 'x' is BOOL"),
        ("BYTES", (1,), {"finite": True}, "finite is of numbers, and 'x' is BYTES"),
        ("FP32", (1,), {"one_of": (1, 2)}, "one_of is of texts or integers, and 'x' is FP32"),
        ("BF16", (1,), {"one_of": (1, 2)}, "one_of is of texts or integers, and 'x' is BF16"),
        ("BYTES", (1,), {"one_of": ("a", 1)}, "one_of of 'x' holds what is no text"),
        ("INT8", (1,), {"one_of": (1, "a")}, "one_of of 'x' holds 'a', which is no INT8"),
        ("INT8", (1,), {"one_of": (128,)}, "one_of of 'x' holds 128, which is no INT8"),
        ("BOOL", (1,), {"one_of": (2,)}, "one_of of 'x' holds 2, which is no BOOL"),
        ("UINT8", (1,), {"at_least": 255.5}, "no UINT8 meets at_least = 255.5 of 'x'"),
        ("UINT8", (1,), {"at_most": -0.5}, "no UINT8 meets at_most = -0.5 of 'x'"),
        ("FP32", (2, 2), {"column": 4, "finite": True}, "column 4 of 'x': its rows have 4 elements, counted from 0"),
        ("FP32", (-1,), {"column": 0, "finite": True}, r"column 0 of 'x': rows of shape \[-1\] have no fixed columns"),
    ],
)
def test_what_cannot_be_meant_is_refused_once(datatype: str, shape: tuple[int, ...], stated: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        compiled(TensorSpec("x", datatype, shape), **stated)


def test_what_is_true_of_every_value_is_never_broken() -> None:
    assert broken(compiled(TensorSpec("x", "UINT8", (1,)), at_least=0, at_most=255, finite=True), column("UINT8", 0, 255)) == {}


def test_names_that_there_are_not_and_what_is_stated_twice() -> None:
    made = signature(TensorSpec("x", "FP32", (1,)), TensorSpec("z", "FP32", (1,)))
    with pytest.raises(ValueError, match=r"^'y' is neither an input nor a feature; inputs are x, z$"):
        constraints_of(ValidationSettings(inputs=(Constraint(name="y", complete=True),)), made, made)
    twice = (Constraint(name="x", complete=True, finite=True), Constraint(name="x", finite=True))
    with pytest.raises(ValueError, match=r"^finite is stated twice for 'x'$"):
        constraints_of(ValidationSettings(inputs=twice), made, made)


# features: `delay` is an input of its own, `rate` and `count` are packed into `both`, `hour` only feeds other features

MODEL = signature(TensorSpec("delay", "FP32", (1,)), TensorSpec("both", "FP32", (2,)), TensorSpec("plain", "FP32", (1,)))
CALLERS = signature(
    TensorSpec("delay", "FP32", (1,), optional=True),
    TensorSpec("both", "FP32", (2,), optional=True),
    TensorSpec("plain", "FP32", (1,)),
    TensorSpec("id", "INT64", (1,), optional=True),
    *(TensorSpec(name, "FP32", (1,), optional=True) for name in ("rate", "count", "hour")),
)
FEATURES = ("rate", "hour", "delay", "count")
MISSING = Status.NOT_FOUND | DEFAULTED


def featured(*stated: Constraint) -> Constraints:
    made = constraints_of(ValidationSettings(inputs=stated), CALLERS, MODEL, FEATURES, {"both": ("rate", "count")})
    assert made is not None
    return made


def of_features(
    constraints: Constraints, brought: dict[str, Any], both: Any, statuses: Any
) -> list[tuple[str, str, list[bool]]]:
    """Breaches of what callers brought, then of what was joined, of two rows."""
    delay = np.array([[1.0], [math.nan]], np.float32)
    joined = {"delay": delay, "both": np.array(both, np.float32), "plain": brought["plain"]} | {
        name: array for name, array in brought.items() if name in ("delay", "both")
    }
    found = constraints.brought(brought, 2) + constraints.made(brought, joined, np.array(statuses, np.uint8), 2)
    return [(each.stream, each.constraint, each.rows.tolist()) for each in found]


ZEROS = [[0, 0, 0, 0], [0, 0, 0, 0]]
PLAIN = {"plain": column("FP32", 1.0, 2.0)}


def test_features_are_judged_by_their_values_wherever_they_are() -> None:
    constraints = featured(
        Constraint(name="rate", at_least=0.0),
        Constraint(name="both", column=1, at_most=5.0),
        Constraint(name="delay", at_least=2.0, complete=True),
        Constraint(name="plain", at_most=1.0),
    )
    assert of_features(constraints, PLAIN, [[-1.0, 6.0], [0.0, 5.0]], ZEROS) == [
        ("plain", "at_most", [False, True]),
        ("rate", "at_least", [True, False]),
        ("both[1]", "at_most", [True, False]),
        ("delay", "at_least", [True, False]),
        ("delay", "complete", [False, True]),
    ]


def test_what_a_call_brings_in_place_of_features_is_judged_as_its_own() -> None:
    constraints = featured(Constraint(name="rate", at_least=0.0, complete=True), Constraint(name="both", at_most=5.0))
    found = of_features(constraints, PLAIN | {"rate": column("FP32", -1.0, math.nan)}, [[7.0, 0.0], [0.0, 0.0]], ZEROS)
    assert found == [
        ("rate", "at_least", [True, False]),
        ("rate", "complete", [False, True]),
        ("both", "at_most", [True, False]),
    ]
    whole = np.array([[-1.0, 9.0], [math.nan, 0.0]], np.float32)
    assert of_features(constraints, PLAIN | {"both": whole}, whole, [[1, 0, 0, 1]] * 2) == [
        ("rate", "at_least", [True, False]),
        ("rate", "complete", [False, True]),
        ("both", "at_most", [True, False]),
    ]


def test_a_feature_is_complete_where_it_was_found() -> None:
    statuses = [[MISSING, 0, 0, Status.GIVEN], [Status.PRESENT, Status.NULL, Status.STALE, MISSING]]
    both = [[1.0, 1.0], [1.0, 1.0]]
    assert of_features(featured(Constraint(name="rate", complete=True)), PLAIN, both, statuses) == [
        ("rate", "complete", [True, False])
    ]
    assert of_features(featured(Constraint(name="both", complete=True)), PLAIN, both, statuses) == [
        ("both", "complete", [True, True])
    ]
    assert of_features(featured(Constraint(name="both", column=1, complete=True)), PLAIN, both, statuses) == [
        ("both[1]", "complete", [False, True])
    ]
    assert of_features(featured(Constraint(name="hour", complete=True)), PLAIN, both, statuses) == [
        ("hour", "complete", [False, True])
    ]
    assert of_features(featured(Constraint(name="delay", complete=True)), PLAIN, both, [[0, 0, MISSING, 0], [0] * 4]) == [
        ("delay", "complete", [True, True])
    ]


def test_a_join_key_may_be_required() -> None:
    assert of_features(featured(Constraint(name="id", complete=True)), PLAIN, [[0.0, 0.0]] * 2, ZEROS) == [
        ("id", "complete", [True, True])
    ]


def test_values_of_a_feature_that_the_model_never_sees_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="the feature 'hour' does not reach the model itself: only complete"):
        featured(Constraint(name="hour", at_least=0.0))
