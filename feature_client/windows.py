"""Every state that an entity's aggregates went through, from an event log at once. **Pure.**

What is known of an entity at an instant are its events that happened *and* had become known by then. Its row then has the
event time of the newest of them, and aggregates over the windows that end there. A row comes to be with each event that
becomes known and changes anything; a newest-wins store that gets them one by one holds, at any instant, the last one that
was available. So one function serves training (all events at once) and pushing (an entity's recent events and the new ones).

Late events are what makes it hard. In the order of event time, a window is a range of a prefix sum; it then contains events
that were not known yet. Each of those spoils a range of rows that is contiguous in the order of becoming known, because
newest events and window beginnings only move forward: so what it added is taken off again by one difference array.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_client.aggregation import Aggregation
from feature_client.errors import EventError
from feature_client.schema import Array, Columns

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows as they came to be, ordered by entity, then by the instant they were available from; one for each such instant.

    Shapes: all `[M]`. `entity` are the codes that were given; `event` is the position, in the events given, of the last event
    that made the row; `inputs` are the aggregates by name.
    """

    entity: Ints
    event_us: Ints
    available_us: Ints
    event: Ints
    inputs: dict[str, Array]


def widest_us(aggregations: Mapping[str, Aggregation]) -> int:
    """How long after an event a later one may still ask for it. 0: only the newest event counts."""
    return max((each.window_us for each in aggregations.values()), default=0)


def rows_of(
    entity: Ints,
    event_us: Ints,
    created_us: Ints,
    columns: Columns,
    aggregations: Mapping[str, Aggregation],
    event_id: Ints | None = None,
) -> Rows:
    """All rows of all entities.

    Shapes: everything `[N]`, in the order of the log. `entity` and `event_id` are codes of what they stand for. An event that
    changes nothing (a repeated id, one older than every window of a newer one) makes no row.
    Raises: EventError for values that no sum can hold.
    """
    log = _Log(entity, event_us, created_us, event_id)
    lower = {each.window_us: log.first_within(each.window_us) for each in aggregations.values() if each.kind != "last"}
    kept = log.rows_kept(widest_us(aggregations))
    inputs = {name: _aggregate(log, each, columns, lower, kept) for name, each in aggregations.items()}
    newest = log.newest[kept]
    known = log.known[kept]
    return Rows(entity[known], event_us[log.by_event[newest]], log.available_us[kept], known, inputs)


