"""Rows that a view is asked for where it is trained and again where it serves: the values that real data only has on bad days.

**Pure.** Two computations agree when the bits do; all NaNs are one value, because which of them comes of an operation is up to
the processor.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from feature_client.errors import DefinitionError
from feature_client.schema import DTYPES, Array, Columns, Feature
from feature_client.view import View

ROWS = 64
_TEXTS: tuple[bytes | None, ...] = (
    None,
    b"",
    b"AA",
    b"never seen before",
    "Zürich".encode(),
    "東京".encode(),
    b" ",
    b"0",
    b"nan",
    b"a|b:{c}%",
    b"x" * 300,
)
_FROM_STATE = 16
"""How many of the texts in a model view's state are asked for: categories that it does know."""


def golden_inputs(view: View, rows: int = ROWS, seed: int = 0, state: Columns | None = None) -> dict[str, Array]:
    """Inputs of a view's function. Shapes: `[rows]` each.

    Each has the special values of its type (none, infinities, both zeros, the ends of its range, denormals; texts that are
    empty, long, of other alphabets, unknown) mixed with ordinary ones, in an order of its own.
    """
    known = sorted(_texts(state or {}))[:_FROM_STATE]
    columns = {}
    for place, (name, given) in enumerate(view.inputs.items()):
        rng = np.random.default_rng([seed, place])
        columns[name] = _column(given if isinstance(given, str) else _dtype(view, given.kind, given.column), rows, rng, known)
    return columns


def golden_outputs(view: View, inputs: Columns, state: Columns | None = None) -> dict[str, Array]:
    """What a view gives for its golden inputs, proven not to depend on which rows are computed together, or in which order.

    Shapes: `[rows, *shape]` per feature. Raises: DefinitionError where it does depend on that, or where the function fails.
    """
    rows = len(next(iter(inputs.values()), np.zeros(1)))
    together = _computed(view, inputs, state, "all golden rows")
    backwards = _computed(view, {name: column[::-1] for name, column in inputs.items()}, state, "the golden rows backwards")
    alone = [
        _computed(view, {name: column[row : row + 1] for name, column in inputs.items()}, state, f"golden row {row} alone")
        for row in range(rows)
    ]
    for feature in view.features:
        column = together[feature.name]
        each = np.concatenate([made[feature.name] for made in alone]) if alone else column
        for how, other in (("alone", each), ("in another order", backwards[feature.name][::-1])):
            differ = unequal(column, other)
            if differ.any():
                row = int(differ.argmax())
                raise DefinitionError(
                    f"'{feature.name}' of '{view.ref}' depends on which rows are computed together: golden row {row} gives "
                    f"{shown(column[row])} with the others and {shown(other[row])} {how}"
                )
    return together


