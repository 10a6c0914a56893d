"""The engine on a real data plane."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest

from server.core.clock import monotonic_ns
from server.core.errors import BackendDead, BackendFailed
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import Ticket
from server.service.engine import Engine
from tests.dataplane.histories import rows_of, rules


class Replica:
    """As much of a replica as an engine needs: its own backend and recorder."""

    key = VersionKey("m", 1)
    features = None

    @property
    def backend(self) -> "Replica":
        return self

    recorder = backend

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        return {"Y": inputs["X"]}

    def batch(self, **counts: Any) -> None:
        """Counted nowhere."""

    def answers(self, durations_ns: Any, end: str, end_ns: int) -> None:
        """Counted nowhere."""


class Stream(Future[Any]):
    """A reply that takes any number of answers; its caller leaves after `patience` of them."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.got: list[Any] = []
        self.leave: Callable[[], Any] = lambda: None

    def reserve(self, outputs: Any) -> float:
        return 0.0

    def add(self, outputs: Any) -> None:
        self.got.append(outputs)
        if len(self.got) == self.patience:
            self.leave()


class Streaming(Replica):
    """Answers with each row by itself, then fails where it was told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = 0
        self.counted: list[tuple[int, str]] = []

    def answers(self, durations_ns: Any, end: str, end_ns: int) -> None:
        assert min(*durations_ns, end_ns) >= 0
        self.counted.append((len(durations_ns) // 2, end))

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        try:
            for row in inputs["X"]:
                yield {"Y": row}
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


@contextmanager
def streaming(replica: Streaming) -> Iterator[PythonPlane]:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), lambda answers, executed_ns: settle(answers))
    plane.open(rules(handle=replica, decoupled=True, padding=False))
    engine = Engine(plane, "cpu", monotonic_ns, lambda replica, error: None, lambda: None)
    engine.start()
    try:
        yield plane
    finally:
        plane.stop()
        engine.join(10)


def test_a_decoupled_request_runs_alone_and_gets_every_answer_before_its_end() -> None:
    replica = Streaming()
    with streaming(replica) as plane:
        replies = [Stream(99) for _ in range(3)]
        tickets = [Ticket(rows_of(tag, 1 + tag), reply, monotonic_ns()) for tag, reply in enumerate(replies)]
        for ticket in tickets:
            plane.submit(1, ticket)
        for tag, reply in enumerate(replies):
            assert reply.result(10) == {}
            assert [int(row["Y"][1]) for row in reply.got] == [tag] * (1 + tag)
        assert all(ticket.execution is not None and ticket.execution.rows == ticket.rows for ticket in tickets)
    assert replica.closed == 3
    assert replica.counted == [(1, "empty_response"), (2, "empty_response"), (3, "empty_response")]


def test_what_fails_in_a_stream_fails_that_request_after_its_answers() -> None:
    for error, text in ((BackendFailed("no more"), "no more"), (KeyError("bug"), "executing 'm' failed: KeyError")):
        replica = Streaming(error)
        with streaming(replica) as plane:
            reply = Stream(99)
            plane.submit(1, Ticket(rows_of(1, 2), reply, monotonic_ns()))
            assert str(reply.exception(10)) == text
            assert len(reply.got) == 2
        assert replica.counted == [(2, "fail")]


def test_a_caller_without_room_slows_its_answers_down_then_fails_them() -> None:
    """And the model stops there: nothing is made that nobody could be given."""

    class Narrow(Stream):
        def reserve(self, outputs: Any) -> float:
            return 0.45 * (len(self.got) + 1)

    replica = Streaming()
    with streaming(replica) as plane:
        reply = Narrow(99)
        plane.submit(1, Ticket(rows_of(1, 8), reply, monotonic_ns()))
        assert "are read too slowly" in str(reply.exception(10))
        assert len(reply.got) == 2
    assert (replica.closed, replica.counted) == (1, [(2, "fail")])


def test_a_stream_ends_when_its_caller_leaves() -> None:
    replica = Streaming()
    with streaming(replica) as plane:
        reply = Stream(2)
        ticket = Ticket(rows_of(1, 8), reply, monotonic_ns())
        reply.leave = lambda: plane.cancel(ticket)
        plane.submit(1, ticket)
        while not replica.closed:
            time.sleep(0.001)
        assert len(reply.got) == 2
        assert not reply.done()
    assert replica.counted == [(2, "cancel")]


@pytest.mark.parametrize("error", [BackendFailed("no"), BackendDead("gone")])
def test_a_failed_stream_keeps_nothing_of_its_batch(error: BackendFailed) -> None:
    gc.disable()  # what stays until a collection would stay for long: a server rarely has one
    try:
        with streaming(Streaming(error)) as plane:
            reply = Stream(100)
            rows = rows_of(1, 2)
            kept = ref(rows.arrays["X"])
            plane.submit(1, Ticket(rows, reply, monotonic_ns()))
            del rows
            assert reply.exception(10) is error
            reply.got.clear()  # views of it
            until = time.monotonic() + 10
            while kept() is not None and time.monotonic() < until:
                time.sleep(0.001)
            assert kept() is None
    finally:
        gc.enable()


def test_an_idle_engine_keeps_nothing_of_its_last_batch() -> None:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), lambda answers, executed_ns: settle(answers))
    replica = Replica()
    kept = ref(replica)
    plane.open(rules(handle=replica))
    del replica
    engine = Engine(plane, "cpu", monotonic_ns, lambda replica, error: None, lambda: None)
    engine.start()
    reply: Future[Any] = Future()
    plane.submit(1, Ticket(rows_of(1, 3), reply, monotonic_ns()))
    reply.result(10)
    plane.close(1)
    assert plane.wait_idle(1, 10)
    while "cpu" not in plane._sleeping:
        assert engine.is_alive()
    assert kept() is None
    plane.stop()
    engine.join(10)
