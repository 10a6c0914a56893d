"""Counts of integer values between fixed edges, filled from whole arrays. **Pure.**

Floor 2, beside the recorders that own one each. Fixed edges make histograms of replicas and versions addable, which a
summary's quantiles are not. Never keeps the values themselves; knows nothing of the text format they are published in.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_US

LATENCY_EDGES_NS: tuple[int, ...] = tuple(
    us * NS_PER_US
    for us in (
        *(50, 75, 100, 150, 200, 300, 400, 500, 750),
        *(1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_500),
        *(10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
        *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000),
    )
)
"""50 us to 30 s: 1-2.5-5 above 10 ms, finer below, where a model server's answers are told apart."""

ROWS_EDGES: tuple[int, ...] = (*(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256), *(2**power for power in range(9, 17)))
"""The batch sizes warmed by default, then powers of two up to the largest batch a model may have."""


class Histogram:
    """How many values fell at or below each edge, and their exact sum.

    Shapes: `edges` E ascending integers; `counts` int64 `[E + 1]`, the last one above every edge.
    Units: whatever the values are in; the sum is a Python integer and never loses a unit.
    Ownership: not thread-safe; its owner holds a lock, or holds a `copy`.

    >>> waits = Histogram((10, 20))
    >>> waits.observe(np.array([10, 11, 99]))
    >>> waits.counts.tolist(), waits.sum, waits.count
    ([1, 1, 1], 120, 3)
    """

    __slots__ = ("_edge_array", "count", "counts", "edges", "sum")

    def __init__(self, edges: tuple[int, ...]) -> None:
        if not edges or list(edges) != sorted(set(edges)):
            raise ValueError("edges must be ascending and distinct, and there must be one")
        self.edges = edges
        self._edge_array = np.array(edges, np.int64)
        self.counts: NDArray[np.int64] = np.zeros(len(edges) + 1, np.int64)
        self.sum = 0
        self.count = 0

    def observe(self, values: NDArray[np.int64]) -> None:
        """Count every value of a one-dimensional array. Their sum must fit int64."""
        # side "left": a value equal to an edge belongs to that edge, as Prometheus' `le` says
        bins = self._edge_array.searchsorted(values, side="left")
        self.counts += np.bincount(bins, minlength=self.counts.size)
        self.sum += int(values.sum())
        self.count += values.size

    def observe_one(self, value: int, times: int = 1) -> None:
        """Count one value `times` times: what a whole batch has in common."""
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times
        self.count += times

    def merge(self, other: Self) -> None:
        """Add what another histogram has seen. Raises: ValueError when the edges differ."""
        if other.edges != self.edges:
            raise ValueError("histograms with different edges cannot be added")
        self.counts += other.counts
        self.sum += other.sum
        self.count += other.count

    def copy(self) -> "Histogram":
        """An independent histogram with the same content."""
        twin = Histogram(self.edges)
        twin.counts = self.counts.copy()
        twin.sum = self.sum
        twin.count = self.count
        return twin

    def cumulative(self) -> Iterator[tuple[int, int]]:
        """Each edge with the number of values at or below it, ascending; values above the last edge are in `count` only."""
        return zip(self.edges, self.counts[:-1].cumsum().tolist(), strict=True)

    def quantile(self, ratio: float) -> float | None:
        """Estimate the value that `ratio` of all values do not exceed; None when nothing was observed.

        Linear within a bucket, the last edge for what lies above it (Source: Prometheus `histogram_quantile`). Off by at
        most the width of the bucket it falls into.
        Raises: ValueError unless 0 <= ratio <= 1.
        """
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"a quantile is between 0 and 1, not {ratio}")
        if self.count == 0:
            return None
        rank = ratio * self.count
        below, lower = 0, 0
        for edge, reached in self.cumulative():
            if reached >= rank and reached > below:
                return lower + (edge - lower) * (rank - below) / (reached - below)
            below, lower = reached, edge
        return float(self.edges[-1])
