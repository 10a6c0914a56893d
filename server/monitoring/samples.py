"""Sampled rows of served predictions, as they travel from the engine to every sink. **Pure.**

Floor 4: a value. Made once per batch by `sampler`, never changed afterwards, and shared by all sinks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.tensors import Array
from server.core.versions import VersionKey

Columns = Mapping[str, Array]


@dataclass(slots=True)
class Samples:
    """N rows that one version answered, in one arm, under one split.

    Shapes: `inputs`, `callers`, `outputs` `[N, ...]`; `statuses` uint8 `[N, F]` in the order of `features` (F 0 where the
    version has none); `time_us` int64 `[N]`: when the row happened, microseconds since 1970; `id_hash` uint64 `[N]`, see
    `server.core.hashing`, of the row's request; `row` int32 `[N]`: which row of its request; `inclusion` float64 `[N]`: the
    probability with which it was taken; `queue_us`, `execute_us` int64 `[N]`.
    `inputs`: what the backend was given. `callers`: what calls brought beside that: join keys, request values. `weight`: the
    share of the model's traffic that this version had at that instant, under the split of that `epoch`.
    Ownership: nobody changes it, nor writes to its arrays. (Not `frozen`: that would cost as much as copying the rows.)
    """

    key: VersionKey
    arm: str
    epoch: int
    weight: float
    time_us: NDArray[np.int64]
    id_hash: NDArray[np.uint64]
    row: NDArray[np.int32]
    inclusion: NDArray[np.float64]
    queue_us: NDArray[np.int64]
    execute_us: NDArray[np.int64]
    inputs: Columns
    callers: Columns
    outputs: Columns
    features: tuple[str, ...]
    statuses: NDArray[np.uint8]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.time_us)

    @property
    def nbytes(self) -> int:
        """Memory of its arrays; elements of BYTES are counted by their length."""
        return sum(_nbytes(array) for array in self._arrays())

    def part(self, rows: "NDArray[np.intp] | slice") -> "Samples":
        """Some of the rows: a copy for indices, a view for a slice."""
        changes: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ARRAYS}
        changes |= {name: {column: array[rows] for column, array in getattr(self, name).items()} for name in _COLUMNS}
        return replace(self, **changes)

    def _arrays(self) -> list[Array]:
        columns = [array for name in _COLUMNS for array in getattr(self, name).values()]
        return [*(getattr(self, name) for name in _ARRAYS), *columns]


_COLUMNS = ("inputs", "callers", "outputs")
_ARRAYS = tuple(
    field.name for field in fields(Samples) if field.name not in (*_COLUMNS, "key", "arm", "epoch", "weight", "features")
)


def together(samples: Sequence[Samples]) -> list[Samples]:
    """The same rows in as few pieces as there are kinds of them: version, arm, split, columns and shapes alike.

    Order within a kind is kept.
    """
    made = []
    for _, group in groupby(sorted(samples, key=_kind), key=_kind):
        alike = list(group)
        first = alike[0]
        if len(alike) > 1:
            changes: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in alike]) for name in _ARRAYS}
            for name in _COLUMNS:
                names = getattr(first, name)
                changes[name] = {column: np.concatenate([getattr(each, name)[column] for each in alike]) for column in names}
            first = replace(first, **changes)
        made.append(first)
    return made


def _kind(samples: Samples) -> tuple[object, ...]:
    shapes = (
        (name, column, array.dtype.str, array.shape[1:])
        for name in _COLUMNS
        for column, array in getattr(samples, name).items()
    )
    return (samples.key, samples.arm, samples.epoch, samples.weight, samples.features, tuple(sorted(shapes)))


def _nbytes(array: Array) -> int:
    if array.dtype != object:
        return array.nbytes
    return array.nbytes + sum(len(element) for element in array.ravel().tolist() if element is not None)
