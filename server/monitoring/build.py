"""From rows to a baseline, and from a baseline to what one window is compared with. **Pure.**

Floor 4. The same for validation rows at registration and for the first rows that were served.
"""

from collections import Counter as Tally
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.core.clock import US_PER_S
from server.core.hashing import id_hash
from server.core.settings import ModelSettings
from server.monitoring.baseline import HOURS, Baseline, ReferenceQuality
from server.monitoring.columns import Columns, Numbers, Reader, tally
from server.monitoring.counting import Counter
from server.monitoring.edges import BINS, LEAST_SHARE, MAX_ROWS, numeric
from server.monitoring.samples import Samples
from server.monitoring.streams import Category, Counts, Layout, Origin, Stream
from server.monitoring.variation import MOST_WINDOWS, rate_variation, variation
from server.statistics.evidence import tolerated_psi

VOCABULARY = 255
OTHERS = 65_536
"""Rare categories that are remembered by their hashes; beyond that many, a column is hardly one of categories."""

_HOUR_US = 3600 * 10**6
_FIRST_HOUR = 72  # 1970 began on a Thursday


def build(
    samples: Samples | Sequence[Samples],
    settings: ModelSettings,
    *,
    quality: ReferenceQuality | None = None,
    latency_us: tuple[float, float, float] = (0.0, 0.0, 0.0),
    origin: Literal["registration", "learned"] = "registration",
    timed: bool = True,
    free: Collection[str] = (),
) -> Baseline:
    """The baseline of these rows.

    `timed`: `time_us` says when rows happened, so hours of the week are told apart (where they have rows enough, see
    `hour_rows`). `free`: tensors with free dimensions, which have no streams, as has a tensor whose rows differ in shape.
    The unseen cell of a category stream counts the baseline's categories of one row: each was unseen to all other rows, which
    is how often a further row brings a new one (Good and Turing); 0 would make the first rare value of a window a finding.
    Raises: ValueError where there is no row, more than `MAX_ROWS`, or nothing to monitor in them.
    """
    pieces = [samples] if isinstance(samples, Samples) else list(samples)
    rows = sum(piece.rows for piece in pieces)
    if not rows:
        raise ValueError("a baseline needs rows, and there are none")
    if rows > MAX_ROWS:
        raise ValueError(f"{rows} rows are more than a baseline can count: at most {MAX_ROWS}")
    reader = Reader(settings, {*free, *_uneven(pieces)})
    made = _gathered(pieces, reader)
    if not made:
        raise ValueError("no input and no output has a stream of its own: there is nothing to monitor")
    layout = Layout(tuple(one.stream(name) for name, one in made.items()))
    # the same cells, with categories of one row unseen
    again = (
        one.met_again(s.name) if isinstance(one, _Texts) else s for s, one in zip(layout.streams, made.values(), strict=True)
    )
    counter = Counter(Layout(tuple(again)), settings)
    counts = layout.empty()
    hours = np.zeros((HOURS, layout.size), dtype=np.int64)
    sizes = np.zeros(HOURS, dtype=np.int64)
    for piece in pieces:
        if not timed:
            counts += counter.count(piece)
            continue
        for hour, chosen in _by_hour(piece.time_us):
            hours[hour] += counter.count(piece.part(chosen))
            sizes[hour] += len(chosen)
    counts += hours.sum(axis=0)
    least = hour_rows(settings)
    hourly = {hour: hours[hour] for hour in range(HOURS) if sizes[hour] >= least}
    baseline = Baseline(layout.streams, counts, rows, origin, hourly, quality, latency_us)
    if not timed:
        return baseline
    windows = _windows(pieces, counter, settings)
    rates = rate_variation(layout, counts, windows)
    return replace(baseline, variation=variation(layout, counts, windows), rate_variation=rates)


