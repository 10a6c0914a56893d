import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest
from server.core.tensors import NUMPY_DTYPES, Array, byte_size, element_count, join_bytes, split_bytes, to_raw

FIXED = [datatype for datatype in NUMPY_DTYPES if datatype != "BYTES"]


def objects(items: list[bytes] | list[str]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@given(st.lists(st.binary(max_size=12)), st.integers(0, 3))
def test_elements_survive_the_wire(items: list[bytes], spare: int) -> None:
    raw = join_bytes(objects(items))
    assert split_bytes(raw, len(items) + spare) == items
    assert split_bytes(memoryview(raw), len(items)) == items
    assert join_bytes(objects(split_bytes(raw, len(items)))) == raw


@given(st.lists(st.text(max_size=6), max_size=6))
def test_text_is_utf8_on_the_wire(items: list[str]) -> None:
    assert split_bytes(join_bytes(objects(items)), len(items)) == [item.encode() for item in items]


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=6), st.data())
def test_a_cut_is_noticed_unless_it_falls_between_two_elements(items: list[bytes], data: st.DataObject) -> None:
    raw = join_bytes(objects(items))
    at = data.draw(st.integers(0, len(raw) - 1))
    whole = [join_bytes(objects(items[:count])) for count in range(len(items))]
    if raw[:at] in whole:
        assert split_bytes(raw[:at], len(items)) == items[: whole.index(raw[:at])]
    else:
        with pytest.raises(InvalidRequest, match=r"^incomplete string (length indicator|data: expected \d+ bytes, got \d+)$"):
            split_bytes(raw[:at], len(items))


@given(st.binary(max_size=64), st.integers(0, 8))
def test_any_bytes_are_split_or_refused(raw: bytes, limit: int) -> None:
    try:
        items = split_bytes(raw, limit)
    except InvalidRequest:
        return
    assert len(items) <= limit + 1
    assert raw.startswith(join_bytes(objects(items)))


def test_a_hostile_body_builds_no_more_than_the_shape_allows() -> None:
    assert split_bytes(b"\0\0\0\0" * 100_000, limit=3) == [b""] * 4


def test_arrays_of_any_rank_are_joined_row_by_row() -> None:
    array = objects([b"a", b"bb", b"c", b"dd"]).reshape(2, 2)
    assert split_bytes(join_bytes(array.T), 4) == [b"a", b"c", b"bb", b"dd"]


@pytest.mark.parametrize("datatype", FIXED)
def test_fixed_width_arrays_become_little_endian_rows(datatype: str) -> None:
    dtype = NUMPY_DTYPES[datatype]
    array: Array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    raw = to_raw(datatype, array)
    assert len(raw) == byte_size(datatype, array.shape)
    assert to_raw(datatype, np.asfortranarray(array)) == raw
    assert to_raw(datatype, array.astype(dtype.newbyteorder(">"))) == raw
    assert to_raw(datatype, array[:, ::-1]) == to_raw(datatype, array[:, ::-1].copy())
    np.testing.assert_array_equal(np.frombuffer(raw, dtype.newbyteorder("<")).reshape(2, 3), array)


def test_bytes_and_scalars_have_a_wire_form() -> None:
    assert to_raw("BYTES", objects([b"ab"])) == b"\x02\0\0\0ab"
    assert to_raw("INT32", np.array(7, np.int32)) == b"\x07\0\0\0"
    assert (element_count(()), byte_size("FP64", ()), byte_size("FP16", (3, 0))) == (1, 8, 0)


@given(st.lists(st.integers(0, 2**63 - 1), max_size=5))
def test_sizes_do_not_overflow(shape: list[int]) -> None:
    expected = 1
    for dim in shape:
        expected *= dim
    assert element_count(shape) == expected
    assert byte_size("INT64", shape) == 8 * expected
