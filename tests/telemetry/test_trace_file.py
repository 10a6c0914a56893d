"""Files of traces: valid JSON after every write, and after one that failed."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.telemetry.trace_file import TraceFile
from tests.telemetry.traces import trace


def numbers(path: Path) -> list[int]:
    return [found["id"] for found in json.loads(path.read_text()) if "model_name" in found]


def test_it_is_whole_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    path.write_text("what was there before, which is longer than what comes" * 100)
    sink = TraceFile(path)
    assert path.stat().st_size > 1000, "nothing is replaced before there is a trace"
    sink.write([trace(1), trace(2)])
    assert numbers(path) == [1, 2]
    for number in range(3, 20):
        sink.write([trace(number)])
        assert numbers(path) == list(range(1, number + 1))
    sink.abandon()
    sink.close()
    assert numbers(path) == list(range(1, 20))


def test_numbered_files_hold_as_many_as_they_should(tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    sink = TraceFile(path)
    sink.write([trace(number, log_frequency=3) for number in range(1, 8)])
    sink.write([trace(8, log_frequency=3), trace(9), trace(10, log_frequency=2), trace(11, log_frequency=2)])
    sink.close()
    held = {found.name: numbers(found) for found in tmp_path.iterdir()}
    assert held == {
        "traces.json": [9],
        "traces.json.0": [1, 2, 3],
        "traces.json.1": [4, 5, 6],
        "traces.json.2": [7, 8],
        "traces.json.3": [10, 11],
    }


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.json"
    sink = TraceFile(path)
    real = os.pwrite

    def full(file: int, data: Any, offset: int) -> int:
        """A disk with room for a few bytes: a short write, then an error, as long as more is wanted than was there."""
        if len(data) <= 20:
            return real(file, data, offset)
        if offset > 700:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, bytes(data)[:150], offset)

    sink.write([trace(1)])
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        sink.write([trace(number) for number in range(2, 40)])
    assert numbers(path) == [1]
    monkeypatch.undo()
    sink.write([trace(40)])
    sink.close()
    assert numbers(path) == [1, 40]


def test_a_folder_that_is_gone_is_an_error_every_time(tmp_path: Path) -> None:
    sink = TraceFile(tmp_path / "gone" / "traces.json")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            sink.write([trace()])
    sink.close()
