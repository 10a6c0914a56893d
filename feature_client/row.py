"""Rows as they lie in a store, format v1: one entity's features of one view in one string of bytes. **Pure.**

Little-endian, a multiple of 8 bytes long:

     0  u8 magic 0xF7 | u8 format 1 | u16 flags | u32 number of features
     8  u64 stamp: the first bytes of the view's fingerprint
    16  i64 event_us | i64 available_us
    32  u64 check over all other words
    40  null bitmap, bit i = feature i as declared, padded to 8 bytes
        values, the widest type first, then by the type's name, then as declared; a value with a shape lies in C order
        of `bytes` features, aligned to 4: u32 end of each in the tail; padded to 8; the tail; padded to 8

Flags: 1 some value is null, 4 tombstone (a header alone: the entity has no row any more); 2 is kept for compression.
The check is the sum, modulo 2^64, of a weight times each word w ^ w >> 32. Weights are odd and each mapping of a word is one to
one, so no damage to a single word goes unseen; taking in the upper half keeps two flipped signs from cancelling out. It is no
CRC because numpy has none over many rows at once: 500 rows of 248 bytes are checked in 16 us.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import DefinitionError, EventError
from feature_client.schema import DTYPES, Array, Columns, Feature, Status
from feature_client.served import Found, absent_rows
from feature_client.view import View

if sys.byteorder != "little":
    raise ImportError("rows are little-endian and read in place: this machine is not")

MAGIC, FORMAT = 0xF7, 1
HEADER_BYTES = 40
MAX_ROW_BYTES = 2**20
"""Values that are larger have no place in a row of features."""

_NULLS, _TOMBSTONE = np.uint64(1 << 16), np.uint64(4 << 16)  # flags, where they stand in the first word
_WORD, _STAMP, _EVENT, _AVAILABLE, _CHECK = range(5)
_HALF = np.uint64(32)
_PRESENT, _MISMATCH = int(Status.PRESENT), int(Status.FP_MISMATCH)  # numpy takes longer over members of an enum
_NO_ENDS = np.empty((0, 0), np.int64)
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Block:
    """Features of one type that lie side by side: scalars, or a single one with a shape."""

    names: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of a view lies in its rows. `row_bytes`: of a row whose tail is empty; without `tails`, of every row."""

    first_word: int
    features: int
    blocks: tuple[Block, ...]
    tails: tuple[tuple[int, str], ...]
    ends_at: int
    row_bytes: int


