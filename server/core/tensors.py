"""Tensor datatypes and their bytes on the wire. **Pure.**

Datatype names are those of the Open Inference Protocol. numpy has no bfloat16: BF16 travels as its raw 16-bit pattern in
`uint16` arrays, end to end. BYTES elements are Python `bytes` in arrays of dtype `object`.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.errors import InvalidRequest

Array = NDArray[np.generic] | NDArray[np.object_]

NUMPY_DTYPES: dict[str, np.dtype[np.generic] | np.dtype[np.object_]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(np.uint16),
    "BYTES": np.dtype(np.object_),
}
"""Every datatype of the protocol, with the numpy dtype its elements have in this process."""

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""The whole shape and the dtype of several arrays, by name."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Shapes: `shape` leaves the batch dimension out where the model batches; -1 is a dimension fixed per request.
    `pad_to`, of inputs: the sizes that free dimensions are executed with, ascending; what a request does not fill of them is
    `pad_value`. Empty: each size is executed as it is.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    pad_to: tuple[int, ...] = ()
    pad_value: float = 0

    def padded(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """The dimensions that a tensor with these is executed with. Raises: IndexError for a free one above the largest size.

        >>> TensorSpec("ids", "INT64", (-1, 2), pad_to=(16, 32)).padded((17, 2))
        (32, 2)
        """
        if not self.pad_to:
            return dims
        sizes = self.pad_to
        return tuple(
            sizes[bisect_left(sizes, dim)] if stated == -1 else dim for stated, dim in zip(self.shape, dims, strict=True)
        )


def plain_arrays(shapes: Shapes) -> dict[str, Array]:
    """Unfilled arrays in ordinary memory."""
    return {name: np.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def element_count(shape: Iterable[int]) -> int:
    """Number of elements of a concrete shape, exact for any size (Python integers cannot overflow).

    >>> element_count([2**31, 2**31, 4]) == 2**64
    True
    """
    return prod(shape)


def byte_size(datatype: str, shape: Iterable[int]) -> int:
    """Bytes of a concrete fixed-width tensor on the wire. Not for BYTES, whose size depends on its elements."""
    return element_count(shape) * NUMPY_DTYPES[datatype].itemsize


def split_bytes(data: bytes | memoryview, limit: int) -> list[bytes]:
    """Split a raw BYTES tensor (`<u32 little-endian length><bytes>` repeated) into its elements.

    Reading stops with an error as soon as `limit` + 1 elements are seen, so a hostile body cannot make it build more
    than the shape allows.

    Raises: InvalidRequest where a length runs past the end, or a length field is itself cut off.

    >>> split_bytes(b"\\x01\\x00\\x00\\x00a\\x00\\x00\\x00\\x00", limit=2)
    [b'a', b'']
    """
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end and len(elements) <= limit:
        if end - position < 4:
            raise InvalidRequest("incomplete string length indicator")
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise InvalidRequest(f"incomplete string data: expected {length} bytes, got {end - position}")
        elements.append(bytes(data[position : position + length]))
        position += length
    return elements


def join_bytes(array: NDArray[np.object_]) -> bytes:
    """The raw BYTES form of an object array; `str` elements are encoded as UTF-8.

    >>> join_bytes(np.array([b"a", "é"], dtype=object))
    b'\\x01\\x00\\x00\\x00a\\x02\\x00\\x00\\x00\\xc3\\xa9'
    """
    parts: list[bytes] = []
    for element in array.ravel():
        item = element if isinstance(element, bytes) else str(element).encode()
        parts.append(_LENGTH.pack(len(item)))
        parts.append(item)
    return b"".join(parts)


def to_raw(datatype: str, array: Array) -> bytes:
    """An output array in its wire form: little-endian, row-major, no padding."""
    if datatype == "BYTES":
        return join_bytes(array)  # type: ignore[arg-type]
    return np.ascontiguousarray(array, dtype=NUMPY_DTYPES[datatype]).tobytes()
