"""Streams: the columns of numbers and categories that are monitored, and where each of them is counted. **Pure.**

Floor 4. A window's counts are **one** vector of int64, and a `Layout` says what stands where. So counts of any replicas,
windows and blocks are merged by adding vectors, in any order, to the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Origin = Literal["input", "feature", "output"]
SUM_SCALE = 2**16
"""Sums are kept as integers: of (value - `center`) / `scale`, winsorised, in units of 1 / SUM_SCALE."""


@dataclass(frozen=True, slots=True)
class Numeric:
    """A stream of numbers. Its bins never change once a baseline has them.

    Shapes: `edges` `[B - 1]`, ascending and distinct: bin i has what is > `edges[i - 1]` and <= `edges[i]`, the first and the
    last are open. `low`, `high`: the least and the largest number of the baseline, beyond which a value is out of range (and
    still in its bin). `winsor`: the baseline's quantiles at 0.1 % and 99.9 %. `center` and `scale`: its median and its
    interquartile range (or what stands in for one that is 0).
    Cells: B bins; missing; non-finite; below `low`; above `high`; B sums. Missing and non-finite values are in no bin.
    """

    name: str
    origin: Origin
    edges: tuple[float, ...]
    low: float
    high: float
    winsor: tuple[float, float]
    center: float
    scale: float

    @property
    def bins(self) -> int:
        """B."""
        return len(self.edges) + 1

    @property
    def width(self) -> int:
        """How many cells it has."""
        return 2 * self.bins + 4


@dataclass(frozen=True, slots=True)
class Category:
    """A stream of categories, as texts (integers and booleans in decimal, 0 and 1).

    `vocabulary`: the V most frequent of the baseline. `others`: 64-bit hashes of the rest of what it has, so that what is rare
    can be told from what is new.
    Cells: V categories; other; unseen (in the baseline at no time); missing. Missing values are in no category.
    """

    name: str
    origin: Origin
    vocabulary: tuple[str, ...]
    others: tuple[int, ...] = ()

    @property
    def bins(self) -> int:
        """The categories, and one for all others: V + 1."""
        return len(self.vocabulary) + 1

    @property
    def width(self) -> int:
        """How many cells it has."""
        return len(self.vocabulary) + 3


Stream = Numeric | Category


@dataclass(frozen=True)
class Cells:
    """The counts of one stream in a vector: views, not copies.

    Shapes: `bins` `[B]`, of a category the unseen ones are not in them; `sums` `[B]`, of a category empty.
    """

    bins: Counts
    missing: int
    non_finite: int
    below: int
    above: int
    unseen: int
    sums: Counts

    @property
    def present(self) -> int:
        """Values that are there and can be counted: in a bin, or unseen."""
        return int(self.bins.sum()) + self.unseen

    @property
    def rows(self) -> int:
        """All values."""
        return self.present + self.missing + self.non_finite


class Layout:
    """Where the cells of streams are in a vector of counts."""

    def __init__(self, streams: tuple[Stream, ...]) -> None:
        self.streams = streams
        starts = np.cumsum([0, *(stream.width for stream in streams)]).tolist()
        self.slices = tuple(slice(first, last) for first, last in pairwise(starts))
        self.size: int = starts[-1]

    def empty(self) -> Counts:
        """Nothing counted yet."""
        return np.zeros(self.size, dtype=np.int64)

    def cells(self, counts: Counts, index: int) -> Cells:
        """What was counted of one stream."""
        stream, own = self.streams[index], counts[self.slices[index]]
        size = stream.bins
        if isinstance(stream, Numeric):
            missing, non_finite, below, above = own[size : size + 4].tolist()
            return Cells(own[:size], missing, non_finite, below, above, 0, own[size + 4 :])
        unseen, missing = own[size : size + 2].tolist()
        return Cells(own[:size], missing, 0, 0, 0, unseen, own[size + 2 :])

    def __iter__(self) -> Iterator[tuple[int, Stream]]:
        return iter(enumerate(self.streams))
