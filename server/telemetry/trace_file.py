"""Traces to files that are valid JSON whenever they are looked at.

Floor 2, on the writer's thread only. The path is the operator's; nothing that comes over the network is part of it. A file is
truncated by the first trace of a process, and grows by overwriting its closing bracket.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from server.telemetry.trace import Trace
from server.telemetry.trace_records import json_of


class TraceFile:
    """`path`, or `path.0`, `path.1`, … for traces that ask for numbered files. Ownership: one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._main: _JsonArray | None = None
        self._numbered: _JsonArray | None = None
        self._next = 0

    def write(self, traces: Sequence[Trace]) -> None:
        """Append in order. Raises: OSError; then the file is as it was before those of it that did not fit."""
        for frequency, group in groupby(traces, lambda trace: trace.log_frequency):
            rest = list(group)
            while rest:
                array = self._array(frequency)
                room = frequency - array.length if frequency else len(rest)
                now, rest = rest[:room], rest[room:]
                array.append([json_of(trace) for trace in now])

    def close(self) -> None:
        """Let go of the files."""
        for array in (self._main, self._numbered):
            if array is not None:
                array.close()

    def abandon(self) -> None:
        """Nothing here waits for anybody."""

    def _array(self, frequency: int) -> "_JsonArray":
        if not frequency:
            self._main = self._main or _JsonArray(self._path)
            return self._main
        if self._numbered is not None and self._numbered.length >= frequency:
            self._numbered.close()
            self._numbered = None
        if self._numbered is None:
            self._numbered = _JsonArray(self._path.with_name(f"{self._path.name}.{self._next}"))
            self._next += 1
        return self._numbered


class _JsonArray:
    """A file that holds one JSON array. `length` is the number of appended pieces."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._end = 0
        self.length = 0

    def append(self, pieces: Sequence[str]) -> None:
        """Each piece is one or more JSON values with commas between them."""
        data = (("," if self.length else "[") + ",\n".join(pieces) + "]").encode()
        start = max(self._end - 1, 0)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], start + written)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
                os.pwrite(self._file, b"]" if self._end else b"", start)
            raise
        self._end = start + len(data)
        self.length += len(pieces)

    def close(self) -> None:
        os.close(self._file)
