"""Sampled rows kept as Parquet files, a folder for each model and version: for retraining, and for joining labels.

Floor 4; loaded by name, with pyarrow. Rows wait in memory until they make a row group worth reading, in a hidden file until
that is whole: a process that is killed loses those of its open files, and leaves nothing that looks like one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.core.monitoring_settings import ParquetSettings
from server.core.versions import VersionKey
from server.monitoring.codec import Redaction, redacted
from server.monitoring.parquet_tables import TableFile, remove_left, to_table
from server.monitoring.retention import Kept, to_remove
from server.monitoring.samples import Samples, together
from server.monitoring.sink import Lost

GROUP_BYTES = 4 * 2**20
"""Of a row group, in memory: large enough that a column in it is worth a seek."""
_WAITING_BYTES = 64 * 2**20
"""Of all versions together; beyond that, whoever has most writes."""
_OPEN_FILES = 64
_LOOK_S = 60.0
"""How often old files are looked for."""
_LOG = logging.getLogger(__name__)
Loss = tuple[VersionKey, str, int, int]


@dataclass
class _Open:
    """One version's file, from its first row on. `in_file`: what is in it, for the case that it cannot be finished."""

    since_s: float
    file: TableFile | None = None
    waiting: list[Samples] = field(default_factory=list)
    waiting_bytes: int = 0
    in_file: list[Loss] = field(default_factory=list)


class ParquetSink:
    """A `Sink`. Ownership: one thread, that of its lane. Several processes may write to one folder.

    `redact` says for a version what must not be written. `now_s`: seconds since 1970.
    Raises: OSError where the folder cannot be made.
    """

    name = "parquet"

    def __init__(
        self, settings: ParquetSettings, redact: Callable[[VersionKey], Redaction], now_s: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._redact = redact
        self._now_s = now_s
        self._folder = Path(settings.dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[VersionKey, _Open] = {}
        self._lost: list[Loss] = []
        self._reason = ""
        self._looked_s = -_LOOK_S
        remove_left(self._folder)

    def write(self, samples: Sequence[Samples]) -> None:
        """See `Sink`. Raises: Lost, with everything of a file that cannot be written (the disk is full)."""
        for each in samples:
            state = self._open.setdefault(each.key, _Open(self._now_s()))
            state.waiting.append(redacted(each, *self._redact(each.key)))
            state.waiting_bytes += each.nbytes
            if state.waiting_bytes >= GROUP_BYTES:
                self._flush(each.key)
        while sum(state.waiting_bytes for state in self._open.values()) > _WAITING_BYTES:
            self._flush(max(self._open, key=lambda key: self._open[key].waiting_bytes))
        while len(self._open) > _OPEN_FILES:
            self._finish(next(iter(self._open)))  # the one opened first
        self._tell()

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """See `Sink`. What is not in the files is not in the files."""

    def idle(self) -> None:
        """See `Sink`: files that are old enough become visible, and those that are too old go. Raises: Lost."""
        now_s = self._now_s()
        for key in [key for key, state in self._open.items() if now_s - state.since_s >= self._settings.max_file_s]:
            self._finish(key)
        if now_s - self._looked_s >= _LOOK_S or now_s < self._looked_s:
            self._remove_old(now_s)
        self._tell()

    def close(self) -> None:
        """See `Sink`. Raises: Lost."""
        for key in list(self._open):
            self._finish(key)
        self._tell()

    def _flush(self, key: VersionKey) -> None:
        """What waits into the file, which ends if that makes it large enough."""
        state = self._open[key]
        waiting, state.waiting, state.waiting_bytes = state.waiting, [], 0
        for samples in together(waiting):
            try:
                table = to_table(samples)
            except ValueError as error:
                self._lose([_loss(samples)], error)
                continue
            state.in_file.append(_loss(samples))
            try:
                if state.file is not None and state.file.schema != table.schema:
                    self._visible(state.file)
                    state.file, state.in_file = None, [_loss(samples)]
                if state.file is None:
                    state.file = TableFile(self._folder / key.model / str(key.version), table.schema)
                state.file.add(table)
            except OSError as error:
                self._give_up(state, error)
        if state.file is not None and state.file.nbytes >= self._settings.max_file_bytes:
            self._finish(key)

    def _finish(self, key: VersionKey) -> None:
        state = self._open[key]
        if state.waiting:
            self._flush(key)
        self._open.pop(key, None)
        if state.file is not None:
            try:
                self._visible(state.file)
                state.file = None
            except OSError as error:
                self._give_up(state, error)

    def _visible(self, file: TableFile) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now_s()))
        path = file.finish(file.path.name.replace(".open", stamp, 1))
        _LOG.info("a file of samples is complete", extra={"file": str(path)})
        self._remove_old(self._now_s())

    def _give_up(self, state: _Open, error: OSError) -> None:
        self._lose(state.in_file, error)
        if state.file is not None:
            state.file.abandon()
        state.file, state.in_file = None, []

    def _lose(self, losses: Sequence[Loss], error: Exception) -> None:
        self._lost += losses
        self._reason = str(error)

    def _tell(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, []
            raise Lost(lost, self._reason)

    def _remove_old(self, now_s: float) -> None:
        """Only what has a visible name: what is being written has none. Other processes may do the same at once."""
        self._looked_s = now_s
        files = []
        for path in self._folder.glob("*/*/[!.]*.parquet"):
            with suppress(OSError):
                found = path.stat()
                files.append(Kept(path, found.st_size, found.st_mtime))
        for path in to_remove(files, now_s, self._settings.retention_s, self._settings.max_total_bytes):
            with suppress(OSError):
                path.unlink()
                _LOG.info("a file of samples was removed", extra={"file": str(path)})


def _loss(samples: Samples) -> Loss:
    return samples.key, samples.arm, samples.rows, int(samples.time_us[0]) if samples.rows else 0
