"""Rows of many requests into one array, and back by each request's own span. **Pure.**"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.padding import pad_element
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec, plain_arrays
from server.dataplane.interface import Allocate


def gather(
    parts: Sequence[Mapping[str, Array]],
    rows: int,
    padded_rows: int,
    allocate: Allocate = plain_arrays,
    signature: Signature | None = None,
) -> dict[str, Array]:
    """Concatenate the inputs of several requests, row-wise, and pad to `padded_rows`.

    Shapes: every part has the same names and, but for the first dimension, the same shapes, once free dimensions are padded as
    the `signature` states. Models without batching have one part and no rows.
    Ownership: the result is fresh memory, except for a single part that nothing is added to, which is passed on as it is unless
    `allocate` says where to.

    Padding repeats the first row rather than writing zeros: a row that was valid is valid again, whatever the model does with
    empty strings or zeros.
    """
    batching = signature is None or signature.max_batch > 0
    padded = {} if signature is None else {spec.name: spec for spec in signature.padded_inputs}
    shapes = {
        name: (_executed(array, padded.get(name), padded_rows, batching), array.dtype) for name, array in parts[0].items()
    }
    if len(parts) == 1 and allocate is plain_arrays and all(parts[0][name].shape == shapes[name][0] for name in shapes):
        return dict(parts[0])
    gathered = allocate(shapes)
    for name, whole in gathered.items():
        if not batching:
            place(parts[0][name], whole, padded.get(name))
            continue
        if name in padded:
            first = 0
            for part in parts:
                array = part[name]
                place(array, whole[first : first + len(array)], padded[name])
                first += len(array)
        else:
            np.concatenate([part[name] for part in parts], out=whole[:rows])
        whole[rows:] = whole[0]
    return gathered


def _executed(array: Array, spec: TensorSpec | None, padded_rows: int, batching: bool) -> tuple[int, ...]:
    rows, dims = ((padded_rows,), array.shape[1:]) if batching else ((), array.shape)
    return (*rows, *(dims if spec is None else spec.padded(dims)))


def place(array: Array, whole: Array, spec: TensorSpec | None) -> None:
    """Write an array where its dimensions begin; what is left of larger ones is the padding of `spec`."""
    if spec is not None and array.shape != whole.shape:
        whole[...] = pad_element(spec)
    # with dots: a text that has no dimensions would become the array itself
    front: Any = (*map(slice, array.shape), ...)
    whole[front] = array


def brought(parts: Sequence[Mapping[str, Array]], signature: Signature) -> int:
    """How many elements the requests brought in inputs whose free dimensions are padded."""
    return sum(part[spec.name].size for spec in signature.padded_inputs for part in parts if spec.name in part)


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
