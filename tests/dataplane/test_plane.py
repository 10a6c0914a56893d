"""Every kind of data plane keeps the law: an admitted ticket ends exactly once, and rows of i come back to i."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed, Expired, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import Batch, Part, QueueClosed
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import Answer, settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import Ticket, TicketState
from tests.dataplane.histories import CountingReply, rows_of, rules

MS = 1_000_000


def deliver(answers: Sequence[Answer], executed_ns: int | None) -> None:
    settle(answers)


def new_plane(max_requests: int = 10_000) -> PythonPlane:
    return PythonPlane(monotonic_ns, InflightLimit(max_requests, 2**30), deliver)


class Runner(threading.Thread):
    """An engine whose results and failures a test chooses per batch."""

    def __init__(self, plane: PythonPlane, outcome: Callable[[Batch], list[Part]]) -> None:
        super().__init__(daemon=True)
        self.plane, self.outcome = plane, outcome
        self.batches: list[Batch] = []
        self.start()

    def run(self) -> None:
        while (batch := self.plane.take("cpu")) is not None:
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


@pytest.fixture
def plane() -> Iterator[PythonPlane]:
    made = new_plane()
    yield made
    made.stop()


def submit(plane: PythonPlane, tag: int, rows: int = 1, queue_id: int = 1, **kwargs: Any) -> tuple[Ticket, Future[Any]]:
    reply: Future[Any] = Future()
    ticket = Ticket(rows_of(tag, rows), reply, monotonic_ns(), **kwargs)
    plane.submit(queue_id, ticket)
    return ticket, reply


def test_rows_of_i_come_back_to_i(plane: PythonPlane) -> None:
    plane.open(rules())
    gate = threading.Event()

    def gated(batch: Batch) -> list[Part]:
        gate.wait(10)
        return echo(batch)

    runner = Runner(plane, gated)
    replies = [submit(plane, tag, rows=1 + tag % 3)[1] for tag in range(40)]
    gate.set()
    for tag, reply in enumerate(replies):
        assert (reply.result(10)["Y"] == rows_of(tag, 1 + tag % 3).arrays["X"] * 10).all()
    assert max(batch.rows for batch in runner.batches) > 1
    assert all(batch.padded_rows in batch.rules.buckets for batch in runner.batches)


def test_the_expired_leave_while_the_engine_is_busy_and_never_reach_it(plane: PythonPlane) -> None:
    plane.open(rules())
    busy, release, slow = held_up()
    runner = Runner(plane, slow)
    _, first = submit(plane, 1)
    assert busy.wait(10)
    _, doomed = submit(plane, 2, deadline_ns=monotonic_ns() + 20 * MS)
    error = doomed.exception(10)  # answered although the first batch still runs
    assert isinstance(error, Expired)
    assert str(error) == "Request timeout expired"
    assert not first.done()
    release.set()
    first.result(10)
    assert [batch.arrival_ns.size for batch in runner.batches] == [1]


def test_why_a_ticket_was_refused_is_not_the_error_that_is_raised(plane: PythonPlane) -> None:
    """A raised one leads to its caller's request, which must not stay as long as the ticket does."""
    plane.open(rules())
    ticket, reply = submit(plane, 1, deadline_ns=monotonic_ns() + 20 * MS)
    raised = reply.exception(10)
    assert isinstance(raised, Expired)
    assert ticket.refusal is not raised
    assert (type(ticket.refusal), str(ticket.refusal)) == (Expired, str(raised))


def test_one_stall_of_the_door_does_not_refuse_tight_deadlines_for_half_a_minute() -> None:
    now_ns = [1_000 * MS]
    plane = PythonPlane(lambda: now_ns[0], InflightLimit(10, 2**30), deliver)
    plane.open(rules())
    plane.observe_delivery(MS)
    plane.observe_delivery(5_000 * MS)  # everything stood still once
    with pytest.raises(Expired, match="predicted to finish"):
        submit_at(plane, now_ns[0], 50 * MS)
    now_ns[0] += 1_000 * MS
    probe = submit_at(plane, now_ns[0], 50 * MS)
    batch = plane.take("cpu")
    assert batch is not None
    assert list(batch.tickets) == [probe]
    plane.finish(batch, echo(batch), ran_rows=1, ran_ns=MS)
    plane.observe_delivery(MS)
    submit_at(plane, now_ns[0], 50 * MS)
    plane.stop()


def submit_at(plane: PythonPlane, now_ns: int, patience_ns: int) -> Ticket:
    ticket = Ticket(rows_of(1, 1), Future(), now_ns, now_ns + patience_ns)
    plane.submit(1, ticket)
    return ticket


