"""Fill a store at once: of each entity the latest row that an event log makes, as of an instant.

The rows come from the training set's own function, so that a filled store is the one that pushing every event would have left.
A fill that was interrupted goes on where it was; writing some rows twice changes nothing.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_client.checkpoint import Checkpoint
from feature_client.contract import claim_view
from feature_client.errors import EventError
from feature_client.fingerprint import stamp_of
from feature_client.point_in_time import history_of
from feature_client.schema import Columns
from feature_client.store import Store
from feature_client.stream import expire_s, key_columns, pack_rows
from feature_client.view import View
from feature_client.windows import Rows

_BATCH_ROWS = 10_000
"""Rows between two checkpoints: a tenth of a second of work."""


@dataclass(frozen=True)
class Filled:
    """What became of one view: `rows` were brought to the store, after `skipped` of an earlier fill that was interrupted.

    `kept`: instead of how many of them the store kept its own, which is newer. `duration_s`: from events to answers.
    """

    view: str
    rows: int
    skipped: int
    kept: int
    duration_s: float

    @property
    def rows_per_s(self) -> float:
        """How fast."""
        return self.rows / self.duration_s if self.duration_s else 0.0


def materialize(
    store: Store,
    project: str,
    views: Sequence[View],
    fingerprints: Mapping[str, bytes],
    events: Mapping[str, Columns],
    *,
    until_us: int | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    batch_rows: int = _BATCH_ROWS,
) -> list[Filled]:
    """Write the latest row of each entity that was available by `until_us` (inclusive; None: of all that the events make).

    `events`: by the name of the log. `progress` is told the view, rows done and rows in all. `checkpoint`: a file by which the
    same fill goes on after an interruption; it is gone when all is done. Events may be pushed meanwhile: the newer row stays,
    whoever writes it.
    Raises: EventError, EntityError, DefinitionError; ContractError where another definition writes the view; StoreError.
    """
    kept = Checkpoint(checkpoint)
    filled = []
    for view in views:
        source = "" if view.source is None else view.source.name
        if view.source is not None and source not in events:
            raise EventError(f"no events of '{source}' were given, which '{view.ref}' is computed from")
        fill = _Fill(store, project, view, fingerprints[view.ref], events.get(source, {}), until_us)
        filled.append(fill.run(kept, progress or _silent, batch_rows))
    kept.remove()
    return filled


class _Fill:
    """One view's fill, from its rows on."""

    def __init__(
        self, store: Store, project: str, view: View, fingerprint: bytes, events: Columns, until_us: int | None
    ) -> None:
        self._started_s = time.perf_counter()
        self._store, self._project, self._view = store, project, view
        self._stamp = stamp_of(fingerprint)
        history = history_of(view, events)
        self._entities = list(history.index)
        self._rows = _latest(history.rows, until_us)
        digest = _digest(view, events)
        claim_view(store, project, view.ref, fingerprint)
        # a mark that the store loses with its rows: what is brought to it is then another fill, whatever its name is
        mark = store.claim_text(f"fill:{project}:{view.ref}", secrets.token_hex(8))
        self._what = f"{view.ref} {fingerprint.hex()} {project} {store.name} {mark} until {until_us} of {digest}"

    def run(self, checkpoint: Checkpoint, progress: Callable[[str, int, int], None], batch_rows: int) -> Filled:
        """Write what is not done yet. Raises: EntityError, DefinitionError, StoreError."""
        total = len(self._rows.entity)
        begin = min(checkpoint.rows_done(self._what), total)
        written = 0
        progress(self._view.ref, begin, total)
        for at in range(begin, total, batch_rows):
            end = min(at + batch_rows, total)
            written += self._write(at, end)
            checkpoint.reached(self._what, end)
            progress(self._view.ref, end, total)
        duration_s = time.perf_counter() - self._started_s
        return Filled(self._view.ref, total - begin, begin, total - begin - written, duration_s)

    def _write(self, begin: int, end: int) -> int:
        rows = self._rows
        part = slice(begin, end)
        inputs = {name: column[part] for name, column in rows.inputs.items()}
        batch = Rows(rows.entity[part], rows.event_us[part], rows.available_us[part], rows.event[part], inputs)
        keys = key_columns(self._view, [self._entities[code] for code in batch.entity.tolist()])
        packed = pack_rows(self._project, self._view, self._stamp, keys, batch)
        return self._store.write(packed, expire_s(self._view))


def _latest(rows: Rows, until_us: int | None) -> Rows:
    """The last row of each entity, in the order of their codes."""
    index = np.arange(len(rows.entity))
    if until_us is not None:
        index = index[rows.available_us[index] <= until_us]
    chosen = index[np.flatnonzero(np.diff(rows.entity[index], append=-1))]
    inputs = {name: np.ascontiguousarray(column[chosen]) for name, column in rows.inputs.items()}
    return Rows(rows.entity[chosen], rows.event_us[chosen], rows.available_us[chosen], rows.event[chosen], inputs)


def _digest(view: View, events: Columns) -> str:
    """Of the columns that rows are made of: the same events in the same order."""
    digest = hashlib.sha256()
    for name in sorted({} if view.source is None else view.source.columns):
        column = events[name]
        if column.dtype == object:
            values = column.tolist()
            sizes = np.fromiter((-1 if value is None else len(value) for value in values), np.int64, len(values))
            digest.update(sizes.tobytes())
            digest.update(b"".join(filter(None, values)))
        else:
            digest.update(np.ascontiguousarray(column).data)
        digest.update(f"{name} {len(column)}".encode())
    return digest.hexdigest()


def _silent(view: str, done: int, total: int) -> None:
    """Nobody asked."""
