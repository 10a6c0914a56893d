"""Every kind of data plane keeps the law: an admitted ticket ends exactly once, and rows of i come back to i."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from weakref import ref

import numpy as np
import pytest

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed, DeviceLost, Expired, NotReady, Overloaded, ShuttingDown
from server.dataplane.interface import Batch, Part, QueueClosed
from server.dataplane.ticket import Ticket, TicketState
from tests.dataplane.histories import CountingReply, rows_of, rules
from tests.dataplane.planes import MS, New, Runner, echo, held_up, new_of, submit
from tests.planes import PLANES


@pytest.fixture(scope="module", params=PLANES)
def new(request: pytest.FixtureRequest) -> New:
    return new_of(request.param)


@pytest.fixture
def plane(new: New) -> Iterator[Any]:
    made = new()
    yield made
    made.stop()


def test_rows_of_i_come_back_to_i(plane: Any) -> None:
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


def test_the_expired_leave_while_the_engine_is_busy_and_never_reach_it(plane: Any) -> None:
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


def test_why_a_ticket_was_refused_is_not_the_error_that_is_raised(plane: Any) -> None:
    """A raised one leads to its caller's request, which must not stay as long as the ticket does."""
    plane.open(rules())
    ticket, reply = submit(plane, 1, deadline_ns=monotonic_ns() + 20 * MS)
    raised = reply.exception(10)
    assert isinstance(raised, Expired)
    assert ticket.refusal is not raised
    assert (type(ticket.refusal), str(ticket.refusal)) == (Expired, str(raised))


def test_the_cancelled_leave_at_once_and_their_answer_is_nobodys(plane: Any) -> None:
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


def test_a_device_is_announced_once_for_every_thread_it_can_use(new: New) -> None:
    seen: list[str] = []
    plane = new(seen.append, max_requests=10)
    plane.open(rules(1))
    plane.open(rules(2, device="cuda:0"))
    plane.open(rules(3))
    plane.open(rules(4, instances=2))
    plane.stop()
    assert seen == ["cpu", "cuda:0", "cpu"]


def test_with_two_slots_the_next_batch_is_gathered_while_one_runs(new: New) -> None:
    plane = new(slots=lambda device: 2)
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


def test_the_staged_expire_while_what_runs_before_them_overruns(new: New) -> None:
    plane = new(slots=lambda device: 2)
    plane.open(rules(costs_ns=(MS,) * 4, early_drop=False))
    try:
        submit(plane, 1, 8)
        running = plane.take("cpu")
        patient, doomed = submit(plane, 2, 4)[1], submit(plane, 3, 4, deadline_ns=monotonic_ns() + 200 * MS)[1]
        staged = plane.take("cpu")
        assert running is not None
        assert staged is not None
        assert len(staged.spans) == 3
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


def test_finish_says_whose_answer_was_still_wanted(plane: Any) -> None:
    plane.open(rules())
    kept, _ = submit(plane, 1)
    gone, _ = submit(plane, 2)
    batch = plane.take("cpu")
    assert batch is not None
    plane.cancel(gone)
    assert plane.finish(batch, echo(batch), ran_rows=2, ran_ns=5).tolist() == [True, False]
    assert kept.state is TicketState.ENDED


def test_parts_that_do_not_cover_the_batch_are_a_bug(plane: Any) -> None:
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


def test_a_closed_queue_says_choose_again_and_serves_what_it_admitted(plane: Any) -> None:
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


GONE = "its device is lost"


def test_a_queue_that_fails_ends_what_waits_and_what_is_staged_but_not_what_runs(new: New) -> None:
    plane = new(slots=lambda device: 2)
    plane.open(rules(1, costs_ns=(MS,) * 4))
    plane.open(rules(2, costs_ns=(MS,) * 4))
    try:
        running, staged = submit(plane, 1, 8), submit(plane, 2, 8)
        first = plane.take("cpu")
        second = plane.take("cpu")
        assert (first.staged, second.staged) == (False, True)
        waiting = [submit(plane, 3, 8), submit(plane, 4, 1, deadline_ns=monotonic_ns() + 3600 * 1000 * MS)]
        other = submit(plane, 5, 8, queue_id=2)
        plane.fail(1, GONE)
        plane.fail(1, GONE)
        plane.fail(99, GONE)
        for (ticket, reply), kind in ((staged, DeviceLost), (waiting[0], NotReady), (waiting[1], NotReady)):
            error = reply.exception(10)
            assert (type(error), str(error)) == (kind, GONE)
            assert ticket.state is TicketState.ENDED
            assert (type(ticket.refusal), str(ticket.refusal)) == (kind, GONE)
            assert ticket.refusal is not error
            assert plane.cancel(ticket) is TicketState.ENDED
        assert not running[1].done()
        with pytest.raises(QueueClosed):
            submit(plane, 6)
        assert not plane.wait_idle(1, 0.01), "a batch still has tickets of it"
        assert plane.finish(first, [Part(0, 1, None, BackendFailed("broken"))], ran_rows=0, ran_ns=MS).tolist() == [True]
        assert str(running[1].exception(10)) == "broken"
        plane.enter_device(second)
        assert plane.finish(second, [Part(0, 1, None, BackendFailed("broken"))], ran_rows=0, ran_ns=MS).tolist() == [False]
        assert plane.wait_idle(1, 10)
        assert plane.snapshot(1) is None
        last = plane.take("cpu")  # of the queue that goes on
        plane.finish(last, echo(last), ran_rows=8, ran_ns=MS)
        assert other[1].result(10)["Y"].shape == (8, 2)
    finally:
        plane.stop()