def test_the_cancelled_leave_at_once_and_their_answer_is_nobodys(plane: PythonPlane) -> None:
    plane.open(rules())
    busy, release, slow = held_up()
    Runner(plane, slow)
    running, running_reply = submit(plane, 1)
    assert busy.wait(10)
    waiting, waiting_reply = submit(plane, 2)
    assert plane.cancel(waiting) is TicketState.WAITING
    assert plane.cancel(waiting) is TicketState.ENDED
    assert plane.cancel(running) is TicketState.TAKEN
    snapshot = plane.snapshot(1)
    assert snapshot is not None
    assert (snapshot.waiting_requests, snapshot.waiting_rows, snapshot.open_requests) == (0, 0, 0)
    assert not plane.wait_idle(1, 0.01), "the backend is still in use although nobody waits for it"
    plane.close(1)
    release.set()
    assert plane.wait_idle(1, 10)
    assert not running_reply.done()
    assert not waiting_reply.done()


def test_a_quiet_submit_waits_for_wake(plane: PythonPlane) -> None:
    plane.open(rules())
    Runner(plane, echo)
    while "cpu" not in plane._sleeping:
        time.sleep(0.001)
    reply: Future[Any] = Future()
    plane.submit(1, Ticket(rows_of(1, 1), reply, monotonic_ns()), wake=False)
    assert "cpu" in plane._sleeping
    plane.wake()
    assert (reply.result(10)["Y"] == rows_of(1, 1).arrays["X"] * 10).all()


def test_a_device_is_announced_once_for_every_thread_it_can_use() -> None:
    seen: list[str] = []
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 100), deliver, seen.append)
    plane.open(rules(1))
    plane.open(rules(2, device="cuda:0"))
    plane.open(rules(3))
    plane.open(rules(4, instances=2))
    plane.stop()
    assert seen == ["cpu", "cuda:0", "cpu"]


def test_with_two_slots_the_next_batch_is_gathered_while_one_runs() -> None:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), deliver, slots=lambda device: 2)
    plane.open(rules(costs_ns=(MS,) * 4))
    try:
        first, second = submit(plane, 1, 8)[1], submit(plane, 2, 8)[1]
        running = plane.take("cpu")
        staged = plane.take("cpu")
        assert running is not None
        assert staged is not None
        assert (running.staged, staged.staged) == (False, True)
        entered = threading.Thread(target=plane.enter_device, args=(staged,), daemon=True)
        entered.start()
        before_ns = staged.execution.taken_ns
        plane.leave_device(running)
        entered.join(10)  # it runs before the answers of the first are dealt out
        assert not entered.is_alive()
        assert staged.execution.taken_ns > before_ns  # its requests waited until then
        for batch, reply in ((running, first), (staged, second)):
            plane.finish(batch, echo(batch), ran_rows=8, ran_ns=MS)
            assert reply.result(10)["Y"].shape == (8, 2)
    finally:
        plane.stop()


def test_the_staged_expire_while_what_runs_before_them_overruns() -> None:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), deliver, slots=lambda device: 2)
    plane.open(rules(costs_ns=(MS,) * 4, early_drop=False))
    try:
        submit(plane, 1, 8)
        running = plane.take("cpu")
        patient, doomed = submit(plane, 2, 4)[1], submit(plane, 3, 4, deadline_ns=monotonic_ns() + 200 * MS)[1]
        staged = plane.take("cpu")
        assert running is not None
        assert staged is not None
        assert len(staged.tickets) == 2
        assert isinstance(doomed.exception(10), Expired)  # although the first batch still runs
        assert not patient.done()
        plane.finish(running, echo(running), ran_rows=8, ran_ns=MS)
        plane.enter_device(staged)
        answered = plane.finish(staged, echo(staged), ran_rows=8, ran_ns=MS)
        assert sorted(answered.tolist()) == [False, True]
        assert (patient.result(10)["Y"] == rows_of(2, 4).arrays["X"] * 10).all()
        plane.close(1)
        assert plane.wait_idle(1, 10)
    finally:
        plane.stop()


def test_a_staged_batch_that_begins_lets_the_next_one_be_staged() -> None:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), deliver, slots=lambda device: 2)
    plane.open(rules(costs_ns=(MS,) * 4))
    try:
        for tag in (1, 2):
            submit(plane, tag, 8)
        running, staged = plane.take("cpu"), plane.take("cpu")
        assert running is not None
        assert staged is not None
        plane.leave_device(running)
        submit(plane, 3, 8)
        taken: list[Batch | None] = []
        # one thread more than the device needs now: a version with several instances has left
        third = threading.Thread(target=lambda: taken.append(plane.take("cpu")), daemon=True)
        third.start()
        while "cpu" not in plane._sleeping:
            assert third.is_alive()
        plane.enter_device(staged)
        third.join(10)
        assert [batch is not None and batch.staged for batch in taken] == [True]
    finally:
        plane.stop()


