"""Several arrays in one piece of memory, so that a batch crosses to a device, and back, in one copy. **Pure.** Floor 2.

Each array begins at a multiple of `ALIGN_BYTES`. What lies between them is never read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from server.core.tensors import Array

ALIGN_BYTES = 256
"""CUDA's own allocations begin at multiples of it; kernels that read 16 bytes at once need no less than 16."""

Shapes = tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """One array of a slab. Units: bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the arrays of a slab lie, in their order. `nbytes`: of all, a multiple of `ALIGN_BYTES` but for the last."""

    places: tuple[Place, ...]
    nbytes: int


@lru_cache(maxsize=4096)
def layout(shapes: Shapes) -> Layout:
    """The layout of arrays of these names, shapes and dtypes.

    >>> layout((("a", (2, 3), np.dtype("u1")), ("b", (4,), np.dtype("f4")))).nbytes
    272
    """
    places: list[Place] = []
    end = 0
    for name, shape, dtype in shapes:
        first = -(-end // ALIGN_BYTES) * ALIGN_BYTES
        end = first + prod(shape) * dtype.itemsize
        places.append(Place(name, shape, dtype, first, end))
    return Layout(tuple(places), end)


class Slab(dict[str, Array]):
    """Arrays by name that all lie in one memory, `whole` (uint8, as its owner sees it).

    Ownership: the arrays are views of `memory`, which keeps `whole` alive.
    """

    def __init__(self, arrangement: Layout, whole: Any, memory: Array) -> None:
        super().__init__(views(arrangement, memory))
        self.arrangement = arrangement
        self.whole = whole


def views(arrangement: Layout, memory: Array) -> dict[str, Array]:
    """The arrays of a slab, as views of its bytes. Shapes: `memory` uint8, one-dimensional, `nbytes` or more."""
    return {place.name: memory[place.first : place.last].view(place.dtype).reshape(place.shape) for place in arrangement.places}


def shapes_of(arrays: Mapping[str, Array], names: tuple[str, ...]) -> Shapes:
    """What `layout` takes, of arrays in this order."""
    return tuple((name, arrays[name].shape, arrays[name].dtype) for name in names)
