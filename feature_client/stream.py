"""Rows from events as they come: the incremental way to what `materialize` fills at once.

New events and those retained of their entities go through the same function that training sets are made by, so that a row
is the same to the bit whichever way it came to be. State is kept only after the store took the rows: when it did not, pushing
the same events again is right, and writing rows twice changes nothing.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from feature_client.contract import claim_view
from feature_client.errors import EventError
from feature_client.fingerprint import stamp_of
from feature_client.keys import row_keys
from feature_client.point_in_time import check_events
from feature_client.retained import EntityKey, Retained, SeenIds, Step, available_us
from feature_client.row import pack, tombstone
from feature_client.schema import DTYPES, US_PER_S, Array, Columns, EventLog, days, minutes
from feature_client.served import nulls_of
from feature_client.store import Store
from feature_client.timelines import Ints
from feature_client.view import View
from feature_client.windows import Rows


def wall_clock_us() -> int:
    """Now, in microseconds since 1970."""
    return time.time_ns() // 1000


def expire_s(view: View) -> int:
    """After how long a row that nobody writes again is garbage: twice as long as it may be served. 0: never."""
    return -(-2 * view.max_age_us // US_PER_S)


def key_columns(view: View, entities: Sequence[EntityKey]) -> dict[str, Array]:
    """The join keys of some entities as columns `[N]`, of the types that the view's entity declares."""
    declared = {} if view.entity is None else view.entity.keys
    columns = {name: np.empty(len(entities), DTYPES[dtype]) for name, dtype in declared.items()}
    for index, column in enumerate(columns.values()):
        column[:] = [entity[index] for entity in entities]
    return columns


def pack_rows(project: str, view: View, stamp: int, keys: Columns, rows: Rows) -> list[tuple[bytes, bytes]]:
    """Rows as a store takes them. `keys`: the join keys of each, `[M]`. Raises: EntityError, DefinitionError."""
    values = view.compute(rows.inputs)
    nulls = np.stack([nulls_of(feature, values[feature.name]) for feature in view.features], axis=1)
    packed = pack(view, stamp, values, nulls, rows.event_us, rows.available_us)
    return list(zip(row_keys(project, view, keys), packed, strict=True))


class Push:
    """Writes the rows of stored views as their events become known. Ownership: one thread; per entity, one `Push` anywhere.

    Events are pushed in the order of the log; what comes late, twice, or behind every window has the effect that it has on a
    training set. The same event logged twice is known by its id, and has the same entity and event time; ids are remembered for
    the widest window and `lateness_us` (a log told again from further back may count twice); without ids every event that is
    pushed counts. An event that becomes known only in the future is refused with its batch: its row would be served before a
    training set knows of it, and a newest-wins store would then refuse what truly came first. Holding it back would take a
    second log; the one that there is will bring it again. `future_us`: how far clocks may be apart.

    `retained`: by view, what is kept of the past; it says what bounds it. `too_late`: by view, how many events were left out
    because they came later than `lateness_us`.
    """

    def __init__(
        self,
        store: Store,
        project: str,
        views: Sequence[View],
        fingerprints: Mapping[str, bytes],
        *,
        lateness_us: int = days(7),
        future_us: int = minutes(1),
        now_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        """Raises: EventError for a view that is not stored; ContractError where another definition writes it; StoreError."""
        self._store, self._project = store, project
        self._future_us, self._now_us = future_us, now_us
        self._views = {view.ref: view for view in views}
        self.retained = {view.ref: Retained(view, lateness_us) for view in views}
        self.too_late = dict.fromkeys(self._views, 0)
        self._sources: dict[str, EventLog] = {}
        for source in filter(None, (view.source for view in views)):
            if self._sources.setdefault(source.name, source) != source:
                raise EventError(f"there are two different event logs named '{source.name}'")
        # what a window still holds must not be counted again, however long ago it was told first
        held_us = max((each.widest_us for each in self.retained.values()), default=0) + lateness_us
        self._ids = {name: SeenIds(source, held_us) for name, source in self._sources.items()}
        self._stamps = {ref: stamp_of(fingerprints[ref]) for ref in self._views}
        for ref, view in self._views.items():
            claim_view(store, project, view.ref, fingerprints[ref])

    def push(self, log_name: str, events: Columns) -> int:
        """Write the rows that these events make; how many the store took.

        `events`: the columns of the log, in its order. Raises: EventError and EntityError for events that cannot be, before
        anything is written; StoreError, StoreTimeout: then push the same events again.
        """
        events = self._first_told(log_name, events)
        steps = self._steps(log_name, events)
        rows: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for ref, step in steps.items():
            view = self._views[ref]
            rows[expire_s(view)] += self._packed(view, step)
        # together: views of one log would otherwise cost a round trip each
        written = sum(self._store.write(each, kept_s) for kept_s, each in rows.items() if each)
        self._commit(log_name, events, steps)
        return written

    def seed(self, log_name: str, events: Columns) -> None:
        """Take the log's tail as pushed, and write nothing: what a new process begins with.

        The tail must reach back from the last event that was pushed by the widest window and by how late events may be.
        Raises: EventError.
        """
        events = self._first_told(log_name, events)
        self._commit(log_name, events, self._steps(log_name, events))

    def delete(self, view: View, keys: Columns, event_us: Ints) -> int:
        """Write tombstones over the rows of these entities, and forget their events up to those instants; how many were taken.

        Shapes: keys `[N]` each, `event_us` int64 `[N]`. A row of a newer event stays. The log must lose the events as well, or
        a later `seed` brings them back. Raises: EventError, EntityError, StoreError.
        """
        if self._views.get(view.ref) is not view or view.entity is None:
            raise EventError(f"'{view.ref}' is none of the views pushed here: {', '.join(self._views)}")
        stamp, now_us = self._stamps[view.ref], self._now_us()
        rows = [tombstone(view, stamp, instant_us, max(instant_us, now_us)) for instant_us in event_us.tolist()]
        taken = self._store.write(list(zip(row_keys(self._project, view, keys), rows, strict=True)), expire_s(view))
        entities = list(zip(*(keys[name].tolist() for name in view.entity.keys), strict=True))
        self.retained[view.ref].remove(entities, event_us)
        return taken

    def _first_told(self, log_name: str, events: Columns) -> Columns:
        source = self._sources.get(log_name)
        if source is None:
            raise EventError(f"no view here is computed from '{log_name}'; there are: {', '.join(self._sources)}")
        check_events(source, events)
        latest_us = int(available_us(source, events).max(initial=0))
        ahead_us = latest_us - self._now_us()
        if ahead_us > self._future_us:
            raise EventError(f"an event of '{log_name}' becomes known {ahead_us / US_PER_S:.0f} s from now, at {latest_us}")
        told = self._ids[log_name].first_told(events)
        return {name: events[name][told] for name in source.columns}

    def _steps(self, log_name: str, events: Columns) -> dict[str, Step]:
        reading = [ref for ref, view in self._views.items() if view.source == self._sources[log_name]]
        return {ref: self.retained[ref].step(events) for ref in reading}

    def _packed(self, view: View, step: Step) -> list[tuple[bytes, bytes]]:
        rows = self.retained[view.ref].rows(step)
        if not len(rows.entity):
            return []
        keys = key_columns(view, [step.entities[code] for code in rows.entity.tolist()])
        return pack_rows(self._project, view, self._stamps[view.ref], keys, rows)

    def _commit(self, log_name: str, events: Columns, steps: Mapping[str, Step]) -> None:
        self._ids[log_name].commit(events)
        for ref, step in steps.items():
            self.retained[ref].commit(step)
            self.too_late[ref] += step.too_late