def test_finish_says_whose_answer_was_still_wanted(plane: PythonPlane) -> None:
    plane.open(rules())
    kept, _ = submit(plane, 1)
    gone, _ = submit(plane, 2)
    batch = plane.take("cpu")
    assert batch is not None
    plane.cancel(gone)
    assert plane.finish(batch, echo(batch), ran_rows=2, ran_ns=5).tolist() == [True, False]
    assert kept.state is TicketState.ENDED


def test_parts_that_do_not_cover_the_batch_are_a_bug(plane: PythonPlane) -> None:
    plane.open(rules())
    _, reply = submit(plane, 1)
    batch = plane.take("cpu")
    assert batch is not None
    with pytest.raises(ValueError, match="cover the batch"):
        plane.finish(batch, [], ran_rows=1, ran_ns=1)
    with pytest.raises(ValueError, match="cover the batch"):
        plane.finish(batch, [Part(1, 1, {})], ran_rows=1, ran_ns=1)
    plane.finish(batch, echo(batch), ran_rows=1, ran_ns=1)
    assert reply.done()


def test_a_closed_queue_says_choose_again_and_serves_what_it_admitted(plane: PythonPlane) -> None:
    plane.open(rules(1))
    _, admitted = submit(plane, 1)
    plane.close(1)
    plane.close(99)
    with pytest.raises(QueueClosed):
        submit(plane, 2)
    with pytest.raises(QueueClosed):
        submit(plane, 2, queue_id=99)
    assert not plane.wait_idle(1, 0.01)
    Runner(plane, echo)
    admitted.result(10)
    assert plane.wait_idle(1, 10)
    assert plane.wait_idle(1, 0)
    assert plane.snapshot(1) is None
    plane.open(rules(1))
    with pytest.raises(ValueError, match="open already"):
        plane.open(rules(1))


def test_stop_answers_everything_that_waits(plane: PythonPlane) -> None:
    plane.open(rules())
    replies = [submit(plane, tag)[1] for tag in range(3)]
    plane.stop()
    assert [type(reply.exception(1)) for reply in replies] == [ShuttingDown] * 3
    with pytest.raises(ShuttingDown):
        submit(plane, 4)
    assert plane.take("cpu") is None


def test_refusals_leave_nothing_behind() -> None:
    plane = new_plane(max_requests=2)
    try:
        plane.open(rules(max_requests=1, costs_ns=(10**12,) * 4))
        with pytest.raises(Expired, match="predicted"):
            submit(plane, 1, deadline_ns=monotonic_ns() + MS)
        submit(plane, 1)
        with pytest.raises(Overloaded):
            submit(plane, 2)
        snapshot = plane.snapshot(1)
        assert snapshot is not None
        assert snapshot.open_requests == 1
    finally:
        plane.stop()


