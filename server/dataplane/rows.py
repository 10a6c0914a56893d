"""Rows of many requests into one array, and back by each request's own span. **Pure.**"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.core.tensors import Array
from server.dataplane.interface import Allocate, plain_arrays


def gather(
    parts: Sequence[Mapping[str, Array]], rows: int, padded_rows: int, allocate: Allocate = plain_arrays
) -> dict[str, Array]:
    """Concatenate the inputs of several requests, row-wise, and pad to `padded_rows`.

    Shapes: every part has the same names and, but for the first dimension, the same shapes.
    Ownership: the result is fresh memory, except for a single unpadded part, which is passed on as it is unless `allocate`
    says where to.

    Padding repeats the first row rather than writing zeros: a row that was valid is valid again, whatever the model does with
    empty strings or zeros.
    """
    if len(parts) == 1 and rows == padded_rows and allocate is plain_arrays:
        return dict(parts[0])
    gathered = allocate({name: ((padded_rows, *first.shape[1:]), first.dtype) for name, first in parts[0].items()})
    for name, whole in gathered.items():
        np.concatenate([part[name] for part in parts], out=whole[:rows])
        whole[rows:] = whole[0]
    return gathered


def cut(inputs: Mapping[str, Array], first_row: int, last_row: int, padded_rows: int) -> dict[str, Array]:
    """Rows `first_row:last_row` of gathered inputs as a smaller padded batch of their own."""
    span = {name: array[first_row:last_row] for name, array in inputs.items()}
    return gather([span], last_row - first_row, padded_rows)


def scatter(
    outputs: Mapping[str, Array], spans: NDArray[np.int64], first: int, last: int, *, batching: bool
) -> list[dict[str, Array]]:
    """One mapping of output rows per request `first:last`; row 0 of `outputs` is the first row of request `first`.

    Ownership: views of `outputs`. Models that do not batch have one request per execution, which gets everything.
    """
    if not batching:
        return [dict(outputs)]
    bounds = (spans[first : last + 1] - spans[first]).tolist()
    names = list(outputs.items())
    return [{name: array[bounds[i] : bounds[i + 1]] for name, array in names} for i in range(last - first)]
