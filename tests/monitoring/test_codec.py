"""Samples and what travels beside them survive as bytes to the bit; whatever else is read is refused, and costs nothing."""

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh64_digest

from server.core.versions import VersionKey
from server.monitoring.codec import decode, encode, redacted
from server.monitoring.entries import Offered, decode_offered, decode_outcomes, encode_offered, encode_outcomes
from server.monitoring.outcome import Outcome
from server.monitoring.samples import Samples
from tests.monitoring.rows import equal, rows_of

HEAD = 13
OFFERED = (Offered(VersionKey("m", 1), "", 10, 3, -5), Offered(VersionKey("é", 2), "shadow", 2**40, 0, 10**15))
OUTCOMES = (Outcome("m", 0, "a", 0, 1.0), Outcome("m", 2, "request/é", 17, -0.5, 10**15))


def resealed(blob: bytes) -> bytes:
    """The checksum of a blob whose body was changed, as an enemy would write it."""
    return blob[:5] + xxh64_digest(blob[HEAD:]) + blob[HEAD:]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_samples_come_back_to_the_bit(count: int) -> None:
    samples = rows_of(count)
    assert equal(decode(encode(samples)), samples)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_columns_of_every_dtype_and_shape_come_back_to_the_bit(data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 4))
    shape = (rows, *data.draw(st.lists(st.integers(0, 3), max_size=3)))
    dtype = data.draw(st.sampled_from(["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "O"]))
    size = int(np.prod(shape, dtype=np.int64))
    column: Any
    if dtype == "O":
        column = np.empty(size, dtype=object)
        column[:] = data.draw(st.lists(st.none() | st.binary(max_size=3), min_size=size, max_size=size))
    else:
        item = np.dtype(dtype).itemsize
        raw = data.draw(st.binary(min_size=size * item, max_size=size * item))
        column = np.frombuffer(bytes(each & 1 for each in raw) if dtype == "?" else raw, dtype)
    samples = replace(rows_of(rows), inputs={"x": column.reshape(shape)})
    assert equal(decode(encode(samples)), samples)


def test_what_is_the_same_in_all_rows_is_written_once() -> None:
    alike = replace(rows_of(1000), inputs={"x": np.full((1000, 64), np.nan)})
    assert len(encode(alike)) + 999 * 64 * 8 == len(
        encode(replace(alike, inputs={"x": _last_one_other(np.full((1000, 64), np.nan))}))
    )


def _last_one_other(array: Any) -> Any:
    array[-1, -1] = 0.0
    return array


def test_zero_and_minus_zero_are_not_the_same() -> None:
    samples = replace(rows_of(2), inputs={"x": np.array([0.0, -0.0])})
    assert equal(decode(encode(samples)), samples)


def test_texts_are_written_as_they_travel_to_callers() -> None:
    texts = replace(rows_of(2), outputs={"x": np.array(["é", "é"], dtype=object)})
    assert decode(encode(texts)).outputs["x"].tolist() == ["é".encode()] * 2


def test_what_is_read_holds_no_blob_and_may_be_written_to() -> None:
    found = decode(encode(rows_of(10)))
    assert all(array.flags.owndata or array.base.flags.owndata for array in found.inputs.values())  # type: ignore[union-attr]
    assert found.inputs["amount"].flags.writeable


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_us": np.zeros(2, dtype=np.int32)},
        {"row": np.zeros(3, dtype=np.int32)},
        {"statuses": np.zeros((2, 1), dtype=np.uint8)},
        {"inputs": {"x": np.zeros(3)}},
        {"inputs": {"x": np.zeros(2, dtype=">f4")}},
        {"inputs": {"x": np.zeros((2, *[1] * 9))}},
        {"inputs": {"x": np.array([1, 2], dtype=object)}},
        {"inputs": {"x" * 5000: np.zeros(2)}},
        {"inputs": {"x": np.broadcast_to(np.zeros(1), (2, 2**27))}},
        {"arm": "\ud800"},
        {"epoch": 2**63},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be_written_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(replace(rows_of(2), **wrong))


BLOBS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (encode(rows_of(20)), decode),
    (encode_offered(OFFERED), decode_offered),
    (encode_outcomes(OUTCOMES), decode_outcomes),
]


@pytest.mark.parametrize(("blob", "read"), BLOBS)
def test_every_beginning_and_every_changed_byte_is_refused(blob: bytes, read: Callable[[bytes], object]) -> None:
    for size in range(len(blob)):
        with pytest.raises(ValueError, match=r"."):
            read(blob[:size])
    for at in range(len(blob)):
        with pytest.raises(ValueError, match=r"."):
            read(blob[:at] + bytes([blob[at] ^ 0x41]) + blob[at + 1 :])
    with pytest.raises(ValueError, match="follow"):
        read(resealed(blob + b"x"))


@pytest.mark.parametrize(("blob", "read"), BLOBS)
def test_an_enemys_bytes_are_refused_or_are_values_and_allocate_little(blob: bytes, read: Callable[[bytes], object]) -> None:
    generator = np.random.default_rng(1)
    refused = 0
    tracemalloc.start()
    for _ in range(3000):
        changed = bytearray(blob)
        at = int(generator.integers(HEAD, len(blob)))
        value = int(generator.choice([0, 1, 2**31 - 1, 2**32 - 1, int(generator.integers(0, 2**32))]))
        struct.pack_into("<I", changed, min(at, len(blob) - 4), value)
        try:
            read(resealed(bytes(changed)))
        except ValueError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 30
    assert peak < 300 * 2**20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 1.5),
        ("weight", float("nan")),
        ("inclusion", np.array([0.5, 0.0])),
        ("inclusion", np.array([0.5, np.nan])),
        ("row", np.array([0, -1], dtype=np.int32)),
        ("key", VersionKey("", 1)),
        ("key", VersionKey("m", 0)),
        ("statuses", np.array([[0, 7], [0, 0]], dtype=np.uint8)),
        ("features", ("a",) * 65_537),
    ],
)
def test_values_that_no_samples_have_are_refused(field: str, value: Any) -> None:
    changes = {field: value}
    if field == "features":
        changes["statuses"] = np.zeros((2, len(value)), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"weight|inclusion|version|status|names"):
        decode(encode(replace(rows_of(2), **changes)))


