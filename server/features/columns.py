"""From a batch's arrays to columns of features, and from features to the arrays a backend takes. **Pure.**

Shapes: a batch's arrays are `[P, *shape]`, of which the first N rows are real; columns are `[N]`, or `[N, *shape]` for a
feature with a shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import EntityError
from feature_client.keys import misfits, row_keys
from feature_client.schema import DTYPES, Columns, Feature
from feature_client.schema import Array as Column
from feature_client.served import default_of
from feature_client.view import View
from server.core.tensors import Array
from server.features.binding import Binding


def scalars(array: Array, rows: int) -> Column:
    """One value a row. Shapes: `[P]` or `[P, 1]` to `[N]`."""
    return np.ascontiguousarray(array[:rows].reshape(rows))


def given(inputs: Mapping[str, Array], feature: Feature, rows: int) -> Column:
    """A feature as the call states it."""
    return np.ascontiguousarray(inputs[feature.name][:rows].reshape(rows, *feature.shape))


def stated(inputs: Mapping[str, Array], binding: Binding, feature: Feature, rows: int) -> Column:
    """A feature that nobody computed: as the call states it, by itself or as a column; the default where nothing needed it."""
    name = feature.name
    if name in inputs:
        return given(inputs, feature, rows)
    for packed in binding.packed & inputs.keys():
        if name in binding.taken[packed]:
            return np.ascontiguousarray(inputs[packed][:rows, binding.taken[packed].index(name)])
    column = np.empty((rows, *feature.shape), dtype=DTYPES[feature.dtype])
    column[...] = default_of(feature)
    return column


def key_columns(inputs: Mapping[str, Array], binding: Binding, keys: Mapping[str, str], rows: int) -> dict[str, Column]:
    """Join keys in their own types, `keys` by name: whatever width a caller's integers have, one entity has one key."""
    return {key: scalars(inputs[binding.keys[key]], rows).astype(DTYPES[dtype], copy=False) for key, dtype in keys.items()}


def keys_of(project: str, view: View, keys: Columns) -> tuple[list[bytes], list[int]]:
    """The row keys of N entities, and the rows whose values can be no entity: nothing can have been stored for those.

    In their place stands the key of another row, so that all are read in one go; without any other there are no keys.
    """
    try:
        return row_keys(project, view, keys), []
    except EntityError:
        wrong = list(misfits(view, keys))
    rows = np.arange(len(next(iter(keys.values()))))
    right = np.setdiff1d(rows, wrong)
    if not len(right):
        return [], wrong
    rows[wrong] = right[0]
    return row_keys(project, view, {name: column[rows] for name, column in keys.items()}), wrong


def model_inputs(inputs: Mapping[str, Array], binding: Binding, values: Mapping[str, Column], rows: int) -> dict[str, Array]:
    """What the backend takes. Ownership: inputs that the call brought are passed on as they are.

    Rows beyond the real ones repeat the first, as where requests are gathered: a row that was valid is valid again.
    """
    padded = max((len(array) for array in inputs.values()), default=rows)
    made: dict[str, Array] = {}
    for spec in binding.signature.inputs:
        if spec.name in inputs:
            if spec.name in binding.model.input_names:
                made[spec.name] = inputs[spec.name]
        elif spec.name in binding.packed:
            # a column that the call states may be of a view that nothing else needs
            taken = {name: values.get(name) for name in binding.taken[spec.name]}
            columns = [
                given(inputs, binding.features.features[name], rows) if each is None else each for name, each in taken.items()
            ]
            made[spec.name] = _packed(columns, rows, padded)
        elif spec.name in binding.taken:
            made[spec.name] = _padded(values[spec.name].reshape(rows, *spec.shape), padded)
    return made


def _packed(columns: Sequence[Column], rows: int, padded: int) -> NDArray[Any]:
    whole = np.empty((padded, len(columns)), dtype=columns[0].dtype)
    for index, column in enumerate(columns):
        whole[:rows, index] = column
    whole[rows:] = whole[0]
    return whole


def _padded(column: Column, padded: int) -> NDArray[Any]:
    if len(column) == padded:
        return column
    whole = np.empty((padded, *column.shape[1:]), dtype=column.dtype)
    whole[: len(column)] = column
    whole[len(column) :] = column[0]
    return whole
