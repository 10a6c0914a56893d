"""The highest elements of each row, named as NVIDIA Triton names them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.core.errors import InvalidRequest
from server.core.tensors import NUMPY_DTYPES, Array
from server.transport import classification
from server.transport.classification import classify

NUMBERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64"]


def names(values: object, datatype: str, count: int, *labels: str, batching: bool = True) -> list[object]:
    array = np.array(values, NUMPY_DTYPES[datatype])
    found: list[object] = classify(array, datatype, count, labels, batching=batching).tolist()
    return found


def test_the_form_is_tritons() -> None:
    assert names([[0.25, 0.5, 1e-9]], "FP32", 2) == [[b"0.500000:1", b"0.250000:0"]]
    assert names([[1, -5, 7]], "INT8", 9) == [[b"7:2", b"1:0", b"-5:1"]]
    assert names([[1, 2**64 - 1]], "UINT64", 1) == [[b"18446744073709551615:1"]]
    assert names([[-(2**63), 2**63 - 1]], "INT64", 2) == [[b"9223372036854775807:1", b"-9223372036854775808:0"]]
    assert names([[0.1]], "FP64", 1) == [[b"0.100000:0"]]


def test_labels_follow_where_there_are_any() -> None:
    assert names([[3, 2, 1, 0]], "INT32", 4, "kä", "", "x:y") == [["3:0:kä".encode(), b"2:1", b"1:2:x:y", b"0:3"]]


def test_rows_are_those_of_the_batch() -> None:
    values = [[[1, 2], [3, 4]], [[8, 7], [6, 5]]]
    assert names(values, "INT32", 2) == [[b"4:3", b"3:2"], [b"8:0", b"7:1"]]
    # without a batch dimension everything is one row
    assert names(values, "INT32", 2, batching=False) == [b"8:4", b"7:5"]
    assert names(5, "INT32", 2) == [b"5:0"]
    assert names([5, 6], "INT32", 2) == [[b"5:0"], [b"6:0"]]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_nothing_has_no_classes(shape: tuple[int, ...]) -> None:
    assert classify(np.empty(shape, np.float32), "FP32", 4, (), batching=True).size == 0


def test_what_is_no_number_comes_last_and_equal_ones_by_index() -> None:
    nan, inf = math.nan, math.inf
    assert names([[nan, 1, -inf, inf, nan]], "FP32", 5) == [[b"inf:3", b"1.000000:1", b"-inf:2", b"nan:0", b"nan:4"]]
    assert names([[nan, 1, -inf, inf, nan]], "FP32", 3) == [[b"inf:3", b"1.000000:1", b"-inf:2"]]
    assert names([[nan, nan]], "FP64", 1)[0] in ([b"nan:0"], [b"nan:1"])
    assert names([[4, 4, 9, 4]], "INT16", 4) == [[b"9:2", b"4:0", b"4:1", b"4:3"]]
    assert names([[-0.0, 0.0]], "FP32", 2) == [[b"-0.000000:0", b"0.000000:1"]]


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda datatype: st.tuples(
            st.just(datatype), hnp.arrays(NUMPY_DTYPES[datatype], hnp.array_shapes(min_dims=2, max_dims=3, max_side=6))
        )
    ),
    st.integers(1, 2**63 - 1),
)
def test_they_are_the_highest_in_order(tensor: tuple[str, Array], count: int) -> None:
    datatype, array = tensor
    rows = array.reshape(len(array), -1)
    got = classify(array, datatype, count, (), batching=True)
    assert got.shape == (len(rows), min(count, rows.shape[1]))
    for row, found in zip(rows.tolist(), got.tolist(), strict=True):
        indices = [int(text.split(b":")[1]) for text in found]
        assert len(set(indices)) == len(indices)
        # by value alone: which of equal elements is left out is nobody's promise
        wanted = sorted(row, key=lambda value: (math.isnan(value), -value if value == value else 0))[: len(indices)]
        assert [repr(abs(row[index])) if row[index] == 0 else repr(row[index]) for index in indices] == [
            repr(abs(value)) if value == 0 else repr(value) for value in wanted
        ]


@pytest.mark.parametrize("datatype", sorted(set(NUMPY_DTYPES) - set(NUMBERS)))
def test_datatypes_without_an_order_here(datatype: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        names([[1]], datatype, 1)
    assert str(caught.value) == f"class result not available for output due to unsupported type '{datatype}'"


def test_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "MAX_ELEMENTS", 6)
    monkeypatch.setattr(classification, "MAX_CLASSES", 9)
    assert len(names([list(range(6))] * 3, "INT32", 3)) == 3
    for values, count in ([[list(range(7))], 1], [[list(range(5))] * 2, 5]):
        with pytest.raises(InvalidRequest, match=r"^classification output tensor too large$"):
            names(values, "INT32", count)  # type: ignore[arg-type]
