"""Rows: what was packed is what is read, bit for bit, and what is damaged is never read as a value."""

import runpy
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_client import row
from feature_client.aggregation import count
from feature_client.errors import DefinitionError, EventError
from feature_client.row import HEADER_BYTES, MAX_ROW_BYTES, layout_of, pack, tombstone, unpack
from feature_client.schema import DTYPES, Array, Entity, EventLog, Feature, Status, hours
from feature_client.served import Found
from feature_client.view import View

STAMP = 0xFEDC_BA98_7654_3210
LOG = EventLog("log", {"id": "int64", "event_us": "int64"})


def view_of(*features: Feature) -> View:
    return View("v", 1, "stored", {"n": count(hours(1))}, features, dict, Entity("user", {"id": "int64"}), LOG)


@dataclass
class Packed:
    view: View
    values: dict[str, Array]
    nulls: NDArray[np.bool_]
    event_us: NDArray[np.int64]
    available_us: NDArray[np.int64]

    def rows(self, stamp: int = STAMP) -> list[bytes]:
        return pack(self.view, stamp, self.values, self.nulls, self.event_us, self.available_us)


def floats(rows: int = 3, features: int = 50) -> Packed:
    view = view_of(*(Feature(f"f{index}", "float32", 0.0) for index in range(features)))
    values: dict[str, Array] = {
        name: np.arange(rows, dtype=np.float32) + np.float32(index) for index, name in enumerate(view.names)
    }
    return Packed(view, values, np.zeros((rows, features), np.bool_), np.arange(rows) + 5, np.arange(rows) + 9)


def texts(*values: bytes | None) -> Array:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def with_texts() -> Packed:
    view = view_of(Feature("a", "bytes", b""), Feature("n", "int16", 0), Feature("b", "bytes", b""))
    values = {"a": texts(b"", "Zürich".encode()), "n": np.array([-1, 7], np.int16), "b": texts(b"\0" * 9, None)}
    nulls = np.array([[False] * 3, [False, False, True]])
    return Packed(view, values, nulls, np.array([1, 2]), np.array([3, 4]))


def statuses(found: Found) -> list[Status]:
    return [Status(status) for status in found.row_status.tolist()]


def assert_zeros(view: View, found: Found, at: int) -> None:
    assert found.event_us[at] == found.available_us[at] == 0
    assert not found.nulls[at].any()
    for feature in view.features:
        value = found.values[feature.name][at]
        assert value is None if feature.dtype == "bytes" else not np.any(value)


@st.composite
def packed(draw: st.DrawFn) -> Packed:
    rows = draw(st.integers(1, 5))
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.sampled_from([(), (), (3,), (2, 2)])), min_size=1, max_size=12)
    )
    features = tuple(
        Feature(f"f{index}", dtype, b"" if dtype == "bytes" else 0, () if dtype == "bytes" else shape)
        for index, (dtype, shape) in enumerate(kinds)
    )
    values: dict[str, Array] = {}
    nulls = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=len(features), max_size=len(features)), min_size=rows, max_size=rows))
    )
    for index, feature in enumerate(features):
        if feature.dtype == "bytes":
            column = draw(st.lists(st.binary(max_size=20), min_size=rows, max_size=rows))
            values[feature.name] = texts(*(None if null else text for text, null in zip(column, nulls[:, index], strict=True)))
            continue
        dtype, size = DTYPES[feature.dtype], rows * feature.elements
        raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))  # NaN with payloads, inf, all
        flat = np.frombuffer(raw, np.uint8) % 2 != 0 if dtype == np.bool_ else np.frombuffer(raw, dtype)
        values[feature.name] = flat.reshape(rows, *feature.shape)
    instants = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows)
    return Packed(view_of(*features), values, nulls, np.array(draw(instants)), np.array(draw(instants)))


