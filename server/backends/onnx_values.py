"""Arrays of the protocol as onnxruntime takes and gives them. **Pure.** Floor 2, beside its one user.

Strings are `str` there and `bytes` here; BF16 is a bit pattern here, and a type that numpy lacks there.
"""

import ctypes
from typing import Any

import numpy as np

from server.core.errors import InputsUnfit
from server.core.tensors import Array

BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16: numpy has no type that onnxruntime would read it from."""


def to_text(name: str, array: Array) -> Array:
    """BYTES as `str`: onnxruntime writes the *repr* of bytes objects into its strings. Raises: InputsUnfit."""
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.reshape(-1)[:] = [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InputsUnfit(f"input '{name}' holds bytes that are not UTF-8, as ONNX strings must be: {error.reason}") from error
    return texts


def to_bytes(array: Array) -> Array:
    """Strings as `bytes`."""
    encoded = np.empty(array.shape, dtype=object)
    encoded.reshape(-1)[:] = [str(item).encode() for item in array.reshape(-1).tolist()]
    return encoded


def from_value(value: Any) -> Array:
    """A copy of an output that lies in host memory; BF16 as its bit pattern."""
    if value.data_type() != "tensor(bfloat16)":
        return np.array(value.numpy())
    pattern = np.empty(value.shape(), dtype=np.uint16)
    ctypes.memmove(pattern.ctypes.data, value.data_ptr(), pattern.nbytes)
    return pattern
