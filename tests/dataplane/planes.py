"""What tests of every kind of data plane use: how one is made, an engine whose outcomes they choose, tickets of one queue."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import import_module
from typing import Any

from server.core.clock import monotonic_ns
from server.dataplane.interface import Batch, Part
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import Answer, settle
from server.dataplane.ticket import Ticket
from tests.dataplane.histories import rows_of

MS = 1_000_000
_KINDS = {
    "python": ("server.dataplane.python.plane", "PythonPlane"),
    "native": ("server.dataplane.native.plane", "NativePlane"),
}
New = Callable[..., Any]
"""Makes a plane within `max_requests` and `max_bytes`, with whatever else all kinds take: `on_device`, `slots`, `density`."""


def deliver(answers: Sequence[Answer], executed_ns: int | None) -> None:
    settle(answers)


def new_of(kind: str) -> New:
    """How a plane of this kind is made. Imported only now: the native one is not built everywhere."""
    module, name = _KINDS[kind]
    plane = getattr(import_module(module), name)

    def new(*further: Any, max_requests: int = 10_000, max_bytes: int = 2**30, **settings: Any) -> Any:
        return plane(monotonic_ns, InflightLimit(max_requests, max_bytes), deliver, *further, **settings)

    return new


class Runner(threading.Thread):
    """An engine whose results and failures a test chooses per batch."""

    def __init__(self, plane: Any, outcome: Callable[[Batch], list[Part]], device: str = "cpu") -> None:
        super().__init__(daemon=True)
        self.plane, self.outcome, self.device = plane, outcome, device
        self.batches: list[Batch] = []
        self.start()

    def run(self) -> None:
        while (batch := self.plane.take(self.device)) is not None:
            self.batches.append(batch)
            self.plane.enter_device(batch)
            parts = self.outcome(batch)
            self.plane.leave_device(batch)
            self.plane.finish(batch, parts, ran_rows=batch.rows, ran_ns=1000)


def echo(batch: Batch) -> list[Part]:
    return [Part(0, len(batch.spans) - 1, {"Y": batch.inputs["X"] * 10})]


def held_up() -> tuple[threading.Event, threading.Event, Callable[[Batch], list[Part]]]:
    """An outcome that says when its first batch runs, and lets none end before it is released."""
    busy, release = threading.Event(), threading.Event()

    def slow(batch: Batch) -> list[Part]:
        busy.set()
        release.wait(10)
        return echo(batch)

    return busy, release, slow


def submit(plane: Any, tag: int, rows: int = 1, queue_id: int = 1, **kwargs: Any) -> tuple[Ticket, Future[Any]]:
    reply: Future[Any] = Future()
    ticket = Ticket(rows_of(tag, rows), reply, monotonic_ns(), **kwargs)
    plane.submit(queue_id, ticket)
    return ticket, reply