def test_a_batch_that_cannot_be_gathered_says_so_and_can_be_ended(plane: PythonPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.open(rules())

    def no_memory(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("server.dataplane.python.batches.gather", no_memory)
    _, reply = submit(plane, 1, rows=3)
    batch = plane.take("cpu")
    assert batch is not None
    assert isinstance(batch.fault, BackendFailed)
    assert (batch.rows, batch.padded_rows) == (3, 3)
    plane.finish(batch, [Part(0, 1, None, batch.fault)], ran_rows=0, ran_ns=0)
    assert reply.exception(1) is batch.fault
    plane.close(1)
    assert plane.wait_idle(1, 10)


def test_far_deadlines_do_not_pile_up(plane: PythonPlane) -> None:
    plane.open(rules())
    for tag in range(3000):
        one, _ = submit(plane, tag, deadline_ns=monotonic_ns() + 3600 * 1000 * MS - tag)
        plane.cancel(one)
    for tag in range(3):
        submit(plane, tag, deadline_ns=monotonic_ns() + 7200 * 1000 * MS)
    assert len(plane._deadlines) < 1100


def test_deadlines_that_each_come_before_the_last_do_not_pile_up(plane: PythonPlane) -> None:
    plane.open(rules())
    now_ns = monotonic_ns()
    for tag in range(3000):
        one, _ = submit(plane, tag, deadline_ns=now_ns + (7200 - tag) * 1000 * MS)
        plane.cancel(one)
    assert len(plane._deadlines) < 1100


def test_an_answer_is_not_kept_until_its_deadline(plane: PythonPlane) -> None:
    plane.open(rules())
    Runner(plane, echo)
    ticket, reply = submit(plane, 1, deadline_ns=monotonic_ns() + 3600 * 1000 * MS)
    reply.result(10)
    gone, kept = submit(plane, 2, deadline_ns=monotonic_ns() + 3600 * 1000 * MS)
    kept.result(10)
    answer, reply_left = ref(reply), ref(kept)
    del reply, kept
    assert plane._deadlines[0][2] is ticket
    assert plane._deadlines[1][2] is gone
    # the engine holds its last batch until the next one, so both are looked for after a third
    submit(plane, 3)[1].result(10)
    assert (answer(), reply_left()) == (None, None)


def test_a_queue_delay_ends_by_itself(plane: PythonPlane) -> None:
    plane.open(rules(queue_delay_ns=5 * MS))
    runner = Runner(plane, echo)
    submit(plane, 1)[1].result(10)
    assert runner.batches[0].released == "delay"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "cancel", "pause"]),
        st.integers(1, 8),
        st.sampled_from([None, 0, 1, 5, 50]),
        st.integers(0, 2),
        st.sampled_from([1, 1, 2]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ACTIONS,
    st.lists(st.sampled_from(["ok", "fail", "half"]), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 2),
    st.integers(1, 2),
)
def test_every_admitted_ticket_ends_exactly_once(
    actions: list[tuple[str, int, int | None, int, int]], outcomes: list[str], stop_early: bool, slots: int, instances: int
) -> None:
    runners: list[Runner] = []
    limit = InflightLimit(10_000, 2**30)
    count = iter(range(10**9))
    executing: dict[int, list[int]] = {1: [], 2: []}
    most: dict[int, int] = {1: 0, 2: 0}

    def outcome(batch: Batch) -> list[Part]:
        own = executing[batch.rules.queue_id]
        own.append(1)
        most[batch.rules.queue_id] = max(most[batch.rules.queue_id], len(own))
        time.sleep(0.0005)
        own.pop()
        requests = len(batch.spans) - 1
        kind = outcomes[next(count) % len(outcomes)]
        if kind == "fail":
            return [Part(0, requests, None, BackendFailed("chosen"))]
        if kind == "half" and requests > 1:
            middle = requests // 2
            first = Part(0, middle, {"Y": batch.inputs["X"] * 10})
            return [first, Part(middle, requests, None, BackendFailed("chosen"))]
        return echo(batch)

    def another_thread(device: str) -> None:
        runners.append(Runner(shared, outcome))

    shared = plane = PythonPlane(monotonic_ns, limit, deliver, another_thread, lambda device: slots)
    plane.open(rules(1, costs_ns=(50_000,) * 4, instances=instances))
    plane.open(rules(2, max_batch=0))
    assert len(runners) == instances + slots - 1
    admitted: list[tuple[Ticket, CountingReply, int, int]] = []
    cancelled: set[int] = set()
    for tag, (action, rows, budget_ms, priority, queue_id) in enumerate(actions):
        if action == "submit":
            rows = rows if queue_id == 1 else 1
            now_ns = monotonic_ns()
            deadline = {} if budget_ms is None else {"deadline_ns": now_ns + budget_ms * MS}
            reply = CountingReply()
            ticket = Ticket(rows_of(tag, rows), reply, now_ns, priority=priority, **deadline)
            try:
                plane.submit(queue_id, ticket)
            except PodiumError:
                assert ticket.state is TicketState.WAITING
                assert reply.answers == []
            else:
                admitted.append((ticket, reply, tag, rows))
        elif action == "cancel" and admitted:
            ticket = admitted[rows % len(admitted)][0]
            if plane.cancel(ticket) is not TicketState.ENDED:
                cancelled.add(id(ticket))
        elif action == "pause":
            time.sleep(0.001)
    if not stop_early:
        for queue_id in (1, 2):
            plane.close(queue_id)
            assert plane.wait_idle(queue_id, 10)
    plane.stop()
    for runner in runners:
        runner.join(10)
        assert not runner.is_alive()
    assert most[1] <= instances
    assert most[2] <= 1
    assert plane._limit.requests == plane._limit.bytes == 0
    for ticket, reply, tag, rows in admitted:
        assert ticket.state is TicketState.ENDED
        assert len(reply.answers) == (0 if id(ticket) in cancelled else 1)
        for answer in reply.answers:
            if isinstance(answer, dict):
                assert (answer["Y"] == rows_of(tag, rows).arrays["X"] * 10).all()
            else:
                assert isinstance(answer, BackendFailed | Expired | ShuttingDown)
                assert not isinstance(answer, ShuttingDown) or stop_early


def test_a_reply_whose_caller_has_gone_is_left_alone() -> None:
    gone: Future[Any] = Future()
    gone.cancel()
    there: Future[Any] = Future()
    settle([(gone, {"Y": np.zeros(1)}), (there, {"Y": np.ones(1)})])
    assert there.result()["Y"] == 1
