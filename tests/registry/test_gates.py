"""The golden gate: what passes, what does not, and what it says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.core.tensors import Array, TensorSpec
from server.registry.gates import compare_golden


def gate(wanted: Any, answer: Any, rtol: float = 0.0, atol: float = 0.0, datatype: str = "FP32") -> str | None:
    return compare_golden({"y": wanted}, {"y": answer}, rtol, atol, (TensorSpec("y", datatype, (-1,)),))


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def objects(*values: object) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_]), hnp.array_shapes(min_dims=0)
    )
)
def test_everything_equals_itself_without_tolerance(array: Array) -> None:
    assert gate(array, array.copy()) is None


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=0)))
def test_every_bf16_pattern_equals_itself(bits: Array) -> None:
    assert gate(bits, bits.copy(), datatype="BF16") is None


@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-1e6, 1e6, width=32),
    st.floats(0, 1),
    st.floats(0, 10),
)
def test_floats_pass_exactly_within_the_tolerance(wanted: float, answer: float, rtol: float, atol: float) -> None:
    passes = abs(answer - wanted) <= atol + rtol * abs(wanted)
    assert (gate(f32(wanted), f32(answer), rtol, atol) is None) == passes


def test_the_worst_difference_is_named_with_its_place() -> None:
    wanted, answer = f32(1, 2, 3, 4).reshape(2, 2), f32(1, 2.5, 5, 4).reshape(2, 2)
    assert gate(wanted, answer, 1e-3, 1e-4) == (
        "output 'y' differs from its golden example in 2 of 4 elements (rtol 0.001, atol 0.0001);"
        " worst difference 2 at [1,0]: expected 3, got 5"
    )


def test_the_worst_is_sought_among_those_beyond_the_tolerance() -> None:
    text = gate(f32(1000, 1), f32(1009, 2), rtol=0.01)
    assert text is not None
    assert "in 1 of 2 elements" in text
    assert "worst difference 1 at [1]" in text


def test_nan_equals_nan_and_nothing_else() -> None:
    nan, inf = float("nan"), float("inf")
    assert gate(f32(nan, inf, -inf), f32(nan, inf, -inf)) is None
    for wanted, answer in [(nan, 1), (1, nan), (inf, 1), (1, inf), (inf, -inf), (nan, inf)]:
        text = gate(f32(wanted), f32(answer), rtol=1e30, atol=1e30)
        assert text is not None
        assert "worst difference inf" in text


def test_a_huge_difference_does_not_overflow_into_a_pass() -> None:
    assert gate(np.array([1.7e308]), np.array([-1.7e308]), rtol=1e-3) is not None


def test_a_scalar_has_the_empty_position() -> None:
    text = gate(np.array(1.0), np.array(2.0))
    assert text is not None
    assert "at []" in text


def test_bf16_is_compared_as_numbers_only_where_it_is_said() -> None:
    one, next_to_one = np.array([0x3F80], np.uint16), np.array([0x3F81], np.uint16)
    assert gate(one, next_to_one, rtol=0.01, datatype="BF16") is None
    text = gate(one, next_to_one, rtol=0.001, datatype="BF16")
    assert text is not None
    assert "expected 1, got 1.0078125" in text
    assert gate(one, next_to_one, rtol=0.01, datatype="UINT16") is not None


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_integers_must_be_equal_whatever_the_tolerance(dtype: Any) -> None:
    text = gate(np.array([1, 5000 % 256], dtype), np.array([1, 5001 % 256], dtype), rtol=1.0, atol=10.0)
    assert text is not None
    assert "in 1 of 2 elements, which must be equal; first at [1]" in text


def test_bytes_must_be_equal_and_text_counts_as_utf8() -> None:
    assert gate(objects(b"a", "é"), objects("a", "é".encode())) is None
    text = gate(objects(b"a", b"b"), objects(b"a", b"c"), rtol=1.0, atol=1.0)
    assert text is not None
    assert "first at [1]: expected b'b', got b'c'" in text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "output 'y' is missing"),
        ({"y": np.array([1.0], np.float64)}, "output 'y' has dtype float64, its golden example float32"),
        ({"y": np.array([[1.0]], np.float32)}, "output 'y' has shape [1, 1], its golden example [1]"),
        ({"y": objects(b"1")}, "output 'y' has dtype object, its golden example float32"),
    ],
)
def test_form_must_match_before_values(answer: dict[str, Array], text: str) -> None:
    assert compare_golden({"y": f32(1)}, answer, 1.0, 1.0) == text


def test_outputs_without_an_expectation_are_not_looked_at() -> None:
    assert compare_golden({"y": f32(1)}, {"y": f32(1), "z": f32(float("nan"))}, 0, 0) is None


def test_empty_arrays_pass() -> None:
    assert gate(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) is None
    assert gate(np.empty(0, object), np.empty(0, object)) is None