def _windows(pieces: Sequence[Samples], counter: Counter, settings: ModelSettings) -> list[Counts]:
    """The counts of the last windows that have enough rows to be judged."""
    length_us = round(settings.monitoring.window_s * US_PER_S)
    starts = [piece.time_us // length_us for piece in pieces]
    found, sizes = np.unique(np.concatenate(starts), return_counts=True)
    made = []
    for start in found[sizes >= settings.monitoring.min_rows][-MOST_WINDOWS:].tolist():
        parts = [(piece, np.flatnonzero(own == start)) for piece, own in zip(pieces, starts, strict=True)]
        counted = [counter.count(piece.part(chosen)) for piece, chosen in parts if len(chosen)]
        made.append(np.sum(counted, axis=0))
    return made


def hour_rows(settings: ModelSettings) -> int:
    """How many rows an hour of the week needs to be compared with by itself.

    So many that its own noise in PSI, (B - 1) / n, is at most the PSI of the tolerated shift: beyond that the slice says less
    about an hour than the tolerance forgives anyway. (A reference that every window shares needs 20 times as much, lest its one
    error adds up over all of them; an hour is met once a week.)
    """
    return ceil((BINS - 1) / tolerated_psi(settings.monitoring.tolerance))


def reference(baseline: Baseline, start_us: int, end_us: int) -> tuple[Counts, Literal["all", "hours_of_week"]]:
    """What a window [start, end) is compared with: the hours of the week that it touches, added up as they are, where the
    baseline has rows enough of each; else, and for a window of a week or more, all of the baseline.

    Ownership: nobody writes to what comes back.
    """
    first, last = start_us // _HOUR_US, max(start_us, end_us - 1) // _HOUR_US
    if last - first + 1 < HOURS:
        touched = [(hour + _FIRST_HOUR) % HOURS for hour in range(first, last + 1)]
        if all(hour in baseline.hourly for hour in touched):
            summed: Counts = np.sum([baseline.hourly[hour] for hour in touched], axis=0)
            return summed, "hours_of_week"
    return baseline.counts, "all"


def _by_hour(time_us: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    hours = (time_us // _HOUR_US + _FIRST_HOUR) % HOURS
    order = np.argsort(hours, kind="stable")
    present, starts = np.unique(hours[order], return_index=True)
    yield from zip(present.tolist(), np.split(order, starts[1:]), strict=True)


def _uneven(pieces: Sequence[Samples]) -> set[str]:
    """Tensors whose rows are not all of one shape and type."""
    kinds: dict[str, set[Any]] = {}
    for piece in pieces:
        for prefix, tensors in (("", piece.inputs), ("output:", piece.outputs)):
            for name, array in tensors.items():
                kinds.setdefault(prefix + name, set()).add((array.shape[1:], array.dtype))
    return {name for name, seen in kinds.items() if len(seen) > 1}


@dataclass(slots=True)
class _Numbers:
    """The finite values of one column."""

    origin: Origin
    parts: list[Numbers] = field(default_factory=list)

    def stream(self, name: str) -> Stream:
        """The stream that windows are counted by."""
        values: Any = np.concatenate(self.parts)
        return numeric(name, self.origin, values)


@dataclass(slots=True)
class _Texts:
    """How often each category of one column occurs."""

    origin: Origin
    counts: Tally[str] = field(default_factory=Tally)

    def stream(self, name: str) -> Stream:
        """The stream that windows are counted by."""
        return self._made(name, self._ranked())

    def met_again(self, name: str) -> Stream:
        """The same cells, for the baseline's own rows: a category of one row was unseen to all others."""
        return self._made(name, [text for text in self._ranked() if self.counts[text] > 1])

    def _ranked(self) -> list[str]:
        return sorted(self.counts, key=lambda text: (-self.counts[text], text))[: VOCABULARY + OTHERS]

    def _made(self, name: str, known: Sequence[str]) -> Stream:
        least = max(2, LEAST_SHARE * self.counts.total())
        frequent = tuple(text for text in known[:VOCABULARY] if self.counts[text] >= least)
        return Category(name, self.origin, frequent, tuple(sorted({id_hash(text) for text in known[len(frequent) :]})))


def _gathered(pieces: Sequence[Samples], reader: Reader) -> dict[str, _Numbers | _Texts]:
    """Every stream's values, in the order in which tensors come."""
    made: dict[str, _Numbers | _Texts] = {}
    for piece in pieces:
        # two tensors may claim one name: the first has it, as in counting
        seen: set[str] = set()
        for columns in reader.read(piece):
            for index, name in enumerate(columns.names):
                if name in seen:
                    continue
                seen.add(name)
                kind = _Texts if reader.is_category(columns, index) else _Numbers
                one = made.setdefault(name, kind(columns.origins[index]))
                if isinstance(one, _Texts):
                    one.counts.update(tally(columns, index)[0])
                else:
                    one.parts.append(_finite(reader.numbers(columns)[:, index], columns, index))
    return made


def _finite(values: Any, columns: Columns, index: int) -> Numbers:
    counted = np.isfinite(values)
    if columns.absent is not None:
        counted &= ~columns.absent[:, index]
    made: Numbers = values[counted]
    return made
