"""Traces for tests, and a sink that does as it is told."""

import threading
from collections.abc import Sequence
from typing import Any

from server.telemetry.trace import Trace

MS = 1_000_000


def trace(number: int = 1, **fields: Any) -> Trace:
    """A request that was executed: 1 ms in the queue, 1 ms of gathering, 3 ms of running, 1 ms until its answer."""
    plain: dict[str, Any] = {
        "method": "ModelInfer",
        "model": "m",
        "version": 7,
        "request_id": "a",
        "arrival_ns": 10 * MS,
        "taken_ns": 11 * MS,
        "started_ns": 12 * MS,
        "ran_ns": 15 * MS,
        "ended_ns": 16 * MS,
        "rows": 2,
        "batch_rows": 5,
    }
    return Trace(number=number, **{**plain, **fields})


class Sink:
    """Keeps what it gets; waits while `gate` is closed, fails while `error` is set."""

    def __init__(self) -> None:
        self.batches: list[list[Trace]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.closed = False
        self.abandoned = False

    @property
    def numbers(self) -> list[int]:
        return [trace.number for batch in self.batches for trace in batch]

    def write(self, traces: Sequence[Trace]) -> None:
        self.entered.set()
        self.gate.wait(60)
        if self.abandoned:
            raise OSError("abandoned")
        if self.error is not None:
            raise self.error
        self.batches.append(list(traces))

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.abandoned = True
        self.gate.set()
