"""The engine on a real data plane."""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from weakref import ref

import numpy as np
import pytest

from server.core.clock import monotonic_ns
from server.core.errors import BackendDead, BackendFailed, PodiumError
from server.core.feature_settings import FeatureStoreSettings
from server.core.monitoring_settings import Constraint, ValidationSettings
from server.core.signature import CheckedRows, Signature
from server.core.tensors import Array
from server.core.validation import Constraints, constraints_of
from server.core.versions import VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import Ticket
from server.features.interface import STATUSES_OUTPUT
from server.service.engine import Engine
from server.telemetry.recorder import VersionRecorder
from tests.dataplane.histories import rows_of, rules
from tests.service.featured import BROKEN, CALLERS, REFUSED, STALE, UNAVAILABLE, KeyFeatures


class Replica:
    """As much of a replica as an engine needs: its own backend and recorder."""

    key = VersionKey("m", 1)
    features = None
    constraints: Constraints | None = None

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


class Featured:
    """A replica with features: its model doubles `x`. The first execution waits for `gate`."""

    key = VersionKey("m", 1)
    constraints: Constraints | None = None

    def __init__(self, features: KeyFeatures) -> None:
        self.features = features
        self.recorder = VersionRecorder(self.key)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    @property
    def backend(self) -> "Featured":
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        self.entered.set()
        assert self.gate.wait(10)
        rows: Any = inputs["x"]
        return {"y": rows * 2}


@contextmanager
def featured(
    replica: Featured, *, slots: int = 1, max_batch: int = 64, costs_ns: tuple[int, ...] | None = None, **settings: Any
) -> Iterator[Callable[..., Future[Any]]]:
    """Two engines at most around a replica; gives a way to ask for keys, one row each."""
    engines: list[Engine] = []

    def start(device: str) -> None:
        made = Engine(plane, device, monotonic_ns, lambda replica, error: None, lambda: None, FeatureStoreSettings(**settings))
        engines.append(made)
        made.start()

    plane = PythonPlane(
        monotonic_ns, InflightLimit(100, 2**30), lambda answers, executed_ns: settle(answers), start, lambda device: slots
    )
    plane.open(rules(handle=replica, signature=CALLERS, max_batch=max_batch, costs_ns=costs_ns))

    def ask(*keys: int, **fields: Any) -> Future[Any]:
        reply: Future[Any] = Future()
        ids = np.array(keys, np.int64)[:, None]
        plane.submit(1, Ticket(CheckedRows({"id": ids}, len(keys), (("id", (1,)),)), reply, monotonic_ns(), **fields))
        return reply

    try:
        yield ask
    finally:
        replica.gate.set()
        plane.stop()
        for engine in engines:
            engine.join(10)
            assert engine.problem == ""


def test_a_batch_is_executed_with_its_features() -> None:
    replica = Featured(KeyFeatures())
    with featured(replica, budget_us=5_000) as ask:
        outputs = ask(7, STALE).result(10)
    assert outputs["y"].tolist() == [[14.0], [2.0 * STALE]]
    assert outputs[STATUSES_OUTPUT].tolist() == [[0, 0], [0, 0x83]]
    assert replica.features.budgets_s == [pytest.approx(0.005, abs=0.005)]
    assert 0 < replica.features.budgets_s[0] <= 0.005
    took = replica.recorder.snapshot().features
    assert took is not None
    assert took.count == 1
    assert took.sum > 0


def test_who_has_no_features_fails_alone_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    replica = Featured(KeyFeatures())
    with featured(replica) as ask:
        replica.gate.clear()
        first = ask(1)
        assert replica.entered.wait(10)
        replies = {key: ask(key) for key in (2, UNAVAILABLE, 3, BROKEN, REFUSED, 4)}
        replica.gate.set()
        assert first.result(10)["y"].tolist() == [[2.0]]
        for key in (2, 3, 4):
            assert replies[key].result(10)["y"].tolist() == [[2.0 * key]]
        texts = {
            UNAVAILABLE: "'rate' cannot be computed",
            BROKEN: "finding the features of 'm' failed: KeyError",
            REFUSED: "features are unavailable: 'rate' is TIMEOUT",
        }
        for key, text in texts.items():
            error = replies[key].exception(10)
            assert isinstance(error, PodiumError)
            assert not isinstance(error, BackendDead)
            assert str(error) == text
        assert ask(5).result(10)["y"].tolist() == [[10.0]]
    assert replica.recorder.snapshot().requests == {"ok": 5, "failed": 3, "abandoned": 0, "refused": 0}
    assert {record.getMessage() for record in caplog.records} == {"features could not be joined"}


def test_features_that_cannot_even_be_halved_fail_their_batch_and_not_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("server.service.engine.join", no_memory)
    with featured(Featured(KeyFeatures())) as ask:
        assert str(ask(1, 2).exception(10)) == "finding the features of 'm' failed: MemoryError"
        assert str(ask(1, 2).exception(10)) == "finding the features of 'm' failed: MemoryError"
    assert len(caplog.records) == 2


