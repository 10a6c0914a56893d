"""Columns as JSON that gives every bit back and can be read by people. **Pure.**

Floats are texts in hexadecimal (`float.fromhex` reads them), a NaN with its bits; text is UTF-8 with what is not escaped as
Python does (surrogateescape); None is null. Decimal numbers would be exact here as well, but not in every other reader.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from feature_client.errors import EventError
from feature_client.schema import DTYPES, Array, Columns

_BITS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Asked of numpy, a type's name takes longer than the rest of a short column."""
_NAN = "nan:"


def json_of(columns: Columns) -> dict[str, Any]:
    """Columns by name as what `json.dumps` takes.

    >>> json_of({"delay": np.array([1.5, -0.0])})
    {'delay': {'dtype': 'float64', 'values': ['0x1.8000000000000p+0', '-0x0.0p+0']}}
    """
    return {name: _json_of(column) for name, column in columns.items()}


def columns_of(made: object) -> dict[str, Array]:
    """What `json_of` was given. Raises: EventError for anything that it would not have made."""
    if not isinstance(made, Mapping):
        raise EventError("columns are a table by name")
    return {str(name): _column_of(str(name), column) for name, column in made.items()}


def _json_of(column: Array) -> dict[str, Any]:
    made: dict[str, Any] = {"dtype": _NAMES[column.dtype]}
    if column.ndim > 1:
        made["shape"] = list(column.shape[1:])
    flat: list[Any] = column.ravel().tolist()
    if column.dtype == object:
        flat = [None if value is None else value.decode("utf-8", "surrogateescape") for value in flat]
    elif column.dtype.kind == "f":
        missing = [index for index, value in enumerate(flat) if value != value]
        flat = list(map(float.hex, flat))
        bits = np.ascontiguousarray(column).ravel().view(_BITS[column.dtype.itemsize]) if missing else column
        for index in missing:
            flat[index] = f"{_NAN}{int(bits[index]):0{2 * column.dtype.itemsize}x}"
    made["values"] = flat
    return made


def _column_of(name: str, made: Any) -> Array:
    try:
        dtype, shape = DTYPES[made["dtype"]], tuple(made.get("shape", ()))
        flat = made["values"]
        rows = len(flat) // prod(shape)
        if dtype.hasobject:
            column = np.empty(len(flat), object)
            column[:] = [None if text is None else text.encode("utf-8", "surrogateescape") for text in flat]
        elif dtype.kind == "f":
            column = _floats(flat, dtype)
        else:
            column = np.array(flat, dtype)
            if column.tolist() != flat:
                raise EventError(f"the column '{name}' has values that are no {dtype}")
        return column.reshape(rows, *shape)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise EventError(f"the column '{name}' is not as it was written") from None


def _floats(flat: list[str], dtype: np.dtype[Any]) -> Array:
    missing = [text.startswith(_NAN) for text in flat]
    wide = [0.0 if absent else float.fromhex(text) for text, absent in zip(flat, missing, strict=True)]
    with np.errstate(over="raise"):
        column: Array = np.array(wide, np.float64).astype(dtype)
    bits: Array = column.view(_BITS[dtype.itemsize])
    for index in np.flatnonzero(missing).tolist():
        bits[index] = int(flat[index][len(_NAN) :], 16)
    return column
