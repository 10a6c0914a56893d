"""Rows to counts: one vector of int64 for a block of rows, whatever the order and the blocks. **Pure.**

Floor 4. Per column of numbers one sort and one look-up of the edges, which is several times faster than finding a bin for each
value (branches that cannot be predicted); sums are of integers, so that they too are the same in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.hashing import id_hash
from server.core.settings import ModelSettings
from server.monitoring.columns import Columns, Numbers, Reader, tally
from server.monitoring.edges import MAX_UNITS
from server.monitoring.samples import Samples
from server.monitoring.streams import SUM_SCALE, Category, Counts, Layout, Numeric

BLOCK_ROWS = 8192
"""Sorted at once: what the nearest caches hold. At most 2**16: sums of so many integers up to 2**36 are exact in float64."""
_BLOCK_VALUES = 2**16

Positions = NDArray[np.intp]


class Counter:
    """Counts the rows of samples, as `layout` says. Used by one thread at a time.

    A stream that samples do not have, or that cannot be read as what it is, counts as missing in all of their rows; one that
    the settings say is not sampled counts nothing.
    """

    def __init__(self, layout: Layout, settings: ModelSettings) -> None:
        self.layout = layout
        self._reader = Reader(settings)
        self._categories: dict[str, tuple[slice, Category, dict[str, int], frozenset[int]]] = {}
        self._missing_cells: dict[str, int] = {}
        numeric: list[Numeric] = []
        starts: list[int] = []
        for index, stream in layout:
            if self._reader.ignored(stream.name):
                continue
            start = layout.slices[index].start
            if isinstance(stream, Numeric):
                self._missing_cells[stream.name] = start + stream.bins
                numeric.append(stream)
                starts.append(start)
            else:
                self._missing_cells[stream.name] = start + stream.bins + 1
                cells = {text: place for place, text in enumerate(stream.vocabulary)}
                self._categories[stream.name] = (layout.slices[index], stream, cells, frozenset(stream.others))
        self._numeric = {stream.name: place for place, stream in enumerate(numeric)}
        self._bins = _Bins(numeric, starts, layout.size)

    def count(self, samples: Samples) -> Counts:
        """What these rows add. Shapes: `[layout.size]`, the caller's own."""
        counts = np.zeros(self.layout.size + 1, dtype=np.int64)  # the last cell is nobody's
        left = dict(self._missing_cells)
        numbers: dict[np.dtype[Any], list[_Part]] = {}
        for columns in self._reader.read(samples):
            chosen, places = [], []
            for index, name in enumerate(columns.names):
                if name not in left:
                    continue
                if name in self._categories:
                    del left[name]
                    self._count_categories(counts, name, columns, index)
                elif not columns.are_texts:
                    del left[name]
                    chosen.append(index)
                    places.append(self._numeric[name])
            if chosen:
                values = self._reader.numbers(columns)
                numbers.setdefault(values.dtype, []).append(_Part(values, columns.absent, chosen, places))
        for dtype, parts in numbers.items():
            self._count_numbers(counts, samples.rows, dtype, parts)
        for cell in left.values():
            counts[cell] += samples.rows
        return counts[:-1]

    def _count_categories(self, counts: Counts, name: str, columns: Columns, index: int) -> None:
        cells, stream, vocabulary, others = self._categories[name]
        own = counts[cells]
        found, missing = tally(columns, index)
        own[stream.bins + 1] += missing
        for text, count in found.items():
            place = vocabulary.get(text)
            if place is None:
                place = stream.bins - 1 if id_hash(text) in others else stream.bins
            own[place] += count

    def _count_numbers(self, counts: Counts, rows: int, dtype: np.dtype[Any], parts: "Sequence[_Part]") -> None:
        """All numbers of one type, a block of columns and rows at a time."""
        places = np.array([place for part in parts for place in part.places])
        for first in range(0, rows, BLOCK_ROWS):
            span = slice(first, first + BLOCK_ROWS)
            height = min(BLOCK_ROWS, rows - first)
            block: Any = np.empty((len(places), height), dtype=dtype)
            line = 0
            for part in parts:
                part.copy_to(block[line : line + len(part.chosen)], span)
                line += len(part.chosen)
            step = max(1, _BLOCK_VALUES // height)
            for start in range(0, len(places), step):
                self._bins.add(counts, block[start : start + step], places[start : start + step])


@dataclass(frozen=True, slots=True)
class _Part:
    """Columns of one tensor, and the streams they are."""

    values: Numbers
    absent: NDArray[np.bool_] | None
    chosen: list[int]
    places: list[int]

    def copy_to(self, block: Numbers, span: slice) -> None:
        """Some rows of them as lines. What is absent is NaN there."""
        lines = self.values[span].T
        block[:] = lines if len(self.chosen) == len(lines) else lines[self.chosen]
        if self.absent is not None:
            block[self.absent[span].T[self.chosen]] = np.nan


class _Bins:
    """What numbers of some streams are compared with, in tables with one line per stream.

    Of each stream, in a type: -inf, just below `low`, the edges (filled up with the largest number there is), that number,
    `high`, inf. How many values are at most each of these says everything that is counted.
    """

    def __init__(self, streams: Sequence[Numeric], starts: Sequence[int], spare: int) -> None:
        self._width = max((stream.bins for stream in streams), default=1)
        self._keys = {np.dtype(dtype): self._table(streams, dtype) for dtype in (np.float32, np.float64)}
        width = self._width
        # beyond a stream's own bins its lines are filled up with a cell that is nobody's
        self._bin_cells = np.full((len(streams), width), spare, dtype=np.intp)
        self._sum_cells = np.full((len(streams), width), spare, dtype=np.intp)
        self._cells = np.empty((len(streams), 4), dtype=np.intp)
        for line, (stream, start) in enumerate(zip(streams, starts, strict=True)):
            bins = np.arange(stream.bins)
            self._bin_cells[line, : stream.bins] = start + bins
            self._cells[line] = start + stream.bins + np.arange(4)
            self._sum_cells[line, : stream.bins] = start + stream.bins + 4 + bins
        self._center = np.array([stream.center for stream in streams])[:, None]
        self._units = SUM_SCALE / np.array([stream.scale for stream in streams])[:, None]
        limits = np.array([stream.winsor for stream in streams]).reshape(-1, 2)
        with np.errstate(over="ignore"):
            reach = np.rint((limits - self._center) * self._units)
        self._reach = np.clip(reach, -MAX_UNITS * SUM_SCALE, MAX_UNITS * SUM_SCALE)

    def add(self, counts: Counts, block: Numbers, places: Positions) -> None:
        """Count a block, which is sorted in place. Shapes: `block` `[C, N]`, `places` `[C]`: which stream each line is of."""
        columns, rows = block.shape
        block.sort(axis=1)
        keys = self._keys[block.dtype][places]
        found = np.empty(keys.shape, dtype=np.intp)
        for line in range(columns):
            found[line] = block[line].searchsorted(keys[line], side="right")
        last = self._width + 1
        bounds = np.concatenate([found[:, :1], found[:, 2 : last + 1]], axis=1)
        inside = np.diff(bounds, axis=1)
        counts[self._bin_cells[places]] += inside
        present, numbers = found[:, last], found[:, last + 2]
        cells = self._cells[places]
        counts[cells[:, 0]] += rows - numbers
        counts[cells[:, 1]] += found[:, 0] + numbers - present
        counts[cells[:, 2]] += found[:, 1] - found[:, 0]
        counts[cells[:, 3]] += present - found[:, last + 1]
        sums = np.add.reduceat(self._scaled(block, places), (bounds + np.arange(columns)[:, None] * rows).ravel())
        within = np.where(inside > 0, sums.reshape(columns, -1)[:, :-1], 0)
        counts[self._sum_cells[places]] += within.astype(np.int64)

    def _scaled(self, block: Numbers, places: Positions) -> NDArray[np.float64]:
        """Every value in units of 1 / SUM_SCALE, as a whole number; one 0 behind them, so that a bin may begin there."""
        columns, rows = block.shape
        flat = np.empty(columns * rows + 1)
        flat[-1] = 0
        scaled = flat[:-1].reshape(columns, rows)
        reach = self._reach[places]
        # what is not finite is in no bin, whatever becomes of it here
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(block, self._center[places], out=scaled)
            np.multiply(scaled, self._units[places], out=scaled)
            np.rint(scaled, out=scaled)
            np.fmin(scaled, reach[:, 1:], out=scaled)
            np.fmax(scaled, reach[:, :1], out=scaled)
        return flat

    def _table(self, streams: Sequence[Numeric], dtype: type[np.float32] | type[np.float64]) -> Numbers:
        largest = np.finfo(dtype).max
        table: Any = np.full((len(streams), self._width + 4), largest, dtype=dtype)
        for line, stream in enumerate(streams):
            table[line, 0] = -np.inf
            with np.errstate(over="ignore"):
                table[line, 1] = np.nextafter(-_at_most([-stream.low], dtype)[0], dtype(-np.inf))
            table[line, 2 : stream.bins + 1] = _at_most(stream.edges, dtype)
            table[line, -2] = min(_at_most([stream.high], dtype)[0], largest)
        table[:, -1] = np.inf
        made: Numbers = table
        return made


def _at_most(values: Sequence[float], dtype: type[np.float32] | type[np.float64]) -> Numbers:
    """The largest numbers of a type that are not above these: the same comparison, in that type."""
    exact = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        near: Any = exact.astype(dtype)
        made: Numbers = np.where(near.astype(np.float64) > exact, np.nextafter(near, dtype(-np.inf)), near)
    return made
