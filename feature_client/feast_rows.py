"""Feast's hashes of protobuf values, decoded for a whole batch at once. **Pure.**

A cell is one field's bytes: nil where the hash has no such field, empty for no value, else one `feast.types.Value`. Whatever is
not exactly what Feast writes for the declared type makes its row FP_MISMATCH; no value is ever guessed.
Source: `feast/types/Value.proto` of Feast 0.67.0; protobuf's encoding; lists are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from feature_client.feast_view import FeastView
from feature_client.schema import DTYPES, US_PER_S, Array, Feature, Status
from feature_client.served import Found

_FIXED = {"float32": 6, "float64": 5}
_TIMESTAMP = 8
_VARINT = {"int32": (3,), "int64": (4, _TIMESTAMP), "bool": (7,)}
_LISTS = {"float32": (16,), "float64": (15,), "int32": (13,), "int64": (14, 18), "bool": (17,)}
_BYTES = (1, 2)  # of bytes and of text
_NULL = bytes((0x98, 0x01, 0x00))  # `null_val`
_MAX_SECONDS = 253_402_300_799  # the year 9999, where protobuf's timestamps end
_MIN_SECONDS = -62_135_596_800

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Cells:
    """Cells of N rows end to end. Shapes: `start`, `size` int64 `[N, F]`; `absent` (nil) bool `[N, F]`."""

    cells: Sequence[bytes | None]
    buffer: NDArray[np.uint8]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    absent: Bools


def unpack_feast(view: FeastView, replies: Sequence[Sequence[bytes | None]]) -> Found:
    """Rows of one view as replies to HMGET of `view.fields` gave them, one per entity; the last of each is the time.

    A row whose every field is nil is NOT_FOUND, a nil among others a value that is missing, an empty one a null.
    Shapes: as `Found`.
    """
    rows, width = len(replies), len(view.features)
    packed = _laid_out([cell for reply in replies for cell in reply[:width]], rows, width)
    nulls = ~packed.absent & (packed.size == 0)
    for at in np.flatnonzero((packed.size == len(_NULL)).ravel()).tolist():
        nulls.ravel()[at] = packed.cells[at] == _NULL
    good = np.zeros((rows, width), dtype=np.bool_)
    values: dict[str, Array] = {}
    for group in _groups(view):
        columns, sound, none = _columns(group[0][1], packed, [index for index, _ in group], ~nulls)
        for at, (index, feature) in enumerate(group):
            values[feature.name] = columns[at]
            good[:, index], nulls[:, index] = sound[at], nulls[:, index] | none[at]
    values = {name: values[name] for name in view.names}
    event_us, timed = _times([reply[width] for reply in replies])
    sound = (good | nulls | packed.absent).all(axis=1) & timed
    gone = packed.absent.all(axis=1) & np.fromiter((reply[width] is None for reply in replies), np.bool_, rows)
    status = np.where(sound, Status.PRESENT, Status.FP_MISMATCH).astype(np.uint8)
    status[gone] = Status.NOT_FOUND
    event_us[status != Status.PRESENT] = 0
    return Found(values, nulls, status, event_us, event_us, packed.absent)


def _laid_out(cells: list[bytes | None], rows: int, width: int) -> _Cells:
    there = [cell or b"" for cell in cells]
    size = np.fromiter(map(len, there), np.int64, len(there))
    # what is read past a short cell's end is judged by its size, so it only has to be there
    buffer = np.frombuffer(b"".join((*there, bytes(16))), np.uint8)
    start = np.concatenate(([0], np.cumsum(size)[:-1])) if len(there) else size
    absent = np.fromiter((cell is None for cell in cells), np.bool_, len(cells))
    shape = (rows, width)
    return _Cells(cells, buffer, start.reshape(shape), size.reshape(shape), absent.reshape(shape))


@lru_cache(maxsize=1024)
def _groups(view: FeastView) -> list[list[tuple[int, Feature]]]:
    """Features with their places, those of one type and shape together: they are decoded at once."""
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[int, Feature]]] = {}
    for index, feature in enumerate(view.features):
        groups.setdefault((feature.dtype, feature.shape), []).append((index, feature))
    return list(groups.values())


def _columns(feature: Feature, packed: _Cells, places: list[int], worth: Bools) -> tuple[Array, Bools, Bools]:
    """Features of one type: values, where their cells are sound, and where those say that there is no value.

    Shapes: `[K, N, *shape]`, `[K, N]`, `[K, N]`. What is not sound, or no value, is what says so where the type has it.
    """
    start, size = packed.start.T[places].ravel(), packed.size.T[places].ravel()
    if feature.dtype in _FIXED:
        flat, sound = _fixed(feature, packed.buffer, start, size)
        # NaN is no value, as in rows of ours
        none = sound & np.isnan(flat).reshape(len(flat), feature.elements).all(axis=1)
    elif feature.shape or feature.dtype == "bytes":
        width = packed.start.shape[1]
        cells = [cell for place in places for cell in packed.cells[place::width]]
        flat, sound = _one_by_one(feature, cells, worth.T[places].ravel())
        none = np.zeros(len(flat), dtype=np.bool_)
    else:
        numbers, sound = _varints(packed.buffer, start + 1, size - 1)
        tags = packed.buffer[start]
        sound &= np.isin(tags, [number << 3 for number in _VARINT[feature.dtype]]) & (size > 1)
        flat, sound = _narrowed(feature, numbers, sound)
        # the UNIX timestamp that Feast writes where pandas has none
        none = sound & (tags == _TIMESTAMP << 3) & (numbers == np.iinfo(np.int64).min)
    if (blank := ~sound | (none & (feature.dtype not in _FIXED))).any():  # a NaN stays as it is
        flat[blank] = None if feature.dtype == "bytes" else np.nan if feature.dtype in _FIXED else 0
    shape = (len(places), packed.start.shape[0])
    return flat.reshape(*shape, *feature.shape), sound.reshape(shape), none.reshape(shape)


def _fixed(
    feature: Feature, buffer: NDArray[np.uint8], start: NDArray[np.int64], size: NDArray[np.int64]
) -> tuple[Array, Bools]:
    """Floats, alone or in lists: what stands before them depends on the type and on how many there are, on nothing else."""
    dtype = DTYPES[feature.dtype].newbyteorder("<")
    many = feature.elements * dtype.itemsize
    if feature.shape:
        (number,) = _LISTS[feature.dtype]
        inner = b"\x0a" + _varint(many)
        head = _varint(number << 3 | 2) + _varint(len(inner) + many) + inner
    else:
        head = _varint(_FIXED[feature.dtype] << 3 | (5 if dtype.itemsize == 4 else 1))
    sound = size == len(head) + many
    at = np.where(sound, start, 0)[:, None]
    if len(buffer) < len(head) + many:  # nothing is this long
        return np.zeros((len(start), *feature.shape), DTYPES[feature.dtype]), sound
    sound &= (buffer[at + np.arange(len(head))] == np.frombuffer(head, np.uint8)).all(axis=1)
    raw = np.ascontiguousarray(buffer[at + (len(head) + np.arange(many))])
    return raw.view(dtype).reshape(len(start), *feature.shape).astype(DTYPES[feature.dtype]), sound


def _varints(buffer: NDArray[np.uint8], start: NDArray[np.int64], size: NDArray[np.int64]) -> tuple[NDArray[np.int64], Bools]:
    """Varints that fill their bytes exactly. Shapes: `[N]`, `[N]`."""
    number = np.zeros(len(start), np.uint64)
    sound = (size >= 1) & (size <= 10)
    for at in range(10):
        inside = sound & (at < size)
        byte = np.where(inside, buffer[np.where(inside, start + at, 0)], 0).astype(np.uint64)
        number |= (byte & np.uint64(0x7F)) << np.uint64(7 * at)
        sound &= ~inside | ((byte >= 0x80) == (at < size - 1))
        if at:  # a last byte of nothing could have been left out, and never is
            sound &= ~inside | (byte != 0)
        if at == 9:  # 63 bits stand before it
            sound &= byte <= 1
    return number.view(np.int64), sound


def _narrowed(feature: Feature, numbers: NDArray[np.int64], sound: Bools) -> tuple[Array, Bools]:
    """Numbers in the feature's type, sound where it holds them. Shapes: `[N]`, `[N]`."""
    column = numbers.astype(DTYPES[feature.dtype])
    return column, sound & (column.astype(np.int64) == numbers)


