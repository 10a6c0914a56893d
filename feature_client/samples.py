"""Samples of what was served: chosen so that a retry is chosen again, written beside the way of a request, read by the audit.

A file has one line of JSON for each batch that had a chosen row, exact to the bit. A full queue drops and counts; nothing that
happens to the disk is ever felt by a request.
"""

import json
import logging
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import EventError, StoreError
from feature_client.exact_json import columns_of, json_of
from feature_client.schema import Array, Columns
from feature_client.timelines import Ints

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_CLOSE_S = 10.0
_BLOCK_BYTES = 65536


@dataclass(frozen=True)
class Sampled:
    """N rows that one version served. `origin`: "model:version". `views`: references of all the views that it reads.

    Shapes: everything `[N]` or `[N, *shape]`. `keys`, `request`: what the call brought; `values`, `statuses`: every feature by
    name; `available_us`: by the reference of each stored view that was read, of the rows that were found, 0 where none was.
    `given`: the features that the call stated itself.
    """

    origin: str
    views: tuple[str, ...]
    as_of_us: Ints
    keys: Columns
    request: Columns
    values: Columns
    statuses: Columns
    available_us: Columns
    given: tuple[str, ...]

    def part(self, rows: Ints) -> "Sampled":
        """Some of the rows, copied."""
        keys, request, values, statuses, available_us = (
            {name: column[rows] for name, column in columns.items()}
            for columns in (self.keys, self.request, self.values, self.statuses, self.available_us)
        )
        return Sampled(self.origin, self.views, self.as_of_us[rows], keys, request, values, statuses, available_us, self.given)


def chosen_rows(sampled: Sampled, of_rows: float) -> Ints:
    """Which rows of a batch are kept, by a hash of who asked for what, and when: the same in every process."""
    mixed = np.full(len(sampled.as_of_us), crc32(sampled.origin.encode()), np.uint64)
    for name in sorted(sampled.keys):
        mixed = _mix(mixed ^ _words(sampled.keys[name]))
    mixed = _mix(mixed ^ _words(sampled.as_of_us))
    return np.flatnonzero(mixed <= np.uint64(min(int(of_rows * 2**64), 2**64 - 1)))


class SampleWriter:
    """Appends samples to `path`; when it would be larger than `max_bytes` it becomes `path.1`, over the one before.

    One writer to a file. `written_rows` and `dropped_rows` count the chosen ones; rows are dropped when `waiting` batches wait
    for the disk already, when the disk refuses, and when a line alone is larger than the file may be.
    Ownership: any thread offers; arrays are copied, so the caller may use them on.
    """

    def __init__(self, path: Path, of_rows: float, max_bytes: int, waiting: int = 1024) -> None:
        """A line that a crash left unfinished is cut off. Raises: StoreError where the file cannot be written."""
        self._path, self._of_rows, self._max_bytes = path, of_rows, max_bytes
        self.written_rows = self.dropped_rows = 0
        self._lock = threading.Lock()
        self._queue: queue.Queue[Sampled | None] = queue.Queue(waiting)
        self._closed = False
        self._refused = False
        try:
            _cut_unfinished(path)
            self._file = _open(path)
        except OSError as error:
            raise StoreError(f"samples cannot be written to '{path}': {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="feature-samples", daemon=True)
        self._thread.start()

    def offer(self, sampled: Sampled) -> None:
        """Keep the chosen rows of what was served. Never blocks, never raises."""
        rows = chosen_rows(sampled, self._of_rows)
        if not len(rows):
            return
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait(sampled.part(rows))
        except queue.Full:
            self._count(dropped=len(rows))

    def close(self) -> None:
        """Write what waits, and let go of the file. Idempotent. A disk that hangs is waited for 10 seconds."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (sampled := self._queue.get()) is not None:
            rows = len(sampled.as_of_us)
            try:
                self._count(**{"written" if self._append(line_of(sampled)) else "dropped": rows})
                self._refused = False
            except OSError as error:
                self._count(dropped=rows)
                if not self._refused:
                    _LOG.warning("samples cannot be written to %s: %s", self._path, error.strerror)
                self._refused = True
        self._file.close()

    def _append(self, line: bytes) -> bool:
        if len(line) > self._max_bytes:
            return False
        if not self._file.closed and self._file.tell() + len(line) > self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        if self._file.closed:
            self._file = _open(self._path)
        before, rest = self._file.tell(), memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(before)  # no half line may stand between whole ones
            self._file.seek(before)
            raise
        return True

    def _count(self, written: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self.written_rows += written
            self.dropped_rows += dropped


def line_of(sampled: Sampled) -> bytes:
    """One line of a file of samples."""
    made = {
        "format": _FORMAT,
        "origin": sampled.origin,
        "views": sampled.views,
        "given": sampled.given,
        "as_of_us": sampled.as_of_us.tolist(),
        "keys": json_of(sampled.keys),
        "request": json_of(sampled.request),
        "values": json_of(sampled.values),
        "statuses": {name: column.tolist() for name, column in sampled.statuses.items()},
        "available_us": {ref: column.tolist() for ref, column in sampled.available_us.items()},
    }
    return json.dumps(made, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def sampled_of(line: bytes) -> Sampled:
    """What `line_of` was given. Raises: EventError for anything that it would not have made."""
    try:
        made = json.loads(line)
        if made["format"] != _FORMAT:
            raise EventError(f"the format is {made['format']}, not {_FORMAT}")
        sampled = Sampled(
            made["origin"],
            tuple(made["views"]),
            _ints(made["as_of_us"], np.int64),
            columns_of(made["keys"]),
            columns_of(made["request"]),
            columns_of(made["values"]),
            {name: _ints(column, np.uint8) for name, column in made["statuses"].items()},
            {ref: _ints(column, np.int64) for ref, column in made["available_us"].items()},
            tuple(made["given"]),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise EventError("this is no sample of served rows") from None
    parts: tuple[Mapping[str, Array], ...] = (
        sampled.keys,
        sampled.request,
        sampled.values,
        sampled.statuses,
        sampled.available_us,
    )
    if {len(column) for columns in parts for column in columns.values()} - {len(sampled.as_of_us)}:
        raise EventError("the columns of a sample have different lengths")
    return sampled


def read_samples(paths: Iterable[Path]) -> Iterator[Sampled]:
    """The samples of these files, in order. A last line that was left unfinished is passed over.

    Raises: EventError for a file that cannot be read, or has a line that is no sample.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        sampled = sampled_of(line)
                    except EventError as error:
                        if not line.endswith(b"\n"):
                            break
                        raise EventError(f"{path}, line {number}: {error}") from None
                    yield sampled
        except OSError as error:
            raise EventError(f"samples cannot be read from '{path}': {error.strerror}") from None


def _ints(values: Any, dtype: type[np.integer[Any]]) -> NDArray[Any]:
    column = np.array(values, dtype)
    if column.ndim != 1 or column.tolist() != values:
        raise ValueError
    return column


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # the finaliser of splitmix64: every bit of the input reaches every bit of the result
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _words(column: Array) -> NDArray[np.uint64]:
    if column.dtype == object:
        return np.fromiter((0 if value is None else crc32(value) + 1 for value in column.tolist()), np.uint64, len(column))
    return np.ascontiguousarray(column, np.int64).view(np.uint64)


def _open(path: Path) -> FileIO:
    file = path.open("ab", buffering=0)
    file.seek(0, 2)
    return file


def _cut_unfinished(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        file.truncate(end)