def _column_at(samples: Samples) -> tuple[bytearray, int]:
    """The blob of samples whose only column is the input "xyzzy", and where in it the column's dtype stands."""
    blob = bytearray(encode(replace(samples, inputs={"xyzzy": np.array([True, False])}, callers={}, outputs={})))
    return blob, blob.index(b"xyzzy") + 5


@pytest.mark.parametrize(("offset", "byte"), [(0, 13), (1, 9), (2, 2), (3, 2)], ids=["dtype", "dimensions", "way", "boolean"])
def test_columns_that_nobody_wrote_are_refused(offset: int, byte: int) -> None:
    blob, at = _column_at(rows_of(2))
    blob[at + offset] = byte
    with pytest.raises(ValueError, match=r"column|way|booleans"):
        decode(resealed(bytes(blob)))


def test_a_column_that_is_there_twice_is_refused() -> None:
    samples = replace(rows_of(2), inputs={"xyzzy": np.zeros(2), "xyzzz": np.zeros(2)})
    with pytest.raises(ValueError, match="twice"):
        decode(resealed(encode(samples).replace(b"xyzzz", b"xyzzy")))


def test_one_of_another_version_is_refused_by_that_name() -> None:
    blob = encode(rows_of(1))
    with pytest.raises(ValueError, match="of version 2"):
        decode(blob[:4] + b"\x02" + blob[5:])
    with pytest.raises(ValueError, match="begins with"):
        decode_offered(blob)


def test_a_few_bytes_that_stand_for_many_rows_are_refused() -> None:
    once = replace(rows_of(2), inputs={"xyzzy": np.zeros((2, 1000))})
    with pytest.raises(ValueError, match="more than"):
        decode(resealed(encode(once).replace(struct.pack("<dI", 0.25, 2), struct.pack("<dI", 0.25, 2**31))))


def test_a_name_that_is_longer_than_one_can_be_is_refused() -> None:
    blob = encode_offered([Offered(VersionKey("m" * 4096, 1), "", 0, 0, 0)])
    at = blob.index(struct.pack("<H", 4096))
    longer = blob[:at] + struct.pack("<H", 4097) + blob[at + 2 :]
    with pytest.raises(ValueError, match="4097"):
        decode_offered(resealed(longer + b"x"))


def test_counts_and_outcomes_come_back() -> None:
    assert decode_offered(encode_offered(OFFERED)) == OFFERED
    assert decode_outcomes(encode_outcomes(OUTCOMES)) == OUTCOMES
    assert decode_outcomes(encode_outcomes([])) == ()


@pytest.mark.parametrize(
    "wrong",
    [Outcome("m", 0, "a", 0, float("nan")), Outcome("", 0, "a", 0, 1.0), Outcome("m", 0, "a", 0, 1.0, -1)],
    ids=["label", "model", "observed"],
)
def test_outcomes_that_cannot_be_are_refused(wrong: Outcome) -> None:
    with pytest.raises(ValueError, match="an outcome"):
        decode_outcomes(encode_outcomes([wrong]))


@pytest.mark.parametrize(
    "wrong", [Offered(VersionKey("", 1), "", 0, 0, 0), Offered(VersionKey("m", 1), "", 2**62, 0, 0)], ids=["model", "rows"]
)
def test_counts_that_cannot_be_are_refused(wrong: Offered) -> None:
    with pytest.raises(ValueError, match=r"names no version|rows"):
        decode_offered(encode_offered([wrong]))


def test_too_many_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="65536"):
        encode_outcomes(OUTCOMES * 40_000)


def test_redacted_columns_are_gone_with_their_statuses_and_all_else_is_there() -> None:
    samples = rows_of(5)
    found = redacted(samples, ("amount", "user", "score"))
    assert set(found.inputs) == {"flags", "pixels", "half"}
    assert set(found.callers) == {"at"}
    assert not found.outputs
    assert found.features == ("age",)
    assert (found.statuses == samples.statuses[:, 1:]).all()
    assert equal(replace(found, **_of(samples)), samples)
    assert b"amount" not in encode(found)


def _of(samples: Samples) -> dict[str, Any]:
    return {name: getattr(samples, name) for name in ("inputs", "callers", "outputs", "features", "statuses")}


def test_an_input_that_a_redacted_feature_is_packed_into_is_gone_whole() -> None:
    found = redacted(rows_of(5), ("age",), {"pixels": ("age", "height"), "half": ("length",)})
    assert set(found.inputs) == {"amount", "flags", "half"}


def test_without_names_nothing_is_redacted() -> None:
    samples = rows_of(3)
    assert redacted(samples, (), {"pixels": ("age",)}) is samples