@given(packed(), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_what_was_packed_is_read_bit_for_bit(made: Packed, stamp: int) -> None:
    rows = made.rows(stamp)
    assert all(len(each) % 8 == 0 for each in rows)
    found = unpack(made.view, stamp, rows)
    assert statuses(found) == [Status.PRESENT] * len(rows)
    assert np.array_equal(found.nulls, made.nulls)
    assert np.array_equal(found.event_us, made.event_us)
    assert np.array_equal(found.available_us, made.available_us)
    assert set(found.values) == set(made.view.names)
    for feature in made.view.features:
        column, wanted = found.values[feature.name], made.values[feature.name]
        assert (column.dtype, column.shape) == (DTYPES[feature.dtype], wanted.shape)
        assert column.flags.c_contiguous
        assert column.flags.writeable
        assert column.tolist() == wanted.tolist() if feature.dtype == "bytes" else column.tobytes() == wanted.tobytes()


@given(packed(), st.data())
@settings(deadline=None)
def test_rows_do_not_depend_on_their_neighbours(made: Packed, data: st.DataObject) -> None:
    rows: list[bytes | None] = list(made.rows())
    alone = [unpack(made.view, STAMP, [each]) for each in rows]
    wanted = [Status.PRESENT] * len(rows)
    for at in range(len(rows)):
        change = data.draw(st.sampled_from(["", "missing", "deleted", "damaged", "of another", "empty"]))
        if change == "missing":
            rows[at], wanted[at] = None, Status.TIMEOUT
        elif change == "deleted":
            rows[at], wanted[at] = tombstone(made.view, STAMP, 1, 2), Status.NOT_FOUND
        elif change == "damaged":
            rows[at], wanted[at] = flipped(rows[at] or b"", 41, 1), Status.FP_MISMATCH
        elif change == "of another":
            rows[at], wanted[at] = made.rows(STAMP + 1)[at], Status.FP_MISMATCH
        elif change == "empty":
            rows[at], wanted[at] = b"", Status.FP_MISMATCH
    found = unpack(made.view, STAMP, rows, absent=Status.TIMEOUT)
    assert statuses(found) == wanted
    for at, status in enumerate(wanted):
        if status != Status.PRESENT:
            assert_zeros(made.view, found, at)
            continue
        assert (found.event_us[at], found.nulls[at].tolist()) == (alone[at].event_us[0], alone[at].nulls[0].tolist())
        for name, column in found.values.items():
            assert np.asarray(column[at]).tobytes() == np.asarray(alone[at].values[name][0]).tobytes() or column.dtype == object
            assert column.dtype != object or column[at] == alone[at].values[name][0]


def flipped(whole: bytes, at: int, bits: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]


@pytest.mark.parametrize("made", [floats(2), floats(1, 1), with_texts()], ids=["floats", "one", "texts"])
def test_every_damage_to_one_byte_is_seen(made: Packed) -> None:
    whole = made.rows()[0]
    for bits in (1, 0x80, 0xFF, 0x5A):
        found = unpack(made.view, STAMP, [flipped(whole, at, bits) for at in range(len(whole))])
        assert set(statuses(found)) == {Status.FP_MISMATCH}
    for at in range(len(whole)):
        assert_zeros(made.view, found, at)


@pytest.mark.parametrize("made", [floats(2), with_texts()], ids=["floats", "texts"])
def test_every_cut_and_every_addition_is_seen(made: Packed) -> None:
    whole = made.rows()[1]
    cut = [whole[:length] for length in range(len(whole))]
    longer = [whole + extra for length in range(1, 41) for extra in (bytes(length), whole[:length])]
    assert set(statuses(unpack(made.view, STAMP, cut + longer))) == {Status.FP_MISMATCH}
    assert set(statuses(unpack(made.view, STAMP, [whole[8:], whole[:-8], whole * 2, bytes(len(whole))]))) == {
        Status.FP_MISMATCH
    }


@given(packed(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_is_seen(made: Packed, data: st.DataObject) -> None:
    whole = made.rows()[0]
    start = data.draw(st.integers(0, len(whole) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=16))
    damaged = whole[:start] + patch + whole[start + len(patch) :]
    assume(damaged != whole)
    found = unpack(made.view, STAMP, [damaged])
    assert statuses(found) == [Status.FP_MISMATCH]
    assert_zeros(made.view, found, 0)


@given(st.binary(max_size=120))
@settings(deadline=None)
def test_any_bytes_are_a_row_or_none(whole: bytes) -> None:
    for made in (floats(1, 1), with_texts()):
        assert statuses(unpack(made.view, STAMP, [whole])) == [Status.FP_MISMATCH]


def test_two_flipped_signs_do_not_cancel_out() -> None:
    view = view_of(Feature("a", "float64", 0.0), Feature("b", "float64", 0.0), Feature("c", "float64", 0.0))
    columns: dict[str, Array] = {name: np.array([1.0]) for name in view.names}
    (whole,) = pack(view, STAMP, columns, np.zeros((1, 3), np.bool_), np.array([1]), np.array([1]))
    both = [flipped(flipped(whole, first, 0x80), second, 0x80) for first, second in ((55, 63), (55, 71), (63, 71))]
    swapped = whole[:48] + struct.pack("<dd", -1.0, 1.0) + whole[64:]
    assert set(statuses(unpack(view, STAMP, [*both, swapped]))) == {Status.FP_MISMATCH}


def test_a_row_whose_ends_contradict_its_length_is_no_row() -> None:
    """Sound by its check, so it was written like this: by another program."""
    made = with_texts()
    layout = layout_of(made.view)
    for ends in ((3, 100), (3, 1), (9, 0), (2**32 - 1, 2**32 - 1)):
        words = np.frombuffer(made.rows()[0], np.uint64).copy()
        words.view(np.uint8)[layout.ends_at : layout.ends_at + 8] = np.array(ends, np.uint32).view(np.uint8)
        words[4] = row._checks(words, np.array([words.nbytes]))[0]
        assert statuses(unpack(made.view, STAMP, [words.tobytes()])) == [Status.FP_MISMATCH]


def test_the_header_is_where_a_script_in_the_store_looks_for_it() -> None:
    made = floats(1)
    made.nulls[0, 9] = True
    (whole,) = made.rows()
    assert struct.unpack_from("<BBHIQqq", whole) == (0xF7, 1, 1, 50, STAMP, 5, 9)
    assert whole[40:48] == bytes([0, 2, 0, 0, 0, 0, 0, 0])
    assert len(whole) == 248
    buried = tombstone(made.view, STAMP, -7, 2**62)
    assert struct.unpack_from("<BBHIQqq", buried) == (0xF7, 1, 4, 50, STAMP, -7, 2**62)
    assert len(buried) == HEADER_BYTES


def test_a_row_of_this_format_stays_readable() -> None:
    """Bytes as they were written once: a change of this test is a new format."""
    view = view_of(
        Feature("flag", "bool", False),
        Feature("text", "bytes", b""),
        Feature("half", "float16", 0),
        Feature("wide", "int64", 0),
    )
    written = bytes.fromhex(WRITTEN)
    found = unpack(view, 42, [written])
    assert statuses(found) == [Status.PRESENT]
    assert {name: column.tolist() for name, column in found.values.items()} == {
        "flag": [True],
        "text": [b"abc"],
        "half": [1.5],
        "wide": [-2],
    }
    assert pack(view, 42, found.values, found.nulls, found.event_us, found.available_us) == [written]


WRITTEN = (
    "f7010000040000002a00000000000000e803000000000000d007000000000000"
    "f2a294fecd695b1a0000000000000000feffffffffffffff003e010003000000"
    "6162630000000000"
)


def test_layout_puts_the_widest_first() -> None:
    view = view_of(
        Feature("flag", "bool", False),
        Feature("first", "float32", 0),
        Feature("pair", "int32", 0, (2,)),
        Feature("second", "float32", 0),
        Feature("wide", "float64", 0),
        Feature("text", "bytes", b""),
    )
    layout = layout_of(view)
    assert layout is layout_of(view)
    assert [(block.names, block.start, block.stop) for block in layout.blocks] == [
        (("wide",), 48, 56),
        (("first", "second"), 56, 64),
        (("pair",), 64, 72),
        (("flag",), 72, 73),
    ]
    assert (layout.ends_at, layout.row_bytes) == (76, 80)
    assert layout_of(view_of(*(Feature(f"f{index}", "bool", False) for index in range(65)))).row_bytes == 40 + 16 + 72


def test_tombstones() -> None:
    made = floats(1)
    good, foreign = tombstone(made.view, STAMP, 1, 2), tombstone(made.view, STAMP + 1, 1, 2)
    damaged = [flipped(good, at, 1) for at in range(len(good))]
    found = unpack(made.view, STAMP, [good, foreign, *damaged])
    assert statuses(found) == [Status.NOT_FOUND] + [Status.FP_MISMATCH] * 41
    assert_zeros(made.view, found, 0)


def test_no_rows() -> None:
    made = floats(0)
    assert made.rows() == []
    found = unpack(made.view, STAMP, [])
    assert {name: column.shape for name, column in found.values.items()} == dict.fromkeys(made.view.names, (0,))
    assert (found.nulls.shape, statuses(found)) == ((0, 50), [])
    assert statuses(unpack(made.view, STAMP, [None, None], absent=Status.TIMEOUT)) == [Status.TIMEOUT] * 2


def test_values_are_nobody_elses() -> None:
    made = floats(1)
    rows = made.rows()
    found = unpack(made.view, STAMP, rows)
    for column in found.values.values():
        column[:] = 77
    found.event_us[:] = 0
    again = unpack(made.view, STAMP, rows)
    assert [column[0] for column in again.values.values()] == list(range(50))
    assert again.event_us[0] == 5


def test_a_null_keeps_what_stood_there_unless_it_is_text() -> None:
    view = view_of(Feature("a", "float32", 0.0), Feature("b", "bytes", b""))
    payload = np.array([0x7FC0_1234], np.uint32).view(np.float32)
    rows = pack(view, STAMP, {"a": payload, "b": texts(b"x")}, np.array([[True, True]]), np.array([1]), np.array([1]))
    found = unpack(view, STAMP, rows)
    assert found.values["a"].tobytes() == payload.tobytes()
    assert found.values["b"].tolist() == [None]
    assert found.nulls.tolist() == [[True, True]]


def test_columns_that_are_not_as_declared() -> None:
    made = floats(2, 1)
    good: tuple[dict[str, Array], Array, Array, Array] = (made.values, made.nulls, made.event_us, made.available_us)
    bad: list[tuple[int, dict[str, Array] | Array, str]] = [
        (0, {}, "'f0' of rows of 'v@1' must be float32 [2]; it is missing"),
        (0, {"f0": np.zeros(2)}, "'f0' of rows of 'v@1' must be float32 [2]; it is float64 [2]"),
        (0, {"f0": np.zeros((2, 1), np.float32)}, "'f0' of rows of 'v@1' must be float32 [2]; it is float32 [2, 1]"),
        (1, np.zeros((2, 2), np.bool_), "'nulls' of rows of 'v@1' must be bool [2, 1]; it is bool [2, 2]"),
        (3, np.zeros(1, np.int64), "'available_us' of rows of 'v@1' must be int64 [2]; it is int64 [1]"),
        (2, np.zeros(2), "'event_us' of rows of 'v@1' must be int64 [2]; it is float64 [2]"),
    ]
    for at, column, text in bad:
        given_columns = [*good[:at], column, *good[at + 1 :]]
        with pytest.raises(EventError) as raised:
            pack(made.view, STAMP, *given_columns)  # type: ignore[arg-type]  # what is wrong is the point
        assert str(raised.value) == text


def test_text_that_cannot_be_packed() -> None:
    view = view_of(Feature("a", "bytes", b""), Feature("b", "bytes", b""))
    one, nulls = np.array([1]), np.zeros((1, 2), np.bool_)
    for bad, text in ((None, "not NoneType"), ("x", "not str")):
        columns = {"a": texts(b""), "b": np.array([bad], object)}
        with pytest.raises(EventError, match=f"row 0 of 'v@1': 'b' must be bytes, {text}"):
            pack(view, STAMP, columns, nulls, one, one)
    half = b"x" * (MAX_ROW_BYTES // 2)
    with pytest.raises(EventError, match="has 1048576 bytes of text"):
        pack(view, STAMP, {"a": texts(half), "b": texts(half)}, nulls, one, one)


def test_rows_as_large_as_they_may_be() -> None:
    view = view_of(Feature("a", "bytes", b""))
    largest = b"x" * (MAX_ROW_BYTES - layout_of(view).row_bytes)
    times = np.array([1, 2])
    rows = pack(view, STAMP, {"a": texts(largest, b"y")}, np.zeros((2, 1), np.bool_), times, times)
    assert len(rows[0]) == MAX_ROW_BYTES
    found = unpack(view, STAMP, [*rows, bytes(MAX_ROW_BYTES + 8)])
    assert statuses(found) == [Status.PRESENT, Status.PRESENT, Status.FP_MISMATCH]
    assert found.values["a"].tolist() == [largest, b"y", None]
    with pytest.raises(DefinitionError, match="a row of 'v@1' would have 8388656 bytes; 1048576 at most"):
        layout_of(view_of(Feature("a", "float64", 0.0, (2**20,))))


def test_a_machine_that_is_not_little_endian_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ImportError, match="little-endian"):
        runpy.run_path(str(Path(row.__file__)))
