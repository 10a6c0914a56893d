"""What the python data plane keeps inside: what sleeps, what its heap of deadlines holds, what it lets go of."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from weakref import ref

import numpy as np
import pytest

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed, Expired
from server.dataplane.interface import Batch, Part
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import Ticket
from tests.dataplane.histories import rows_of, rules
from tests.dataplane.planes import MS, Runner, deliver, echo, submit


@pytest.fixture
def plane() -> Iterator[PythonPlane]:
    made = PythonPlane(monotonic_ns, InflightLimit(10_000, 2**30), deliver)
    yield made
    made.stop()


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


def test_a_reply_whose_caller_has_gone_is_left_alone() -> None:
    gone: Future[Any] = Future()
    gone.cancel()
    there: Future[Any] = Future()
    settle([(gone, {"Y": np.zeros(1)}), (there, {"Y": np.ones(1)})])
    assert there.result()["Y"] == 1
