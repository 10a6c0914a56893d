"""Sampled rows as bytes and back, exact to the bit. **Pure.**

Floor 4. For a stream that other processes write to: what is read is looked at field by field, and whatever is not as it must be
is a ValueError. A column whose rows are all the same (a batch's timings, its inclusion) is written once.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import DEFAULTED, Status
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.framing import Fields, framed, number, text
from server.monitoring.samples import Columns, Samples

_MAGIC, _VERSION = b"PdSa", 1
_DTYPES = tuple(
    np.dtype(name) for name in ("?", "u1", "<u2", "<u4", "<u8", "i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "O")
)
_OBJECT = len(_DTYPES) - 1
_EACH, _ONCE = 0, 1
"""How rows are written: one after the other, or one for all."""
_NONE = 0xFFFF_FFFF
"""The length of an element that is None."""
_MAX_BYTES = 256 * 2**20
"""Of all arrays of a blob, as read: a few bytes may stand for many rows, so the blob's own size is no bound."""
_MAX_DIMS, _MAX_NAMES = 8, 65_536
_ARRAYS = (
    ("time_us", np.dtype("<i8")),
    ("id_hash", np.dtype("<u8")),
    ("row", np.dtype("<i4")),
    ("inclusion", np.dtype("<f8")),
    ("queue_us", np.dtype("<i8")),
    ("execute_us", np.dtype("<i8")),
)
_COLUMNS = ("inputs", "callers", "outputs")
Redaction = tuple[Sequence[str], Mapping[str, Sequence[str]]]
"""Names that are redacted, and by input the features that it is made of: the arguments of `redacted`."""


def encode(samples: Samples) -> bytes:
    """The blob of some samples. Elements of BYTES that are `str` are written as UTF-8, as they travel to callers.

    Raises: ValueError for what `decode` would refuse for its size, and for arrays of a dtype that no tensor has.
    """
    return framed(_MAGIC, _VERSION, _fields(samples))


def decode(blob: bytes) -> Samples:
    """The samples of a blob. Their arrays are the caller's own; at most 256 MiB, whatever the blob says.

    Raises: ValueError for what `encode` did not write: cut off, damaged, of another version, or values that no samples have.
    """
    fields = Fields(blob, _MAGIC, _VERSION)
    model, version, arm = fields.text(), fields.integer("Q"), fields.text()
    if not model or not version:
        raise ValueError("it names no version of a model")
    epoch, weight = fields.integer("q"), fields.real()
    if not 0 <= weight <= 1:
        raise ValueError(f"a weight of {weight}")
    rows = fields.integer("I")
    features = tuple(fields.text() for _ in range(_count(fields)))
    budget = _Budget()
    statuses: Any = _read(fields, rows, np.dtype("u1"), (len(features),), budget)
    if len(features) and rows and int((statuses & ~np.uint8(DEFAULTED)).max()) > max(Status):
        raise ValueError("it has statuses that no feature has")
    arrays: dict[str, Any] = {name: _read(fields, rows, dtype, (), budget) for name, dtype in _ARRAYS}
    inclusion = arrays["inclusion"]
    if not bool(((inclusion > 0) & (inclusion <= 1)).all()) or (rows and int(arrays["row"].min()) < 0):
        raise ValueError("it has inclusions or rows that no request has")
    columns: dict[str, Any] = {name: dict(_read_columns(fields, rows, budget)) for name in _COLUMNS}
    fields.end()
    return Samples(
        key=VersionKey(model, version),
        arm=arm,
        epoch=epoch,
        weight=weight,
        features=features,
        statuses=statuses,
        **arrays,
        **columns,
    )


def redacted(samples: Samples, names: Sequence[str], packed: Mapping[str, Sequence[str]] | None = None) -> Samples:
    """The same rows without what `names` name: inputs, what callers brought, outputs, features and their statuses.

    `packed`: the features that inputs are made of; an input with a named one among them is left out whole.
    """
    if not names:
        return samples
    gone = set(names)
    gone |= {name for name, features in (packed or {}).items() if not gone.isdisjoint(features)}
    kept = [index for index, name in enumerate(samples.features) if name not in gone]

    def without(columns: Columns) -> Columns:
        return {name: array for name, array in columns.items() if name not in gone}

    return Samples(
        key=samples.key,
        arm=samples.arm,
        epoch=samples.epoch,
        weight=samples.weight,
        features=tuple(samples.features[index] for index in kept),
        statuses=samples.statuses[:, kept],
        inputs=without(samples.inputs),
        callers=without(samples.callers),
        outputs=without(samples.outputs),
        **{name: getattr(samples, name) for name, _ in _ARRAYS},
    )


