"""What pushing needs of the past: events that later ones may still ask for, by entity, and the ids that were seen. **Pure.**

A window ends at the newest event that is known of its entity, so what is older than the widest window before that can never
count again. The rest is kept, in columns that all entities share: of an entity there are only the places of its events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_client.aggregation import Aggregation
from feature_client.errors import EventError
from feature_client.schema import DTYPES, Array, Columns, EventLog
from feature_client.timelines import Ints
from feature_client.view import View
from feature_client.windows import Rows, codes_of, rows_of, widest_us

EntityKey = tuple[object, ...]

_NONE = np.empty(0, dtype=np.int64)
_EVER, _NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_FIRST_SWEEP = 4096


@dataclass(frozen=True)
class Step:
    """Retained and new events of the entities that new events touch: all that their new rows depend on.

    Shapes: `codes`, `places`, `columns` `[N]`, of each entity in the order of the log. `codes` point into `entities`; `places`
    are -1 for new events. `too_late`: how many of the new events are left out because what their windows ask for is forgotten.
    """

    entities: list[EntityKey]
    codes: Ints
    places: Ints
    columns: dict[str, Array]
    too_late: int


class SeenIds:
    """Ids of events, so that the same event told again is known as such. Ownership: one thread.

    Bound: an id is remembered for at least `held_us` after it became known, and for less than twice as long.
    """

    def __init__(self, source: EventLog, held_us: int) -> None:
        self._source, self._held_us = source, held_us
        self._before: set[object] = set()
        self._now: set[object] = set()
        self._since_us = _EVER

    def first_told(self, events: Columns) -> Ints:
        """The positions of the events that are no repetition, in their order; of two alike, of the first to be known."""
        count = len(events[self._source.event_time])
        if not self._source.event_id:
            return np.arange(count)
        ids = events[self._source.event_id].tolist()
        first: dict[object, int] = {}
        for position in np.argsort(available_us(self._source, events), kind="stable").tolist():
            each = ids[position]
            if each not in self._now and each not in self._before:
                first.setdefault(each, position)
        return np.sort(np.fromiter(first.values(), np.int64, len(first)))

    def commit(self, events: Columns) -> None:
        """Remember the ids of these events."""
        if not self._source.event_id:
            return
        newest_us = int(available_us(self._source, events).max(initial=_EVER))
        if newest_us >= self._since_us + self._held_us:
            self._before, self._now = self._now, set()
        if not self._now:
            self._since_us = newest_us
        self._now.update(events[self._source.event_id].tolist())


class Retained:
    """What is kept of one stored view's events. Ownership: one thread.

    Bound: the events within the widest window before each entity's newest one. An entity whose newest event is older than the
    widest window and `lateness_us` before the newest of all is cut down to its newest event; an event that is later than that,
    and would have asked for what was cut, is left out and counted. Columns have room for at most four times what is needed.
    """

    def __init__(self, view: View, lateness_us: int) -> None:
        """Raises: EventError for a view that is not stored."""
        if view.source is None or view.entity is None or not view.inputs:
            raise EventError(f"'{view.ref}' is no stored view: it is not computed from events")
        self._source, self._keys = view.source, tuple(view.entity.keys)
        self._aggregations: Mapping[str, Aggregation] = {
            name: each for name, each in view.inputs.items() if isinstance(each, Aggregation)
        }
        self.widest_us, self._lateness_us = widest_us(self._aggregations), lateness_us
        needed = {each.column for each in self._aggregations.values()}
        needed |= {self._source.event_time, self._source.created_time}
        self._columns = {name: np.empty(0, DTYPES[self._source.columns[name]]) for name in sorted(needed - {""})}
        self._free, self._free_count = np.empty(0, np.int64), 0  # a stack of places
        self._places: dict[EntityKey, Ints] = {}
        self._cut: dict[EntityKey, int] = {}  # from which event time on an entity that was cut down is whole again
        self._newest_us = _EVER
        self._sweep_at = _FIRST_SWEEP

    @property
    def events(self) -> int:
        """How many events are kept."""
        return sum(map(len, self._places.values()))

    def step(self, events: Columns) -> Step:
        """What these new events ask for. Nothing is changed. Events without a value of a join key are about no entity."""
        about = [events[key] for key in self._keys]
        there = np.flatnonzero(np.logical_and.reduce([_present(column) for column in about]))
        codes, entities = codes_of([column[there] for column in about])
        new = {name: events[name][there] for name in self._columns}
        whole_from = np.fromiter((self._cut.get(entity, _EVER) for entity in entities), np.int64, len(entities))
        in_time = new[self._source.event_time] >= whole_from[codes]
        held = [self._places.get(entity, _NONE) for entity in entities]
        places = np.concatenate([_NONE, *held])
        held_codes = np.repeat(np.arange(len(entities)), np.array(list(map(len, held)), np.int64))
        columns = {name: np.concatenate([column[places], new[name][in_time]]) for name, column in self._columns.items()}
        all_codes = np.concatenate([held_codes, codes[in_time]])
        all_places = np.concatenate([places, np.full(int(in_time.sum()), -1)])
        return Step(entities, all_codes, all_places, columns, int((~in_time).sum()))

    def rows(self, step: Step) -> Rows:
        """The rows that the step's new events make, the last of each entity: `entity` points into `step.entities`."""
        event_us = step.columns[self._source.event_time]
        created_us = step.columns[self._source.created_time or self._source.event_time]
        rows = rows_of(step.codes, event_us, created_us, step.columns, self._aggregations)
        last = np.flatnonzero(np.diff(rows.entity, append=-1))
        # rows before the first new event were written before; the last one has them all, so no other needs to be written
        first_new_us = np.full(len(step.entities), _NEVER)
        new = step.places < 0
        np.minimum.at(first_new_us, step.codes[new], np.maximum(event_us, created_us)[new])
        chosen = last[rows.available_us[last] >= first_new_us[rows.entity[last]]]
        inputs = {name: np.ascontiguousarray(column[chosen]) for name, column in rows.inputs.items()}
        return Rows(rows.entity[chosen], rows.event_us[chosen], rows.available_us[chosen], rows.event[chosen], inputs)

    def commit(self, step: Step) -> None:
        """Keep the step's new events, and forget what no window asks for any more."""
        event_us = step.columns[self._source.event_time]
        newest_us = np.full(len(step.entities), _EVER)
        np.maximum.at(newest_us, step.codes, event_us)
        newest = newest_us[step.codes]
        kept = (event_us > newest - self.widest_us) | (event_us == newest)
        self._give_back(step.places[~kept & (step.places >= 0)])
        places = step.places.copy()
        new = np.flatnonzero(kept & (places < 0))
        places[new] = self._take(len(new))
        for name, column in self._columns.items():
            column[places[new]] = step.columns[name][new]
        self._keep(step.entities, step.codes[kept], places[kept])
        for entity, newest_event_us in zip(step.entities, newest_us.tolist(), strict=True):
            if newest_event_us >= self._cut.get(entity, _NEVER):
                del self._cut[entity]
        self._newest_us = max(self._newest_us, int(newest_us.max(initial=_EVER)))
        if len(self._room) - self._free_count > self._sweep_at:
            self._sweep()

    def remove(self, entities: Sequence[EntityKey], until_us: Ints) -> None:
        """Forget the events of each entity up to an instant, inclusive, as if the log had never had them."""
        for entity, instant_us in zip(entities, until_us.tolist(), strict=True):
            places = self._places.pop(entity, _NONE)
            gone = self._room[places] <= instant_us
            self._give_back(places[gone])
            if gone.all():
                self._cut.pop(entity, None)  # what was forgotten before was older
            else:
                self._places[entity] = places[~gone]

    @property
    def _room(self) -> Array:
        return self._columns[self._source.event_time]

    def _take(self, count: int) -> Ints:
        if self._free_count < count:
            had = len(self._room)
            more = max(had, count - self._free_count)
            for name, column in self._columns.items():
                self._columns[name] = np.concatenate([column, np.empty(more, column.dtype)])
            self._free = np.concatenate([self._free, np.empty(more, np.int64)])
            self._give_back(np.arange(had, had + more))
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count].copy()

    def _give_back(self, places: Ints) -> None:
        self._free[self._free_count : self._free_count + len(places)] = places
        self._free_count += len(places)

    def _keep(self, entities: Sequence[EntityKey], codes: Ints, places: Ints) -> None:
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(1, len(entities)), side="left")
        for entity, its in zip(entities, np.split(places[order], ends), strict=False):
            self._places[entity] = its.copy()  # a view would keep all of the step's places alive

    def _sweep(self) -> None:
        idle_us = self._newest_us - self.widest_us - self._lateness_us
        for entity, places in self._places.items():
            times = self._room[places]
            newest_us = int(times.max())
            if newest_us < idle_us and (times != newest_us).any():
                self._places[entity] = places[times == newest_us]
                self._give_back(places[times != newest_us])
                self._cut[entity] = newest_us + self.widest_us
        self._sweep_at = max(_FIRST_SWEEP, 2 * (len(self._room) - self._free_count))


def available_us(source: EventLog, events: Columns) -> Ints:
    """From when on each event is known: the later of its own time and the time it became known. Shapes: `[N]`."""
    event_us: Ints = events[source.event_time]
    return np.maximum(event_us, events[source.created_time]) if source.created_time else event_us


def _present(column: Array) -> NDArray[np.bool_]:
    if column.dtype != object:
        return np.ones(len(column), np.bool_)
    return np.fromiter((value is not None for value in column.tolist()), np.bool_, len(column))