def unequal(one: Array, other: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows of two columns of one type and shape have other bits. Shapes: bool `[N]`."""
    if one.dtype == object:
        return np.fromiter((a != b for a, b in zip(one.tolist(), other.tolist(), strict=True)), np.bool_, len(one))
    left, right = np.ascontiguousarray(one), np.ascontiguousarray(other)
    differ = _bits(left) != _bits(right)
    if one.dtype.kind == "f":
        differ &= ~(np.isnan(left) & np.isnan(right))
    rows: np.ndarray[Any, np.dtype[np.bool_]] = differ.reshape(len(one), int(np.prod(one.shape[1:]))).any(axis=1)
    return rows


def ulps_apart(one: Array, other: Array) -> list[int | None]:
    """How many values of the type lie between two columns, for each row the largest of its elements; None where that is no
    number: NaN against a number, or bytes that differ.

    >>> ulps_apart(np.array([1.0, 0.0, np.nan]), np.array([np.nextafter(1.0, 2), -0.0, 1.0]))
    [1, 1, None]
    """
    differ = unequal(one, other)
    apart: list[int | None] = []
    for row, different in enumerate(differ.tolist()):
        if one.dtype == object or (different and (np.isnan(one[row]) != np.isnan(other[row])).any()):
            apart.append(None if different else 0)
            continue
        pairs = zip(_places(one[row]), _places(other[row]), strict=True)
        apart.append(max((abs(a - b) for a, b in pairs), default=0) if different else 0)
    return apart


def shown(value: Any) -> str:
    """A value of a feature as people read it: floats to the last bit."""
    return repr(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _places(values: Any) -> Iterator[int]:
    """The place of each value in the order of its type, counted in values; -0.0 lies just below 0.0."""
    flat = np.ascontiguousarray(values).ravel()
    for bits, value in zip(_bits(flat).tolist(), flat.tolist(), strict=True):
        if flat.dtype.kind != "f" or value != value:
            yield int(value) if flat.dtype.kind != "f" else 0
        else:
            sign = 1 << (flat.dtype.itemsize * 8 - 1)
            yield sign - bits - 1 if bits & sign else bits


def _bits(column: Array) -> Array:
    return column.view(f"u{column.dtype.itemsize}")


def _computed(view: View, inputs: Columns, state: Columns | None, what: str) -> dict[str, Array]:
    try:
        return view.compute(inputs, state)
    except DefinitionError:
        raise
    except Exception as error:  # whatever the operator's function raises, a row of data would make it raise too
        raise DefinitionError(f"'{view.ref}' fails for {what}: {type(error).__name__}: {error}") from error


def _dtype(view: View, kind: str, column: str) -> str:
    """The type in which an aggregate is given to the function."""
    if kind == "count":
        return "int64"
    return "float64" if kind != "last" or view.source is None else view.source.columns[column]


def _texts(state: Columns) -> Iterator[bytes]:
    for array in state.values():
        if array.dtype.kind in "SO":
            yield from (each for each in array.ravel().tolist() if isinstance(each, bytes))


def _column(dtype: str, rows: int, rng: np.random.Generator, known: list[bytes]) -> Array:
    special = _special(dtype, known)
    column = _ordinary(dtype, rows, rng, known)
    # at least a quarter ordinary values, so that every special one also meets ordinary ones in the other inputs
    chosen = special[: max(1, rows - rows // 4)]
    column[: len(chosen)] = chosen[: len(column)]
    order = rng.permutation(rows)
    return np.ascontiguousarray(column[order])


def _special(dtype: str, known: list[bytes]) -> Array:
    kind = DTYPES[dtype].kind
    if kind == "O":
        return _objects([*_TEXTS, *known])
    if kind == "b":
        return np.array([False, True])
    if kind == "f":
        limits = np.finfo(DTYPES[dtype])
        smallest = np.nextafter(DTYPES[dtype].type(0), DTYPES[dtype].type(1))
        ends = [limits.max, limits.min, limits.tiny, -limits.tiny, smallest, -smallest]
        near = [1.0, -1.0, limits.eps, 1.0 + float(limits.eps), 0.5, -0.5, 1e3, -1e3]
        return np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, *ends, *near], dtype=DTYPES[dtype])
    whole = np.iinfo(DTYPES[dtype])
    return np.array([0, 1, whole.max, whole.min, whole.max - 1, whole.min + 1, 2, 10], dtype=DTYPES[dtype])


def _ordinary(dtype: str, rows: int, rng: np.random.Generator, known: list[bytes]) -> Array:
    kind = DTYPES[dtype].kind
    if kind == "O":
        texts = [*known, b"JFK", b"LGA", b"UA", b"DL", b"N12345"]
        return _objects([texts[place] for place in rng.integers(0, len(texts), rows).tolist()])
    if kind == "b":
        return rng.random(rows) < 0.5
    if kind == "f":
        with np.errstate(all="ignore"):
            return (rng.normal(0, 1, rows) * 10.0 ** rng.integers(-3, 5, rows)).astype(DTYPES[dtype])
    return rng.integers(0, min(int(np.iinfo(DTYPES[dtype]).max), 1000), rows).astype(DTYPES[dtype])


def _objects(values: list[Any]) -> Array:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def matches(feature: Feature, column: Array, rows: int) -> bool:
    """Whether a recorded column can be one of this feature."""
    return bool(column.dtype == DTYPES[feature.dtype] and column.shape == (rows, *feature.shape))