def _fields(samples: Samples) -> Iterator[bytes]:
    budget = _Budget()
    yield text(samples.key.model) + number("Q", samples.key.version) + text(samples.arm)
    yield number("q", samples.epoch) + number("d", samples.weight) + number("I", samples.rows)
    yield number("I", len(samples.features)) + b"".join(map(text, samples.features))
    yield from _write(samples.statuses, (samples.rows, len(samples.features)), np.dtype("u1"), budget)
    for name, dtype in _ARRAYS:
        yield from _write(getattr(samples, name), (samples.rows,), dtype, budget)
    for name in _COLUMNS:
        columns: Columns = getattr(samples, name)
        yield number("I", len(columns))
        for column, array in columns.items():
            if array.dtype not in _DTYPES or array.ndim - 1 > _MAX_DIMS:
                raise ValueError(f"'{column}' cannot be written: {array.dtype} of {array.ndim} dimensions")
            yield text(column) + number("B", _DTYPES.index(array.dtype)) + number("B", array.ndim - 1)
            yield b"".join(number("I", size) for size in array.shape[1:])
            yield from _write(array, (samples.rows, *array.shape[1:]), array.dtype, budget)


def _count(fields: Fields) -> int:
    count = fields.integer("I")
    if count > _MAX_NAMES:
        raise ValueError(f"{count} names")
    return count


class _Budget:
    """Bytes that may still be allocated."""

    def __init__(self) -> None:
        self._left = _MAX_BYTES

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Take those of one array. Raises: ValueError."""
        # counted without what is 0, too: an array of no elements may still have a dimension that numpy cannot have
        self._left -= prod(max(size, 1) for size in shape) * dtype.itemsize
        if self._left < 0:
            raise ValueError(f"its arrays have more than {_MAX_BYTES} bytes")


def _write(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any], budget: _Budget) -> Iterator[bytes]:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"an array of {array.dtype} {array.shape} stands where {dtype} {shape} must")
    budget.take(shape, dtype)
    rows = np.ascontiguousarray(array)
    is_text = array.dtype == object
    if len(array) > 1 and array.size and _all_alike(rows, is_text):
        yield number("B", _ONCE)
        rows = rows[:1]
    else:
        yield number("B", _EACH)
    if not is_text:
        yield rows.tobytes()
        return
    elements = [each.encode() if isinstance(each, str) else each for each in rows.ravel().tolist()]
    if not set(map(type, elements)) <= {bytes, type(None)}:
        raise ValueError("elements of BYTES must be bytes")
    yield np.array([_NONE if each is None else len(each) for each in elements], dtype="<u4").tobytes()
    yield b"".join(each for each in elements if each is not None)


def _all_alike(rows: Array, is_text: bool) -> bool:
    if is_text:
        first, *others = rows.tolist()
        return all(each == first for each in others)
    as_bytes = rows.reshape(len(rows), -1).view(np.uint8)  # bits and not values: NaN is like itself, and -0.0 not like 0.0
    return bool((as_bytes[1] == as_bytes[0]).all() and (as_bytes == as_bytes[0]).all())


def _read_columns(fields: Fields, rows: int, budget: _Budget) -> Iterator[tuple[str, Array]]:
    names = set()
    for _ in range(_count(fields)):
        name, code, dims = fields.text(), fields.integer("B"), fields.integer("B")
        if name in names or code >= len(_DTYPES) or dims > _MAX_DIMS:
            raise ValueError(f"column '{name}' is there twice, or of dtype {code}, or of {dims} dimensions")
        names.add(name)
        yield name, _read(fields, rows, _DTYPES[code], tuple(fields.integer("I") for _ in range(dims)), budget)


def _read(fields: Fields, rows: int, dtype: np.dtype[Any], dims: tuple[int, ...], budget: _Budget) -> Array:
    how = fields.integer("B")
    if how not in (_EACH, _ONCE):
        raise ValueError(f"rows are written in a way numbered {how}")
    budget.take((rows, *dims), dtype)
    written = min(rows, 1) if how == _ONCE else rows
    count = written * prod(dims)
    flat = _read_bytes(fields, count) if dtype.hasobject else np.frombuffer(fields.take(count * dtype.itemsize), dtype)
    if dtype == np.bool_ and count and int(flat.view(np.uint8).max()) > 1:
        raise ValueError("it has booleans that are neither 0 nor 1")
    array = flat.reshape(written, *dims)
    # a copy in any case: what numpy reads from bytes lies where it happens to, and keeps all of the blob in memory
    return np.repeat(array, rows, axis=0) if written != rows else array.copy()


def _read_bytes(fields: Fields, count: int) -> NDArray[np.object_]:
    elements = np.empty(count, dtype=object)
    lengths = np.frombuffer(fields.take(4 * count), "<u4").tolist()
    for index, length in enumerate(lengths):
        elements[index] = None if length == _NONE else bytes(fields.take(length))
    return elements