@lru_cache(maxsize=1024)
def layout_of(view: View) -> Layout:
    """The layout of a view. Raises: DefinitionError for one whose rows would be too large."""
    at = HEADER_BYTES + -(-len(view.features) // 64) * 8
    blocks: list[Block] = []
    fixed = [feature for feature in view.features if feature.dtype != "bytes"]
    for feature in sorted(fixed, key=lambda each: (-DTYPES[each.dtype].itemsize, each.dtype)):
        block = Block((feature.name,), DTYPES[feature.dtype], feature.shape, at, at + _bytes_of(feature))
        at = block.stop
        if blocks and not feature.shape and not blocks[-1].shape and blocks[-1].dtype == block.dtype:
            block = Block((*blocks[-1].names, feature.name), block.dtype, (), blocks.pop().start, at)
        blocks.append(block)
    tails = tuple((index, feature.name) for index, feature in enumerate(view.features) if feature.dtype == "bytes")
    ends_at = -(-at // 4) * 4
    row_bytes = -(-(ends_at + 4 * len(tails)) // 8) * 8
    if row_bytes > MAX_ROW_BYTES:
        raise DefinitionError(f"a row of '{view.ref}' would have {row_bytes} bytes; {MAX_ROW_BYTES} at most")
    first_word = MAGIC | FORMAT << 8 | len(view.features) << 32
    return Layout(first_word, len(view.features), tuple(blocks), tails, ends_at, row_bytes)


def pack(
    view: View,
    stamp: int,
    values: Columns,
    nulls: NDArray[np.bool_],
    event_us: NDArray[np.int64],
    available_us: NDArray[np.int64],
) -> list[bytes]:
    """Rows of N entities.

    Shapes: `values` `[N, *shape]` per feature in declared types; `nulls` bool `[N, F]`; times int64 `[N]`. What stands where a
    number is null is kept bit for bit; a null of type bytes is None when it is read, whatever stood there.
    Raises: EventError for columns that are not like that, None that is not marked null, and rows that are too large.
    """
    layout = layout_of(view)
    count = len(event_us)
    _check_columns(view, count, values, nulls, event_us, available_us)
    if not count:
        return []
    raw = np.zeros((count, layout.row_bytes), np.uint8)
    words = raw.view(np.uint64)
    words[:, _WORD] = np.uint64(layout.first_word) + np.where(nulls.any(axis=1), _NULLS, np.uint64(0))
    words[:, _STAMP] = stamp
    words[:, _EVENT] = event_us.view(np.uint64)
    words[:, _AVAILABLE] = available_us.view(np.uint64)
    bits = np.packbits(nulls, axis=1, bitorder="little")
    raw[:, HEADER_BYTES : HEADER_BYTES + bits.shape[1]] = bits
    for block in layout.blocks:
        columns = raw[:, block.start : block.stop].view(block.dtype)
        if block.shape:
            columns[:] = values[block.names[0]].reshape(count, -1)
        else:
            for index, name in enumerate(block.names):
                columns[:, index] = values[name]
    if not layout.tails:
        words[:, _CHECK] = _sums(words)
        return _split(raw)
    tails = _pack_tails(view, layout, raw, values, nulls)
    sizes = np.fromiter(map(len, tails), np.int64, count) + layout.row_bytes
    unchecked = b"".join(map(bytes.__add__, _split(raw), tails))
    words[:, _CHECK] = _checks(np.frombuffer(unchecked, np.uint64), sizes)
    return list(map(bytes.__add__, _split(raw), tails))


def tombstone(view: View, stamp: int, event_us: int, available_us: int) -> bytes:
    """What says that an entity has no row any more, from the instant `available_us` on."""
    times = np.array([event_us, available_us], np.int64).view(np.uint64)
    words = np.array([layout_of(view).first_word | int(_TOMBSTONE), stamp, *times, 0], np.uint64)
    words[_CHECK] = _checks(words, np.array([HEADER_BYTES]))[0]
    return words.tobytes()


def unpack(view: View, stamp: int, rows: Sequence[bytes | None], absent: Status = Status.NOT_FOUND) -> Found:
    """Rows as a store gave them. `absent`: the status of those that are None.

    A row of another stamp, layout or length, or whose check is wrong, is FP_MISMATCH, a tombstone NOT_FOUND. Whatever the bytes
    are, nothing is raised. Ownership: values are copies, zeros where there is no row.
    """
    layout = layout_of(view)
    count = len(rows)
    if not count:
        return absent_rows(view, 0, absent)
    whole, statuses = _arranged(layout, stamp, rows, absent)
    if layout.tails:
        words, ends, checks, odd = _with_tails(layout, whole)
    else:
        words = np.frombuffer(b"".join(whole), np.uint64).reshape(count, -1)
        ends, checks, odd = _NO_ENDS, _sums(words), np.zeros(count, np.uint64)
    flags = words[:, _WORD] ^ np.uint64(layout.first_word)
    # every bit that is not as it must be, of flags all but the nulls'
    odd = odd | ((flags | _NULLS) ^ _NULLS) | (words[:, _STAMP] ^ np.uint64(stamp)) | (words[:, _CHECK] ^ checks)
    here = odd == 0
    statuses[here] = _PRESENT
    if not here.all():
        words = np.where(here[:, None], words, np.uint64(0))
        flags = np.where(here, flags, np.uint64(0))
    raw = words.view(np.uint8)
    nulls = np.zeros((count, layout.features), np.bool_)
    if flags.any():
        bits = raw[:, HEADER_BYTES : HEADER_BYTES + -(-layout.features // 8)]
        nulls = np.unpackbits(bits, axis=1, count=layout.features, bitorder="little").astype(np.bool_)
    values = _values(layout, raw)
    for column, (index, name) in enumerate(layout.tails):
        values[name] = _texts(whole, layout.row_bytes, ends, column, here & ~nulls[:, index])
    event_us, available_us = (words[:, at].view(np.int64).copy() for at in (_EVENT, _AVAILABLE))
    return Found(values, nulls, statuses, event_us, available_us)


def _bytes_of(feature: Feature) -> int:
    return DTYPES[feature.dtype].itemsize * feature.elements


def _check_columns(view: View, count: int, values: Columns, nulls: Array, event_us: Array, available_us: Array) -> None:
    wanted: list[tuple[str, Array | None, np.dtype[Any], tuple[int, ...]]] = [
        ("event_us", event_us, np.dtype(np.int64), (count,)),
        ("available_us", available_us, np.dtype(np.int64), (count,)),
        ("nulls", nulls, np.dtype(np.bool_), (count, len(view.features))),
    ]
    wanted += [(each.name, values.get(each.name), DTYPES[each.dtype], (count, *each.shape)) for each in view.features]
    for name, column, dtype, shape in wanted:
        if column is None or column.dtype != dtype or column.shape != shape:
            got = "missing" if column is None else f"{column.dtype} {list(column.shape)}"
            raise EventError(f"'{name}' of rows of '{view.ref}' must be {dtype} {list(shape)}; it is {got}")


def _split(raw: NDArray[np.uint8]) -> list[bytes]:
    whole, size = raw.tobytes(), raw.shape[1]
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def _pack_tails(view: View, layout: Layout, raw: NDArray[np.uint8], values: Columns, nulls: Array) -> list[bytes]:
    """The tails of rows, padded; where each of their values ends is written into `raw`."""
    texts: list[list[bytes]] = []
    for index, name in layout.tails:
        column = [b"" if null else text for null, text in zip(nulls[:, index].tolist(), values[name].tolist(), strict=True)]
        for row, text in enumerate(column):
            if not isinstance(text, bytes):
                raise EventError(f"row {row} of '{view.ref}': '{name}' must be bytes, not {type(text).__name__}")
        texts.append(column)
    lengths = np.array([list(map(len, column)) for column in texts], np.int64).T
    ends = lengths.cumsum(axis=1)
    if (largest := int(ends[:, -1].max())) > MAX_ROW_BYTES - layout.row_bytes:
        raise EventError(f"a row of '{view.ref}' has {largest} bytes of text; it may have {MAX_ROW_BYTES} bytes in all")
    raw[:, layout.ends_at : layout.ends_at + 4 * len(texts)].view(np.uint32)[:] = ends
    tails = map(b"".join, zip(*texts, strict=True))
    return [tail + bytes(-len(tail) % 8) for tail in tails]


def _arranged(
    layout: Layout, stamp: int, rows: Sequence[bytes | None], absent: Status
) -> tuple[Sequence[bytes], NDArray[np.uint8]]:
    """Rows of a possible length, zeros in place of others; and the status of each if it is not a sound row."""
    size = layout.row_bytes
    statuses = np.full(len(rows), _MISMATCH, np.uint8)
    if not layout.tails:
        try:
            uniform = set(map(len, rows)) == {size}  # type: ignore[arg-type]  # which is what the exception is for
        except TypeError:
            uniform = False
        if uniform:
            return rows, statuses  # type: ignore[return-value]  # None has no length
    lengths = np.array([-1 if row is None else len(row) for row in rows], np.int64)
    fits = lengths == size
    if layout.tails:
        fits |= (lengths > size) & (lengths <= MAX_ROW_BYTES) & (lengths % 8 == 0)
    zeros = bytes(size)
    whole = [row if row is not None and fit else zeros for row, fit in zip(rows, fits.tolist(), strict=True)]
    statuses[lengths == -1] = absent
    headers = np.flatnonzero(lengths == HEADER_BYTES)
    if len(headers):
        words = np.frombuffer(b"".join(rows[at] or b"" for at in headers.tolist()), np.uint64).reshape(len(headers), -1)
        buried = (words[:, _WORD] == np.uint64(layout.first_word) | _TOMBSTONE) & (words[:, _STAMP] == stamp)
        statuses[headers[buried & (words[:, _CHECK] == _sums(words))]] = Status.NOT_FOUND
    return whole, statuses


def _with_tails(layout: Layout, whole: Sequence[bytes]) -> tuple[Words, NDArray[np.int64], Words, Words]:
    """Of rows with tails: words of their fixed parts, ends of values `[N, T]`, checks; 0 where lengths agree with ends."""
    sizes = np.fromiter(map(len, whole), np.int64, len(whole))
    flat = np.frombuffer(b"".join(whole), np.uint64)
    starts = (sizes.cumsum() - sizes) // 8
    words = flat[starts[:, None] + np.arange(layout.row_bytes // 8)]
    stop = layout.ends_at + 4 * len(layout.tails)
    ends = words.view(np.uint8)[:, layout.ends_at : stop].view(np.uint32).astype(np.int64)
    odd = (np.diff(ends, axis=1, prepend=0) < 0).any(axis=1) | (layout.row_bytes + (ends[:, -1] + 7) // 8 * 8 != sizes)
    return words, ends, _checks(flat, sizes), odd.astype(np.uint64)


def _values(layout: Layout, raw: NDArray[np.uint8]) -> dict[str, Array]:
    """Columns of rows: of each block one transposed copy, of which they are views."""
    values: dict[str, Array] = {}
    for block in layout.blocks:
        columns = raw[:, block.start : block.stop].view(block.dtype)
        if block.shape:
            values[block.names[0]] = columns.reshape(len(raw), *block.shape).copy()
        else:
            values.update(zip(block.names, columns.T.copy(), strict=True))
    return values


def _texts(whole: Sequence[bytes], tail_at: int, ends: NDArray[np.int64], column: int, here: NDArray[np.bool_]) -> Array:
    texts = np.empty(len(whole), object)
    stops = (ends[:, column] + tail_at).tolist()
    starts = (ends[:, column - 1] + tail_at).tolist() if column else [tail_at] * len(whole)
    for row in np.flatnonzero(here).tolist():
        texts[row] = whole[row][starts[row] : stops[row]]
    return texts


@lru_cache(maxsize=32)
def _weights(bits: int) -> Words:
    """Of 2^bits words of a row, by position: odd, from the finaliser of splitmix64; 0 for the check itself."""
    mixed = np.arange(1, 2**bits + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
    mixed[_CHECK] = 0
    mixed.flags.writeable = False
    return mixed


def _sums(words: Words) -> Words:
    """Checks of rows of one length. Shapes: `[N, W]` to `[N]`."""
    # einsum takes a third of the time of `@`, which goes through a slower loop for integers
    count = words.shape[1]
    sums: Words = np.einsum("ij,j->i", words ^ (words >> _HALF), _weights(count.bit_length())[:count])
    return sums


def _checks(flat: Words, sizes: NDArray[np.int64]) -> Words:
    """Checks of rows of any lengths, one after the other in `flat`; `sizes` in bytes."""
    lengths = sizes // 8
    if (lengths == lengths[0]).all():
        return _sums(flat.reshape(len(sizes), -1))
    starts = lengths.cumsum() - lengths
    weights = _weights(int(lengths.max()).bit_length())[np.arange(len(flat)) - np.repeat(starts, lengths)]
    sums: Words = np.add.reduceat((flat ^ (flat >> _HALF)) * weights, starts)
    return sums
