"""Validation rows from a file, as the inputs of a version.

Floor 7. What a datatype cannot hold is an error that names the column; columns that nobody asks for are left alone.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from server.core.errors import InvalidRequest
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec, element_count

_OF_TABLES = {"f": "float64", "i": "int64", "u": "int64", "b": "bool", "O": "bytes"}
"""By kind of a datatype: as what a table's column is read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of a file. Shapes: `inputs` `[N, *shape]`, as a backend takes them; `further` `[N]`, of numbers."""

    inputs: Mapping[str, Array]
    further: Mapping[str, Array]


def read_rows(path: Path, specs: Sequence[TensorSpec], further: Sequence[str], packed: Mapping[str, Sequence[str]]) -> Rows:
    """Inputs and `further` columns of a file: `.npz` with an array of each name, or `.parquet`.

    In a table an input of several elements a row is as many columns: `name[0]`, `name[1]` …, or those of `packed`.
    Raises: InvalidRequest, EventError for a file that is none of these or lacks what it must have; OSError from the disk.
    """
    if path.suffix == ".npz":
        arrays = _of_npz(path)
    elif path.suffix == ".parquet":
        arrays = _of_table(path, specs, further, packed)
    else:
        raise InvalidRequest(f"{path} holds no rows that can be read: its name must end in .npz or .parquet")
    lacking = [name for name in (*(spec.name for spec in specs if not spec.optional), *further) if name not in arrays]
    if lacking:
        raise InvalidRequest(f"{path}: there is no {_words(lacking)}; there are {_words(sorted(arrays))}")
    counts = {name: array.shape[0] if array.ndim else 1 for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise InvalidRequest(f"{path}: not all columns have the same rows: {_words(f'{n} {c}' for n, c in counts.items())}")
    inputs = {spec.name: fitted(spec, arrays[spec.name]) for spec in specs if spec.name in arrays}
    return Rows(inputs, {name: _number(name, arrays[name]) for name in further})


def fitted(spec: TensorSpec, array: Array) -> Array:
    """A column as an input takes it. Shapes: `[N, *spec.shape]`, from rows of so many elements. Raises: InvalidRequest."""
    shape = array.shape[1:]
    if -1 not in spec.shape and element_count(shape) == element_count(spec.shape):
        shape = spec.shape
    if len(shape) != len(spec.shape) or any(stated not in (-1, size) for stated, size in zip(spec.shape, shape, strict=True)):
        raise InvalidRequest(f"'{spec.name}': rows have shape {list(shape)} where the model takes {list(spec.shape)}")
    return _converted(spec, array).reshape(len(array), *shape)


def _converted(spec: TensorSpec, array: Any) -> Array:
    wanted, kind = NUMPY_DTYPES[spec.datatype], array.dtype.kind
    if spec.datatype == "BYTES" and kind in "SUO":
        made = np.empty(array.shape, dtype=object)
        made.reshape(-1)[:] = [_bytes(each) for each in array.reshape(-1).tolist()]
        return made
    if array.dtype == wanted or (kind == "b" and wanted.kind == "b"):
        same: Array = array
        return same
    takes = {"f": "iuf", "i": "iu", "u": "iu"}.get("" if spec.datatype == "BF16" else wanted.kind, "")
    if kind not in takes:
        raise InvalidRequest(f"'{spec.name}': {array.dtype} cannot be {spec.datatype}, which the model takes")
    with np.errstate(over="ignore"):
        cast: Any = array.astype(wanted)
    # a float is rounded, as every caller rounds it; anything else would be another value
    wrong = np.isinf(cast) & np.isfinite(array) if wanted.kind == "f" else cast != array
    if wrong.any():
        raise InvalidRequest(f"'{spec.name}': {array[wrong].flat[0]} is beyond what {spec.datatype} can hold")
    made_of_numbers: Array = cast
    return made_of_numbers


def _number(name: str, array: Array) -> Array:
    if array.ndim > 1 or array.dtype.kind not in "iufb":
        raise InvalidRequest(f"'{name}': {array.dtype} of shape {list(array.shape)} is no column of numbers")
    return array


def _bytes(element: object) -> bytes:
    if element is None:
        return b""
    return element if isinstance(element, bytes) else str(element).encode()


def _of_npz(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    # what a damaged or foreign file makes zipfile and numpy raise
    except (EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise InvalidRequest(f"{path}: no arrays by name: {error}") from None


def _of_table(
    path: Path, specs: Sequence[TensorSpec], further: Sequence[str], packed: Mapping[str, Sequence[str]]
) -> dict[str, Array]:
    # by name: pyarrow is large, and a server, which knows this verb too, does not pay for it
    tables = importlib.import_module("feature_client.columns")
    parts = {spec.name: _parts(spec, packed.get(spec.name)) for spec in specs}
    kinds = {part: _table_kind(spec) for spec in specs for part in parts[spec.name]}
    # outcomes may be whole numbers or not, and an instant is a whole number
    try:
        table = tables.READERS[".parquet"](path, {**kinds, **dict.fromkeys(further, "")})
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidRequest(f"{path}: no table: {error}") from None
    there = set(table.schema.names)
    kinds |= {name: _number_kind(table, name) for name in further if name in there and name not in kinds}
    columns = tables.from_arrow(table, {name: kind for name, kind in kinds.items() if name in there})
    arrays = {name: columns[name] for name in further if name in columns}
    for name, own in parts.items():
        if there.issuperset(own):
            arrays[name] = columns[own[0]] if own == (name,) else np.stack([columns[part] for part in own], axis=1)
    return arrays


def _parts(spec: TensorSpec, packed: Sequence[str] | None) -> tuple[str, ...]:
    if packed is not None:
        return tuple(packed)
    count = 1 if -1 in spec.shape else element_count(spec.shape)
    return (spec.name,) if count == 1 else tuple(f"{spec.name}[{index}]" for index in range(count))


def _table_kind(spec: TensorSpec) -> str:
    return _OF_TABLES[NUMPY_DTYPES[spec.datatype].kind]


def _number_kind(table: Any, name: str) -> str:
    kind = str(table.schema.field(name).type)
    return "bool" if kind == "bool" else "float64" if kind.startswith(("float", "double", "half")) else "int64"


def _words(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
