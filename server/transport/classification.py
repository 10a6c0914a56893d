"""The classification extension: an output as the names of its highest values. **Pure.**

Form and texts are NVIDIA Triton's (triton-inference-server/server, src/classification.cc, src/grpc/infer_handler.h, 2026-08):
a class is `value:index`, or `value:index:label` where it has one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.errors import InvalidRequest
from server.core.tensors import Array

MAX_ELEMENTS = 1_000_000
"""Elements of one row that are ranked at most; Triton's number."""

MAX_CLASSES = 100_000
"""Classes in one answer at most: naming one takes 0.5 us (2026-11-21), and all callers wait meanwhile."""

_DATATYPES = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64"})


def classify(array: Array, datatype: str, count: int, labels: Sequence[str], *, batching: bool) -> NDArray[np.object_]:
    """The `count` highest elements of each row, highest first, equal ones in the order of their indices; NaN comes last.

    Fewer where a row has fewer. Which of equal elements are left out is not defined.
    Shapes: `[rows, *shape]` where `batching`, and the answer `[rows, count]`; else any, which is one row, and `[count]`.
    Raises: InvalidRequest for a datatype that has no order here, or for too many.
    """
    if datatype not in _DATATYPES:
        raise InvalidRequest(f"class result not available for output due to unsupported type '{datatype}'")
    by_row = batching and array.ndim > 0
    rows = array.shape[0] if by_row else 1
    elements = array.size // rows if rows else 0
    count = min(count, elements)
    if elements > MAX_ELEMENTS or rows * count > MAX_CLASSES:
        raise InvalidRequest("classification output tensor too large")
    values: Any = array.reshape(rows, elements)
    # ascending from here on: numpy puts NaN last, and neither way of turning the order round can overflow
    ranks = -values if values.dtype.kind == "f" else ~values
    if count < elements:
        chosen = np.sort(np.argpartition(ranks, count - 1, axis=1)[:, :count], axis=1)
    else:
        chosen = np.broadcast_to(np.arange(elements), (rows, elements))
    order = np.argsort(np.take_along_axis(ranks, chosen, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, axis=1)
    highest = np.take_along_axis(values, chosen, axis=1)
    form = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    texts = [
        form % (value, index) + (f":{labels[index]}" if index < len(labels) and labels[index] else "")
        for value, index in zip(highest.ravel().tolist(), chosen.ravel().tolist(), strict=True)
    ]
    named = np.empty(len(texts), dtype=object)
    named[:] = [text.encode() for text in texts]
    return named.reshape((rows, count) if by_row else (count,))
