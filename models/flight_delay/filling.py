"""The demo's store of features: an embedded server, filled from event logs up to an instant, and kept up to date after it.

What a user would do: event logs as Parquet files, `podium features materialize` for everything that has happened, `Push` for
what happens then, `podium features audit` to prove that what was served is what training computes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_client.definitions import Definitions, load_definitions
from feature_client.embedded import start_embedded
from feature_client.opening import open_store
from feature_client.schema import EventLog
from feature_client.stream import Push
from models.flight_delay.facts import ROOT
from models.flight_delay.features import LOGS
from server.core.tensors import Array

DEFINITIONS = Path(__file__).with_name("features.py")
PROJECT = "flights"
URL_VARIABLE = "REDIS_URL"

Logs = Mapping[str, Mapping[str, Array]]


class FillingFailed(RuntimeError):
    """A command about features did not do what it was asked to; the text is what it said."""


@contextmanager
def store_url() -> Iterator[tuple[str, str]]:
    """Where the store is, and what: that of REDIS_URL where it is set, else a server of one's own for as long as this lasts."""
    if url := os.environ.get(URL_VARIABLE):
        yield url, f"the store of {URL_VARIABLE}"
        return
    with start_embedded() as server:
        yield server.url, "an embedded server"


def write_logs(logs: Logs, folder: Path) -> dict[str, Path]:
    """Each log as a Parquet file. Texts are binary columns."""
    paths = {}
    for log in LOGS:
        columns = {
            name: pa.array(logs[log.name][name], pa.binary() if dtype == "bytes" else None)
            for name, dtype in log.columns.items()
        }
        paths[log.name] = folder / f"{log.name}.parquet"
        pq.write_table(pa.table(columns), paths[log.name])
    return paths


def materialize(url: str, logs: Mapping[str, Path], until_us: int) -> str:
    """Fill every stored view up to an instant, by the command that an operator uses; what it said.

    Raises: FillingFailed.
    """
    views = [ref for ref, view in load_definitions([DEFINITIONS]).views.items() if view.kind == "stored"]
    until = str(np.datetime64(until_us, "us")) + "Z"
    events = [each for name, path in logs.items() for each in ("--events", f"{name}={path}")]
    options = ["--definitions", str(DEFINITIONS), "--store", url, "--project", PROJECT, "--until", until]
    return _podium("features", "materialize", *views, *options, *events)


def audit(samples: Path, logs: Mapping[str, Path], repository: Path) -> str:
    """Compare what was served with what training computes; what the command said. Nothing may be behind or ahead of the log.

    Raises: FillingFailed for any difference.
    """
    events = [each for name, path in logs.items() for each in ("--events", f"{name}={path}")]
    options = ["--samples", str(samples), "--definitions", str(DEFINITIONS), "--repository", str(repository.resolve())]
    options += ["--max-lag", "0"]
    return _podium("features", "audit", *options, *events)


class Happening:
    """Pushes events into the store as time goes on. Ownership: one thread at a time. Close it."""

    def __init__(self, url: str, logs: Logs, from_us: int) -> None:
        """What is known by `from_us` is taken to be in the store already."""
        definitions: Definitions = load_definitions([DEFINITIONS])
        self._store = open_store(url)
        stored = [view for view in definitions.views.values() if view.kind == "stored"]
        self._push = Push(self._store, PROJECT, stored, definitions.fingerprints)
        self._logs = logs
        self._known = {log.name: known_us(log, logs) for log in LOGS}
        self._next = {name: int(np.searchsorted(known, from_us, side="right")) for name, known in self._known.items()}
        for name, position in self._next.items():
            self._push.seed(name, {column: values[:position] for column, values in logs[name].items()})
        self.rows = 0

    def until(self, instant_us: int) -> None:
        """Push everything that is known by then. Raises: StoreError."""
        for name, known in self._known.items():
            first, last = self._next[name], int(np.searchsorted(known, instant_us, side="right"))
            if last > first:
                self.rows += self._push.push(name, {column: values[first:last] for column, values in self._logs[name].items()})
                self._next[name] = last

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()


def known_us(log: EventLog, logs: Logs) -> Array:
    """When each event of a log became known; in order, as `events` writes them."""
    columns = logs[log.name]
    return np.maximum(columns[log.event_time], columns[log.created_time or log.event_time])


def _podium(*arguments: str) -> str:
    command = [sys.executable, "-m", "server", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FillingFailed(f"podium {' '.join(arguments[:2])} left with status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
