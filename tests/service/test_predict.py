"""Every request is counted exactly once whichever way it ends, and the engine says when it can go on no more."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.clock import monotonic_ns
from server.core.errors import (
    BackendDead,
    BackendFailed,
    Cancelled,
    Expired,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    PodiumError,
    ShuttingDown,
    Unsupported,
)
from server.core.requests import Caller, InferRequest, WireTensor
from server.core.settings import ModelSettings, QueueSettings
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import State, VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket
from server.lifecycle.cache import AnswerCache
from server.lifecycle.published import EMPTY, publish
from server.lifecycle.replica import Replica, queue_rules
from server.service.engine import Engine
from server.service.predict import Hit, Predict, deadline_of, priority_of
from server.telemetry.recorder import VersionRecorder

KEY = VersionKey("m", 1)
SIGNATURE = Signature("m", (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 4)
BAD = -1.0
FATAL = -2.0
WEIRD = -3.0


class GatedBackend:
    """Doubles its rows, once its gate is open. Rows of -1 cannot be executed, -2 kills it, -3 breaks its contract."""

    platform = "double"
    device = "cpu"
    signature = SIGNATURE

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.entered.set()
        assert self.gate.wait(30)
        rows: Any = inputs["x"]
        if (rows == BAD).any():
            raise BackendFailed("bad row")
        if (rows == FATAL).any():
            raise BackendDead("device lost")
        if (rows == WEIRD).any():
            raise ZeroDivisionError
        return {"y": rows * 2}

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


class House:
    """Predict, a data plane and an engine around one replica."""

    def __init__(self, **queue: Any) -> None:
        self.backend = GatedBackend()
        self.recorder = VersionRecorder(KEY)
        self.dead: list[tuple[Replica, str]] = []
        self.crashes = 0
        self.plane = PythonPlane(monotonic_ns, InflightLimit(1000, 2**30), lambda answers, _: settle(answers))
        self.replica = self.make_replica(1, **queue)
        self.plane.open(queue_rules(self.replica))
        self.published = publish({KEY: self.replica}, {KEY: State.READY}, {}, EMPTY)
        self.predict = Predict(self.plane, lambda: self.published)
        self.engine = Engine(self.plane, "cpu", monotonic_ns, self._died, self._crashed)
        self.engine.start()

    def make_replica(self, queue_id: int, **queue: Any) -> Replica:
        return Replica(
            queue_id=queue_id,
            key=KEY,
            backend=self.backend,
            signature=SIGNATURE,
            settings=ModelSettings(queue=QueueSettings(**queue)),
            buckets=(1, 2, 4),
            costs_ns=(0, 0, 0),
            device="cpu",
            recorder=self.recorder,
            stamp="",
        )

    def _died(self, replica: Replica, error: BackendDead) -> None:
        self.dead.append((replica, str(error)))

    def _crashed(self) -> None:
        self.crashes += 1

    def admit(self, request: InferRequest) -> tuple[Ticket, Future[Any]]:
        reply: Future[Any] = Future()
        replica, ticket = self.predict.admit(request, reply)
        assert replica is self.replica
        assert isinstance(ticket, Ticket)
        self.plane.wake()
        return ticket, reply

    def occupy(self) -> Future[Any]:
        """A request that executes until the gate is opened."""
        self.backend.gate.clear()
        self.backend.entered.clear()
        _, reply = self.admit(request(1.0))
        assert self.backend.entered.wait(30)
        return reply

    def told(self, reply: Future[Any]) -> PodiumError | None:
        """What the door does with an answer: errors that come without execution are counted."""
        error = reply.exception(30)
        if error is None:
            return None
        assert isinstance(error, PodiumError)
        self.predict.count_refusal(self.replica, error)
        return error

    def counted(self) -> dict[str, int]:
        """Outcomes and reasons that are not zero, once the engine has recorded everything it has taken."""
        self.backend.gate.set()
        self.plane.stop()
        self.engine.join(30)
        stats = self.recorder.snapshot()
        assert stats.requests["refused"] == sum(stats.refused.values())
        counts = {**stats.requests, **stats.refused}
        del counts["refused"]
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
def house() -> Iterator[House]:
    made = House(max_requests=2)
    yield made
    made.counted()


def request(value: float, rows: int = 1, **fields: Any) -> InferRequest:
    data = np.full((rows, 2), value, dtype=np.float32)
    fields = {"id": "", "outputs": (), "arrival_ns": monotonic_ns(), **fields}
    return InferRequest("m", "", inputs=(WireTensor("x", "FP32", (rows, 2), data.tobytes()),), **fields)


def test_the_answered(house: House) -> None:
    _, reply = house.admit(request(3.0, rows=2))
    assert (reply.result(30)["y"] == 6.0).all()
    assert house.counted() == {"ok": 1}


def test_the_invalid_get_no_reply(house: House) -> None:
    reply: Future[Any] = Future()
    with pytest.raises(InvalidRequest, match="batch-size must be <= 4"):
        house.predict.admit(request(1.0, rows=5), reply)
    assert not reply.done()
    assert house.counted() == {"invalid": 1}


def test_strangers_are_nobodys_count(house: House) -> None:
    with pytest.raises(NotFound):
        house.predict.admit(replace(request(1.0), model="other"), Future())
    assert house.counted() == {}


def test_a_full_queue_names_the_request(house: House) -> None:
    house.occupy()
    house.admit(request(1.0))
    house.admit(request(1.0))
    with pytest.raises(Overloaded, match=r"^\[request id: 7\] Exceeds maximum queue size$"):
        house.admit(request(1.0, id="7"))
    with pytest.raises(Overloaded, match=r"^\[request id: <id_unknown>\] Exceeds"):
        house.admit(request(1.0))
    house.backend.gate.set()
    assert house.counted().pop("queue_full") == 2


def test_the_late_at_the_door(house: House) -> None:
    with pytest.raises(Expired):
        house.admit(request(1.0, deadline_ns=monotonic_ns() - 1))
    assert house.counted() == {"expired": 1}


def test_the_expired_in_the_queue(house: House) -> None:
    busy = house.occupy()
    _, reply = house.admit(request(1.0, timeout_us=1000))
    assert isinstance(house.told(reply), Expired)
    assert not busy.done()
    assert house.counted() == {"expired": 1, "ok": 1}


def test_the_expired_whose_caller_leaves_at_that_instant(house: House) -> None:
    house.occupy()
    ticket, reply = house.admit(request(1.0, timeout_us=1000))
    reply.exception(30)  # expired; but the door sees the caller leave first, and never reads this
    house.predict.cancel(house.replica, ticket)
    assert house.counted() == {"expired": 1, "ok": 1}


def test_the_cancelled_while_they_wait(house: House) -> None:
    house.occupy()
    ticket, reply = house.admit(request(1.0))
    house.predict.cancel(house.replica, ticket)
    house.predict.cancel(house.replica, ticket)
    house.backend.gate.set()
    assert house.counted() == {"cancelled": 1, "ok": 1}
    assert not reply.done()


def test_the_cancelled_while_they_run(house: House) -> None:
    house.backend.gate.clear()
    ticket, reply = house.admit(request(1.0))
    assert house.backend.entered.wait(30)
    house.predict.cancel(house.replica, ticket)
    house.backend.gate.set()
    assert house.counted() == {"abandoned": 1}
    assert not reply.done()


def test_the_answered_whose_caller_leaves_at_that_instant(house: House) -> None:
    ticket, reply = house.admit(request(1.0))
    reply.result(30)
    house.predict.cancel(house.replica, ticket)
    assert house.counted() == {"ok": 1}


@pytest.mark.parametrize(("value", "text"), [(BAD, "bad row"), (WEIRD, "executing 'm' failed: ZeroDivisionError")])
def test_the_failed_fail_alone(house: House, value: float, text: str) -> None:
    busy = house.occupy()
    _, good = house.admit(request(5.0))
    _, bad = house.admit(request(value))
    house.backend.gate.set()
    assert str(house.told(bad)) == text
    assert (good.result(30)["y"] == 10.0).all()
    busy.result(30)
    assert house.counted() == {"ok": 2, "failed": 1}


def test_a_dead_backend_is_reported_and_everybody_told(house: House) -> None:
    house.occupy()
    replies = [house.admit(request(value))[1] for value in (5.0, FATAL)]
    house.backend.gate.set()
    assert [str(house.told(reply)) for reply in replies] == ["device lost"] * 2
    assert house.counted() == {"ok": 1, "failed": 2}
    assert house.dead == [(house.replica, "device lost")]
    assert (house.engine.problem, house.crashes) == ("", 0)


def test_those_that_wait_when_it_stops(house: House) -> None:
    house.occupy()
    _, reply = house.admit(request(1.0))
    house.plane.stop()
    assert isinstance(house.told(reply), ShuttingDown)
    with pytest.raises(ShuttingDown):
        house.admit(request(1.0))
    assert house.counted() == {"not_ready": 2, "ok": 1}


def test_a_version_that_closes_in_between_is_chosen_again(house: House) -> None:
    old, new = house.replica, house.make_replica(2)
    house.plane.open(queue_rules(new))
    house.plane.close(old.queue_id)
    tables = [house.published, publish({KEY: new}, {KEY: State.READY}, {}, EMPTY)]
    looks: Iterator[Any] = iter(tables)
    predict = Predict(house.plane, lambda: next(looks))
    reply: Future[Any] = Future()
    chosen, _ = predict.admit(request(2.0), reply)
    house.plane.wake()
    assert chosen is new
    assert (reply.result(30)["y"] == 4.0).all()
    assert house.counted() == {"ok": 1}


def test_choosing_has_an_end(house: House) -> None:
    house.plane.close(house.replica.queue_id)
    with pytest.raises(NotReady, match="'m' is not at ready state"):
        house.admit(request(1.0))
    assert house.counted() == {"not_ready": 1}


def test_failed_executions_are_not_refusals(house: House) -> None:
    for error in (BackendFailed("x"), BackendDead("x"), NotFound("x")):
        house.predict.count_refusal(house.replica, error)
    house.predict.count_refusal(house.replica, Cancelled("x"))
    assert house.counted() == {"cancelled": 1}


def test_an_engine_that_crashes_says_so(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def broken(**arguments: Any) -> None:
        raise ValueError("cannot count")

    house.recorder.batch = broken  # type: ignore[method-assign]
    _, reply = house.admit(request(1.0))
    assert (reply.result(30)["y"] == 2.0).all()
    house.engine.join(30)
    assert house.engine.problem == "the engine of device 'cpu' has crashed: ValueError: cannot count"
    assert house.crashes == 1
    assert [record.getMessage() for record in caplog.records] == ["the engine has crashed"]


SOME = st.integers(0, 2**63 - 1)


@given(timeout=SOME, default=st.integers(0, 2**40), deadline=st.none() | st.integers(0, 2**80), allowed=st.booleans())
def test_the_earliest_deadline_counts_and_always_fits_64_bits(
    timeout: int, default: int, deadline: int | None, allowed: bool
) -> None:
    queue = QueueSettings(default_timeout_us=default, allow_timeout_override=allowed)
    asked = replace(request(1.0), arrival_ns=1000, timeout_us=timeout, deadline_ns=deadline)
    got = deadline_of(asked, queue)
    in_force = timeout if timeout and allowed else default
    candidates = [NO_DEADLINE_NS]
    candidates += [1000 + in_force * 1000] if in_force else []
    candidates += [] if deadline is None else [deadline]
    assert got == min(candidates)


@pytest.mark.parametrize(("asked", "level"), [(0, 2), (1, 1), (3, 3), (4, 2), (2**63, 2)])
def test_priorities_the_model_does_not_have_mean_its_default(asked: int, level: int) -> None:
    queue = QueueSettings(priority_levels=3, default_priority=2)
    assert priority_of(replace(request(1.0), priority=asked), queue) == level


def test_without_levels_there_is_one() -> None:
    assert priority_of(replace(request(1.0), priority=5), QueueSettings()) == 0


def test_a_ticket_knows_when_it_was_executed_before_its_answer_leaves(house: House) -> None:
    house.occupy()
    ticket, reply = house.admit(request(1.0, rows=2))
    opened_ns = monotonic_ns()
    house.backend.gate.set()
    reply.result(30)
    execution = ticket.execution
    assert execution is not None
    assert ticket.arrival_ns < opened_ns <= execution.taken_ns <= execution.started_ns <= execution.ran_ns <= monotonic_ns()
    assert execution.rows == 2


class Remembering(House):
    """A house whose replica has a response cache, and whose uses are noted."""

    def __init__(self, max_bytes: int = 2**20) -> None:
        super().__init__()
        self.uses: list[tuple[VersionKey, str]] = []
        self.replica = self.remembering(self.replica, max_bytes)
        self.plane.open(replace(queue_rules(self.replica), queue_id=2))
        self.replica = replace(self.replica, queue_id=2)
        self.published = publish({KEY: self.replica}, {KEY: State.READY}, {}, EMPTY)
        self.predict = Predict(self.plane, lambda: self.published, count_use=lambda key, who: self.uses.append((key, who)))

    @staticmethod
    def remembering(replica: Replica, max_bytes: int) -> Replica:
        return replace(replica, cache=AnswerCache(max_bytes))

    def ask(self, asked: InferRequest) -> tuple[Ticket | Hit, Any]:
        """What the door does: the outputs, remembered if they may be."""
        reply: Future[Any] = Future()
        replica, ticket = self.predict.admit(asked, reply)
        if isinstance(ticket, Hit):
            return ticket, ticket.outputs
        self.plane.wake()
        outputs = reply.result(30)
        self.predict.remember(replica, asked, ticket, outputs)
        return ticket, outputs

    def stats(self) -> tuple[int, int]:
        durations = self.recorder.snapshot().durations
        return durations["cache_hit"][0], durations["cache_miss"][0]


@pytest.fixture
def remembering() -> Iterator[Remembering]:
    made = Remembering()
    yield made
    made.counted()


def test_what_was_answered_is_answered_again_without_a_ticket(remembering: Remembering) -> None:
    first, outputs = remembering.ask(request(3.0, id="1"))
    again, remembered = remembering.ask(request(3.0, id="2", timeout_us=10**9, priority=1))
    assert isinstance(first, Ticket)
    assert isinstance(again, Hit)
    assert remembered["y"].tobytes() == outputs["y"].tobytes()
    assert remembering.stats() == (1, 1)
    remembering.predict.cancel(remembering.replica, again)
    assert remembering.counted() == {"ok": 2}
    assert remembering.recorder.snapshot().execution_count == 1


def test_other_rows_and_other_outputs_are_another_question(remembering: Remembering) -> None:
    for asked in (request(3.0), request(4.0), request(3.0, rows=2), request(3.0, outputs=("y",))):
        assert isinstance(remembering.ask(asked)[0], Ticket)
        assert isinstance(remembering.ask(asked)[0], Hit)


def test_what_may_change_the_answer_is_not_remembered(remembering: Remembering) -> None:
    known = request(3.0)
    remembering.ask(known)
    shared = WireTensor("x", "FP32", (1, 2), memoryview(bytearray(known.inputs[0].data)))
    borrowed = WireTensor("x", "FP32", (1, 2), np.full(4, 3.0, np.float32)[:2])
    owned = WireTensor("x", "FP32", (1, 2), np.full(2, 3.0, np.float32))
    for _ in range(2):
        for asked in (
            replace(known, parameters={"k": 1}),
            replace(known, inputs=(shared,)),
            replace(known, inputs=(borrowed,)),
        ):
            assert isinstance(remembering.ask(asked)[0], Ticket)
    assert isinstance(remembering.ask(replace(known, inputs=(owned,)))[0], Hit)
    assert remembering.stats() == (1, 1), "what is not looked for is no miss"


def test_what_is_known_too_late_is_expired(remembering: Remembering) -> None:
    remembering.ask(request(3.0))
    with pytest.raises(Expired, match="Request timeout expired"):
        remembering.ask(request(3.0, deadline_ns=monotonic_ns() - 1))
    assert remembering.stats() == (0, 1)
    assert remembering.counted() == {"ok": 1, "expired": 1}


def test_errors_are_not_remembered(remembering: Remembering) -> None:
    for _ in range(2):
        with pytest.raises(BackendFailed):
            remembering.ask(request(BAD))
    assert remembering.replica.cache is not None
    assert len(remembering.replica.cache) == 0
    assert remembering.counted() == {"failed": 2}


def test_a_version_that_left_service_answers_nothing_it_remembers(remembering: Remembering) -> None:
    remembering.ask(request(3.0))
    remembering.published = publish({}, {KEY: State.UNLOADING}, {}, EMPTY)
    with pytest.raises(NotFound):
        remembering.ask(request(3.0))
    remembering.published = publish({KEY: remembering.remembering(remembering.replica, 1)}, {KEY: State.READY}, {}, EMPTY)
    assert isinstance(remembering.ask(request(3.0))[0], Ticket), "a reload begins with nothing"


def test_an_answer_that_is_too_large_is_still_an_answer() -> None:
    house = Remembering(max_bytes=10)
    for _ in range(2):
        assert (house.ask(request(3.0))[1]["y"] == 6.0).all()
    assert house.stats() == (0, 2)
    house.counted()


def test_whoever_reaches_a_version_is_counted_as_its_user(remembering: Remembering) -> None:
    named = request(3.0, caller=Caller("checkout"))
    remembering.ask(named)
    remembering.ask(named)
    with pytest.raises(InvalidRequest):
        remembering.ask(replace(request(1.0, rows=5), caller=Caller("careless")))
    with pytest.raises(NotFound):
        remembering.ask(replace(named, model="other"))
    remembering.ask(request(4.0))
    assert remembering.uses == [(KEY, "checkout"), (KEY, "checkout"), (KEY, "careless"), (KEY, "")]


def test_who_would_answer_is_told_without_a_request(house: House) -> None:
    assert house.predict.answering("m", "", streamed=False) is house.replica
    with pytest.raises(NotFound, match=r"^Request for unknown model: 'foo' is not found$"):
        house.predict.answering("foo", "", streamed=False)
    many = replace(house.replica, settings=ModelSettings(decoupled=True))
    house.published = publish({KEY: many}, {KEY: State.READY}, {}, EMPTY)
    assert house.predict.answering("m", "1", streamed=True) is many
    with pytest.raises(Unsupported, match=r"^ModelInfer RPC doesn't support models with decoupled transaction policy$"):
        house.predict.answering("m", "1", streamed=False)


def test_features_have_their_say_before_a_request_may_join_a_batch(house: House) -> None:
    class Strict:
        signature = SIGNATURE
        names: tuple[str, ...] = ("a",)
        given: frozenset[str] = frozenset()

        def check(self, given: frozenset[str]) -> None:
            self.given = given
            raise InvalidRequest("neither the key 'id' nor all of its features")

        def join(self, inputs: Mapping[str, Array], rows: int, budget_s: float) -> Any:
            raise AssertionError("it was not admitted")

    features = Strict()
    house.published = publish({KEY: replace(house.replica, features=features)}, {KEY: State.READY}, {}, EMPTY)
    with pytest.raises(InvalidRequest, match=r"^\[request id: 7\] neither the key 'id' nor all of its features$"):
        house.admit(request(1.0, id="7"))
    with pytest.raises(InvalidRequest, match=r"^\[request id: <id_unknown>\] neither"):
        house.admit(request(1.0))
    assert features.given == {"x"}
    assert house.counted() == {"invalid": 2}