class _Log:
    """An event log in its two orders. E: by entity and event time. A: by entity and the instant of becoming known.

    Shapes, for the n events that are not repetitions: `by_event` positions in the log, in order E; `known` in order A;
    `newest` for each place of A the place in E of the newest event known then; `place` for each place of A its own place in E.
    """

    def __init__(self, entity: Ints, event_us: Ints, created_us: Ints, event_id: Ints | None) -> None:
        available_us = np.maximum(event_us, created_us)
        known = np.lexsort((available_us, entity))  # stable: the log's own order decides where both are equal
        if event_id is not None and len(event_id):
            _, first = np.unique(event_id[np.argsort(available_us, kind="stable")], return_index=True)
            repeated = np.ones(len(event_id), dtype=np.bool_)
            repeated[np.argsort(available_us, kind="stable")[first]] = False
            known = known[~repeated[known]]
        self.known = known
        self.entity, self.event_us = entity, event_us
        self.available_us = available_us[known]
        # of two with one event time, the one created later is newer, then the later one of the log
        order = np.lexsort((known, created_us[known], event_us[known], entity[known]))
        self.by_event = known[order]
        self.place = np.empty(len(known), dtype=np.int64)
        self.place[order] = np.arange(len(known))
        # places of one entity lie together in both orders, so a running maximum never crosses entities
        self.newest: Ints = np.maximum.accumulate(self.place) if len(known) else self.place
        self._codes: Ints | None = None

    def first_within(self, window_us: int) -> Ints:
        """For each place of E, the place of the first event of its entity that is younger than a window that ends there."""
        times = self.event_us[self.by_event]
        instants, rank = np.unique(times, return_inverse=True)
        entities = np.unique(self.entity[self.by_event], return_inverse=True)[1]
        codes = entities * (len(instants) + 1) + rank
        before = np.searchsorted(instants, times - window_us, side="right")
        return np.searchsorted(codes, entities * (len(instants) + 1) + before, side="left").astype(np.int64)

    def rows_kept(self, widest_us: int) -> Ints:
        """The places of A that make a row: what changed something, and of one instant the last."""
        times = self.event_us[self.by_event]
        changes = (self.place == self.newest) | (times[self.place] > times[self.newest] - widest_us)
        places = np.flatnonzero(changes)
        if not len(places):
            return places
        entity, available = self.entity[self.known[places]], self.available_us[places]
        last = np.ones(len(places), dtype=np.bool_)
        last[:-1] = (entity[1:] != entity[:-1]) | (available[1:] != available[:-1])
        return places[last]

    def sums(self, values: Ints, lower: Ints, kept: Ints) -> Ints:
        """Sums over the windows that end at the newest event, of what was known. `values` in order E; wraps as int64 does."""
        prefix = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(values, out=prefix[1:])
        newest = self.newest[kept]
        result: Ints = prefix[newest + 1] - prefix[lower[newest]]
        late = np.flatnonzero(self.place != self.newest)
        if len(late):
            place = self.place[late]
            begins = np.searchsorted(self.newest, place, side="left")
            ends = np.minimum(late, np.searchsorted(lower[self.newest], place, side="right"))
            taken_off = np.zeros(len(self.place) + 1, dtype=np.int64)
            spoils = begins < ends
            np.add.at(taken_off, begins[spoils], values[place[spoils]])
            np.subtract.at(taken_off, ends[spoils], values[place[spoils]])
            result -= np.cumsum(taken_off)[kept]
        return result


def _aggregate(log: _Log, wanted: Aggregation, columns: Columns, lower: Mapping[int, Ints], kept: Ints) -> Array:
    newest = log.newest[kept]
    if wanted.kind == "last":
        return np.ascontiguousarray(columns[wanted.column][log.by_event[newest]])
    within = lower[wanted.window_us]
    if wanted.kind == "count":
        return log.sums(np.ones(len(log.by_event), dtype=np.int64), within, kept)
    column = columns[wanted.column][log.by_event]
    there = ~np.isnan(column) if column.dtype.kind == "f" else np.ones(len(column), dtype=np.bool_)
    resolution = wanted.resolution if column.dtype.kind == "f" else 1.0
    sums = log.sums(_fixed(wanted, column, there, resolution), within, kept).astype(np.float64) * resolution
    if wanted.kind == "sum":
        return sums
    counts = log.sums(there.astype(np.int64), within, kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def _fixed(wanted: Aggregation, column: Array, there: NDArray[np.bool_], resolution: float) -> Ints:
    if column.dtype.kind != "f":
        return column.astype(np.int64)
    scaled = np.rint(np.where(there, column, 0.0) / resolution)
    # far below the limit of int64, so that millions of them can be summed
    if len(scaled) and not np.abs(scaled).max() < 2.0**42:
        raise EventError(f"'{wanted.column}' has values that a sum of resolution {resolution} cannot hold: inf, or too large")
    return scaled.astype(np.int64)


def codes_of(parts: Sequence[Array]) -> tuple[Ints, list[tuple[object, ...]]]:
    """Numbers for the different combinations of some columns, in the order they first appear, and the combinations."""
    index: dict[tuple[object, ...], int] = {}
    lists = [part.tolist() for part in parts]
    codes = np.fromiter((index.setdefault(each, len(index)) for each in zip(*lists, strict=True)), np.int64, len(lists[0]))
    return codes, list(index)