def _one_by_one(feature: Feature, cells: Sequence[bytes | None], worth: Bools) -> tuple[Array, Bools]:
    column = np.zeros((len(cells), *feature.shape), dtype=DTYPES[feature.dtype])
    sound = np.zeros(len(cells), dtype=np.bool_)
    for row, cell in enumerate(cells):
        if not cell or not worth[row]:
            continue
        made = _text(cell) if feature.dtype == "bytes" else _numbers(feature, cell)
        if made is not None:
            column[row], sound[row] = made, True
    return column, sound


def _text(cell: bytes) -> bytes | None:
    return _delimited(cell, _BYTES)


def _numbers(feature: Feature, cell: bytes) -> Array | None:
    inner = _delimited(cell, _LISTS[feature.dtype])
    packed = None if inner is None else _delimited(inner, (1,))
    if not packed:
        return None
    data = np.frombuffer(packed + bytes(10), np.uint8)
    ends = np.flatnonzero(data[: len(packed)] < 0x80)
    if len(ends) != feature.elements or ends[-1] != len(packed) - 1:
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    numbers, sound = _varints(data, starts, ends - starts + 1)
    column, sound = _narrowed(feature, numbers, sound)
    return column if sound.all() else None


def _delimited(message: bytes, numbers: tuple[int, ...]) -> bytes | None:
    """The bytes of a message that is one length-delimited field, of one of these numbers, and nothing else."""
    tag, at = _read_varint(message, 0)
    length, at = _read_varint(message, at)
    whole = at > 0 and tag & 7 == 2 and tag >> 3 in numbers and at + length == len(message)
    return message[at:] if whole else None


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends; -1 for the end where there is none. `at` may be such a -1."""
    number = shift = 0
    while 0 <= at < len(message) and shift < 70:
        number |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return (number, at) if message[at - 1] or not shift else (0, -1)
        shift += 7
    return 0, -1


def _times(cells: Sequence[bytes | None]) -> tuple[NDArray[np.int64], Bools]:
    """Microseconds, and where they are sound. Rows that were written together have the same bytes, so each is parsed once."""
    known = {cell: _time(cell) for cell in set(cells)}
    found = [known[cell] for cell in cells]
    micros = np.array([0 if each is None else each for each in found], dtype=np.int64)
    return micros, np.fromiter((each is not None for each in found), np.bool_, len(found))


def _time(cell: bytes | None) -> int | None:
    """Microseconds of a `google.protobuf.Timestamp`, rounded down; None where it is none."""
    if cell is None:
        return None
    parts = {0x08: 0, 0x10: 0}
    at = 0
    while at < len(cell):
        tag, at = _read_varint(cell, at)
        number, at = _read_varint(cell, at)
        if at < 0 or tag not in parts:
            return None
        parts[tag] = number - (1 << 64) if number >> 63 else number
    seconds, nanos = parts[0x08], parts[0x10]
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS or not 0 <= nanos < 1_000_000_000:
        return None
    return seconds * US_PER_S + nanos // 1000