def test_what_could_not_be_gathered_has_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any) -> Any:
        raise MemoryError

    replica = Featured(KeyFeatures())
    with featured(replica) as ask:
        monkeypatch.setattr("server.dataplane.python.batches.gather", no_memory)
        assert str(ask(1).exception(10)) == "the batch could not be gathered: MemoryError"
    assert replica.features.budgets_s == []
    assert replica.recorder.snapshot().features is None


def positive(name: str, signature: Signature) -> Constraints | None:
    return constraints_of(ValidationSettings(inputs=(Constraint(name=name, at_least=1),)), signature, signature)


def test_what_may_not_be_is_refused_alone_and_nothing_is_executed_for_nobody() -> None:
    replica = Featured(KeyFeatures())
    replica.constraints = positive("id", CALLERS)
    refused = "invalid values for model 'm': 'id' breaks at_least = 1"
    with featured(replica) as ask:
        assert str(ask(0).exception(10)) == refused
        assert not replica.entered.is_set()
        replica.gate.clear()
        first = ask(1)
        assert replica.entered.wait(10)
        replies = {key: ask(key) for key in (2, 0, 3)}
        replica.gate.set()
        assert first.result(10)["y"].tolist() == [[2.0]]
        assert str(replies[0].exception(10)) == refused
        for key in (2, 3):
            assert replies[key].result(10)["y"].tolist() == [[2.0 * key]]
        assert ask(4).result(10)["y"].tolist() == [[8.0]]
    stats = replica.recorder.snapshot()
    assert stats.requests == {"ok": 4, "failed": 2, "abandoned": 0, "refused": 0}
    assert stats.invalid == {("id", "at_least", "reject"): 2}


def test_a_decoupled_request_with_what_may_not_be_gets_no_answer_but_why() -> None:
    class Counted(Streaming):
        recorder = VersionRecorder(Streaming.key)  # type: ignore[assignment]

    replica = Counted()
    replica.constraints = positive("X", rules().signature)
    with streaming(replica) as plane:
        replies = [Stream(99), Stream(99)]
        for tag, reply in enumerate(replies):
            plane.submit(1, Ticket(rows_of(tag, 2), reply, monotonic_ns()))
        assert "'X' breaks at_least = 1 in 2 of 2 rows" in str(replies[0].exception(10))
        assert replies[1].result(10) == {}
        assert [len(reply.got) for reply in replies] == [0, 2]
    assert replica.closed == 1


def test_features_of_the_next_batch_are_found_while_one_executes() -> None:
    asked = threading.Semaphore(0)
    replica = Featured(KeyFeatures(asked.release))
    with featured(replica, slots=2) as ask:
        replica.gate.clear()
        first = ask(1)
        assert replica.entered.wait(10)
        assert asked.acquire(timeout=10)
        second = ask(2)
        assert asked.acquire(timeout=10), "the second batch's features wait for the first batch"
        assert not first.done()
        replica.gate.set()
        assert second.result(10)["y"].tolist() == [[4.0]]
        assert first.result(10)["y"].tolist() == [[2.0]]


def test_a_busy_device_does_not_wait_for_features() -> None:
    """Batch after batch: also once the plan has learnt how long they take."""
    executed: list[tuple[int, int]] = []

    class Slow(Featured):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
            begun_ns = monotonic_ns()
            time.sleep(0.02)
            executed.append((begun_ns, monotonic_ns()))
            return super().run(inputs)

    replica = Slow(KeyFeatures(lambda: time.sleep(0.015)))
    with featured(replica, slots=2, max_batch=1, costs_ns=(20_000_000,)) as ask:
        replies = [ask(key) for key in range(40)]
        assert [reply.result(30)["y"].tolist() for reply in replies] == [[[2.0 * key]] for key in range(40)]
    idle_ns = sorted(after[0] - before[1] for before, after in pairwise(executed[10:]))
    assert idle_ns[len(idle_ns) // 2] < 7_500_000, "executions wait for features that could have been found meanwhile"


def test_how_long_features_took_is_part_of_the_execution() -> None:
    replica = Featured(KeyFeatures(lambda: time.sleep(0.002)))
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), lambda answers, executed_ns: settle(answers))
    plane.open(rules(handle=replica, signature=CALLERS, max_batch=64))
    engine = Engine(plane, "cpu", monotonic_ns, lambda replica, error: None, lambda: None)
    engine.start()
    reply: Future[Any] = Future()
    ticket = Ticket(CheckedRows({"id": np.array([[1]])}, 1, (("id", (1,)),)), reply, monotonic_ns())
    plane.submit(1, ticket)
    reply.result(10)
    execution = ticket.execution
    assert execution is not None
    assert 2_000_000 <= execution.features_ns <= execution.started_ns - execution.taken_ns
    plane.stop()
    engine.join(10)
    stats = replica.recorder.snapshot()
    assert stats.features is not None
    assert stats.features.sum == execution.features_ns <= stats.durations["compute_input"][1]