def test_a_queue_of_one_of_several_devices_fails_with_its_own_alone(new: New) -> None:
    plane = new()
    plane.open(rules(1, costs_ns=(MS,) * 4))
    plane.open(rules(2, costs_ns=(MS,) * 4, device="fake:1", sibling_of=1))
    try:
        both = [submit(plane, tag, 8) for tag in range(2)]
        assert [plane.snapshot(queue_id).waiting_requests for queue_id in (1, 2)] == [1, 1]
        plane.fail(2, GONE)
        (failed,) = (reply for _, reply in both if reply.done())
        error = failed.exception(10)
        assert (type(error), str(error)) == (NotReady, GONE)
        assert plane.snapshot(1).waiting_requests == 1
        assert plane.wait_idle(2, 10)
        submit(plane, 3, 8)  # it has another queue to enter
        assert plane.snapshot(1).waiting_requests == 2
    finally:
        plane.stop()


def test_who_left_as_the_queue_failed_is_told_nothing_more(plane: Any) -> None:
    plane.open(rules(1))
    gone, reply = submit(plane, 1)
    assert plane.cancel(gone) is TicketState.WAITING
    plane.fail(1, GONE)
    assert plane.wait_idle(1, 10)
    assert not reply.done()
    assert gone.refusal is None


def test_stop_answers_everything_that_waits(plane: Any) -> None:
    plane.open(rules())
    replies = [submit(plane, tag)[1] for tag in range(3)]
    plane.stop()
    assert [type(reply.exception(1)) for reply in replies] == [ShuttingDown] * 3
    with pytest.raises(ShuttingDown):
        submit(plane, 4)
    assert plane.take("cpu") is None


def test_refusals_leave_nothing_behind(new: New) -> None:
    plane = new(max_requests=2)
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


def test_a_queue_delay_ends_by_itself(plane: Any) -> None:
    plane.open(rules(queue_delay_ns=5 * MS))
    runner = Runner(plane, echo)
    submit(plane, 1)[1].result(10)
    assert runner.batches[0].released == "delay"


def test_a_quiet_submit_is_answered_after_a_wake(plane: Any) -> None:
    plane.open(rules())
    Runner(plane, echo)
    for tag in range(50):
        reply: Future[Any] = Future()
        plane.submit(1, Ticket(rows_of(tag, 1), reply, monotonic_ns()), wake=False)
        plane.wake()
        assert (reply.result(10)["Y"] == rows_of(tag, 1).arrays["X"] * 10).all()


def test_a_staged_batch_that_begins_leaves_its_place_to_the_next(new: New) -> None:
    plane = new(slots=lambda device: 2)
    plane.open(rules(costs_ns=(MS,) * 4))
    try:
        for tag in (1, 2, 3):
            submit(plane, tag, 8)
        running, staged = plane.take("cpu"), plane.take("cpu")
        plane.leave_device(running)
        taken: Future[Any] = Future()
        threading.Thread(target=lambda: taken.set_result(plane.take("cpu")), daemon=True).start()
        plane.enter_device(staged)
        assert taken.result(10).staged
    finally:
        plane.stop()


def test_no_reply_is_kept_until_its_deadline(plane: Any) -> None:
    """A reply leads to an answer, which may be large, and a deadline may be hours away."""
    plane.open(rules())
    Runner(plane, echo)
    held: list[Any] = []
    for tag in range(5):
        ticket, reply = submit(plane, tag, deadline_ns=monotonic_ns() + 3600 * 1000 * MS)
        reply.result(10)
        held.append((ref(reply), ticket))
    del reply
    # the engine holds its last batch until the next one
    assert [answer() for answer, _ in held[:-1]] == [None] * 4


def test_more_answers_to_one_request_come_in_order_and_stop_when_its_caller_goes(plane: Any) -> None:
    class Stream(CountingReply):
        def add(self, outputs: Any) -> None:
            self.answers.append(outputs)

        def reserve(self, outputs: Any) -> float:
            return 0.0

    def number(value: int) -> dict[str, Any]:
        return {"Y": np.full((1, 2), value)}

    plane.open(rules(max_batch=0, decoupled=True))
    stayed, left = Stream(), Stream()
    tickets = [Ticket(rows_of(1, 1), reply, monotonic_ns()) for reply in (stayed, left)]
    for ticket in tickets:
        plane.submit(1, ticket)
    first, second = plane.take("cpu"), None
    assert [plane.respond(first, number(value)) for value in range(3)] == [True] * 3
    plane.finish(first, [Part(0, 1, {})], ran_rows=1, ran_ns=MS)
    second = plane.take("cpu")
    assert plane.respond(second, number(9))
    assert plane.cancel(tickets[1]) is TicketState.TAKEN
    assert not plane.respond(second, number(10))
    assert plane.finish(second, [Part(0, 1, {})], ran_rows=1, ran_ns=MS).tolist() == [False]
    assert [int(answer["Y"][0, 0]) for answer in stayed.answers[:3]] == [0, 1, 2]
    assert len(stayed.answers) == 4
    assert [int(answer["Y"][0, 0]) for answer in left.answers] == [9]
