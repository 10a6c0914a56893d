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
from feature_client.timelines import Ints as Ints  # named here as well: what these arrays are to callers
from feature_client.timelines import Timelines, order_of

_LARGEST = 2.0**42
"""What a value may be in units of its sum's resolution: two million of them fit into an int64."""


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

    Shapes: everything `[N]`, in the order of the log. `entity` and `event_id` are codes of what they stand for, from 0 on. An
    event that changes nothing (a repeated id, one older than every window of a newer one) makes no row.
    Raises: EventError for values that no sum can hold.
    """
    log = _Log(entity, event_us, created_us, event_id)
    kept = log.rows_kept(widest_us(aggregations))
    windows = {width: _Window(log, width, kept) for width in {each.window_us for each in aggregations.values()} if width}
    newest = log.by_event[log.newest[kept]]
    inputs: dict[str, Array] = {}
    for name, each in aggregations.items():
        if each.kind == "last":
            inputs[name] = np.ascontiguousarray(columns[each.column][newest])
        else:
            inputs[name] = _aggregate(windows[each.window_us], each, columns, log.by_event)
    known = log.known[kept]
    return Rows(entity[known], event_us[newest], log.available_us[kept], known, inputs)


class _Log:
    """An event log in its two orders. E: by entity and event time. A: by entity and the instant of becoming known.

    Shapes, for the n events that are not repetitions: `by_event` positions in the log, in order E; `known` in order A;
    `newest` for each place of A the place in E of the newest event known then; `place` for each place of A its own place in E;
    `late` the places of A whose event was not the newest then, `late_from` the places of A from which on the newest is newer.
    """

    def __init__(self, entity: Ints, event_us: Ints, created_us: Ints, event_id: Ints | None) -> None:
        available_us = np.maximum(event_us, created_us)
        once = _without_repetitions(available_us, event_id)
        self._entity, self._event_us = entity[once], event_us[once]
        # of two with one event time, the one created later is newer, then the later one of the log
        self._by_event, self._packed, self._timelines = _ordered(self._entity, self._event_us, created_us[once])
        known, self._known_packed, _ = _ordered(self._entity, available_us[once])
        self.by_event, self.known = once[self._by_event], once[known]
        self.available_us = available_us[self.known]
        places = np.empty(len(once), dtype=np.int64)
        places[self._by_event] = np.arange(len(once))
        self.place = places[known]
        # places of one entity lie together in both orders, so a running maximum never crosses entities
        self.newest: Ints = np.maximum.accumulate(self.place)
        self.late = np.flatnonzero(self.place != self.newest)
        self.late_from = np.searchsorted(self.newest, self.place[self.late], side="left")

    def first_within(self, window_us: int) -> Ints:
        """For each place of E, the place of the first event of its entity that is younger than a window that ends there."""
        if self._timelines is None:
            return self._packed
        before = self._timelines.pack(self._entity[self._by_event], self._event_us[self._by_event] - window_us)
        return np.searchsorted(self._packed, before, side="right").astype(np.int64)

    def rows_kept(self, widest_us: int) -> Ints:
        """The places of A that make a row: what changed something, and of one instant the last."""
        changes = np.ones(len(self.place), dtype=np.bool_)
        times = self._event_us[self._by_event]
        changes[self.late] = times[self.place[self.late]] > times[self.newest[self.late]] - widest_us
        places = np.flatnonzero(changes)
        at = self._known_packed[places]
        last: Ints = places[np.append(at[1:] != at[:-1], True)[: len(places)]]
        return last


def _ordered(entity: Ints, instants: Ints, *then: Ints) -> tuple[Ints, Ints, Timelines | None]:
    """Positions by entity and instant, the packed pairs in that order, and what has packed them (None: there is nothing)."""
    if not len(entity):
        return entity, entity, None
    timelines = Timelines(entity, instants)
    packed = timelines.pack(entity, instants)
    order = order_of(packed, *then)
    return order, packed[order], timelines


def _without_repetitions(available_us: Ints, event_id: Ints | None) -> Ints:
    """Positions of the events that are no repetition of one that was known before: of each id the first to be known."""
    positions = np.arange(len(available_us))
    if event_id is None or not len(event_id):
        return positions
    several = np.flatnonzero((np.bincount(event_id) > 1)[event_id])
    if not len(several):
        return positions
    order = several[np.lexsort((several, available_us[several], event_id[several]))]
    again = np.flatnonzero(event_id[order][1:] == event_id[order][:-1]) + 1
    return np.delete(positions, order[again])


class _Window:
    """The windows of one width that end at the newest event of each row that is kept: ranges of E, less what is not known yet.

    Each late event spoils the rows from where the newest is not before it to where it is known itself, or has left the window.
    """

    def __init__(self, log: _Log, window_us: int, kept: Ints) -> None:
        first = log.first_within(window_us)
        newest = log.newest[kept]
        self._first, self._end = first[newest], newest + 1
        until = np.minimum(log.late, np.searchsorted(first[log.newest], log.place[log.late], side="right"))
        spoils = log.late_from < until
        self._spoiling = log.place[log.late[spoils]]
        self._from, self._until = log.late_from[spoils], until[spoils]
        self._places, self._kept = len(log.place), kept
        self.most = int((self._end - self._first).max(initial=0))
        self.counts = self.sums(np.ones(self._places, dtype=np.int64))

    def sums(self, values: Ints) -> Ints:
        """Sums of what was known. `values` in order E."""
        prefix = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(values, out=prefix[1:])  # may wrap, and then does again in the difference
        result: Ints = prefix[self._end] - prefix[self._first]
        if len(self._spoiling):
            taken_off = np.zeros(self._places + 1, dtype=np.int64)
            np.add.at(taken_off, self._from, values[self._spoiling])
            np.subtract.at(taken_off, self._until, values[self._spoiling])
            result -= np.cumsum(taken_off)[self._kept]
        return result


def _aggregate(window: _Window, wanted: Aggregation, columns: Columns, by_event: Ints) -> Array:
    if wanted.kind == "count":
        return window.counts
    column = columns[wanted.column]
    resolution = wanted.resolution if column.dtype.kind == "f" else 1.0
    missing = np.isnan(column) if column.dtype.kind == "f" else np.zeros(0, dtype=np.bool_)
    values = _fixed(wanted, column, missing, resolution, window.most)
    sums = window.sums(values[by_event]).astype(np.float64) * resolution
    if wanted.kind == "sum":
        return sums
    counts = window.sums((~missing[by_event]).astype(np.int64)) if missing.any() else window.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / counts


def _fixed(wanted: Aggregation, column: Array, missing: NDArray[np.bool_], resolution: float, most: int) -> Ints:
    if column.dtype.kind == "f":
        scaled = np.rint(np.where(missing, 0.0, column) / resolution)
        # a limit of each value's own: whether an event can be summed must not depend on its neighbours
        if (wrong := np.flatnonzero(~(np.abs(scaled) < _LARGEST))).size:
            raise EventError(
                f"row {wrong[0]} of '{wanted.column}' is {column[wrong[0]]}, which a sum of resolution {resolution} cannot"
                f" hold: the largest is {_LARGEST * resolution:g}; leave it out (NaN), or choose a coarser resolution"
            )
        values = scaled.astype(np.int64)
    else:
        values = column.astype(np.int64)
    largest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    if largest * most >= 2**63:
        raise EventError(f"a window of {most} events of '{wanted.column}', of up to {largest}, is too large to be summed")
    return values


def codes_of(parts: Sequence[Array]) -> tuple[Ints, list[tuple[object, ...]]]:
    """Numbers from 0 on for the different combinations of some columns, and the combinations by number."""
    if len(parts) == 1 and parts[0].dtype.kind == "i":
        distinct, inverse = np.unique(parts[0], return_inverse=True)
        return inverse.astype(np.int64, copy=False), [(each,) for each in distinct.tolist()]
    index: dict[tuple[object, ...], int] = {}
    lists = [part.tolist() for part in parts]
    codes = np.fromiter((index.setdefault(each, len(index)) for each in zip(*lists, strict=True)), np.int64, len(lists[0]))
    return codes, list(index)
