"""Harmless inputs for trying a model out before anyone calls it. **Pure.** Floor 2: the probe and the warm-up share it.

Deterministic: the same signature gives the same arrays, on every machine. Never meant to look like real data.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec, element_count

Content = Literal["zeros", "ones", "varied"]

Attempt = tuple[Content, int]
"""What to fill inputs with, and the size of dimensions that vary per request."""

PLAIN_FIRST: tuple[Attempt, ...] = (("zeros", 1), ("ones", 1), ("varied", 3), ("varied", 32))
"""What a model is run on where only its time counts. 32: convolutions over free image sizes need more than a few pixels."""

_BF16_ONE = 0x3F80
_MOST_ELEMENTS_PER_ROW = 2**18
_SEED = 17


def sample_inputs(
    signature: Signature, rows: int, content: Content = "zeros", free_dim: int = 1, *, size: int | None = None
) -> dict[str, Array]:
    """Every input of a model, `rows` rows of it; dimensions that vary per request become `free_dim`.

    `size`: of padded inputs they become the largest of their own sizes that is not above it, their smallest where all are.

    "zeros" and "ones" are that number in every datatype (`b"0"`, `b"1"` for BYTES). "varied": floats of a normal
    distribution, integers and digits from 0 to 3 (small enough to index small tables), different in every row.

    Shapes: `[rows, *shape]` for batching models; else the model's own shape, and `rows` plays no part.
    """
    generator = np.random.default_rng(_SEED)
    return {
        spec.name: _fill(spec.datatype, _shape(signature, spec, rows, _free(spec, size, free_dim)), content, generator)
        for spec in signature.inputs
    }


def worth_trying(signature: Signature, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts that differ for this model, in order, without those whose free dimensions would make a row huge.

    Where every dimension is fixed, only the content differs.
    """
    if not any(-1 in spec.shape for spec in signature.inputs):
        return [(content, 1) for content in dict.fromkeys(content for content, _ in attempts)]
    return [
        (content, free_dim)
        for content, free_dim in attempts
        if free_dim == 1 or _elements_per_row(signature, free_dim) <= _MOST_ELEMENTS_PER_ROW
    ]


def _elements_per_row(signature: Signature, free_dim: int) -> int:
    return sum(element_count(free_dim if dim == -1 else dim for dim in spec.shape) for spec in signature.inputs)


def _free(spec: TensorSpec, size: int | None, free_dim: int) -> int:
    if size is None or not spec.pad_to:
        return free_dim
    return max((own for own in spec.pad_to if own <= size), default=spec.pad_to[0])


def _shape(signature: Signature, spec: TensorSpec, rows: int, free_dim: int) -> tuple[int, ...]:
    shape = tuple(free_dim if dim == -1 else dim for dim in spec.shape)
    return (rows, *shape) if signature.max_batch else shape


def _fill(datatype: str, shape: tuple[int, ...], content: Content, generator: np.random.Generator) -> Array:
    small = generator.integers(0, 4, shape) if content == "varied" else np.full(shape, content == "ones", dtype=np.int64)
    if datatype == "BYTES":
        texts = np.empty(shape, dtype=object)
        texts.reshape(-1)[:] = [str(number).encode() for number in small.reshape(-1).tolist()]
        return texts
    if datatype == "BF16":
        if content == "varied":
            floats = np.asarray(generator.standard_normal(shape), dtype=np.float32)
            return (floats.view(np.uint32) >> 16).astype(np.uint16)
        return (small * _BF16_ONE).astype(np.uint16)
    if datatype.startswith("FP") and content == "varied":
        return np.asarray(generator.standard_normal(shape), dtype=NUMPY_DTYPES[datatype])
    if datatype == "BOOL":
        return (small % 2).astype(np.bool_)
    return small.astype(NUMPY_DTYPES[datatype])
