"""Any history of submits, cancels, failures and ends, on every kind of data plane: an admitted ticket ends exactly once."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed, DeviceLost, Expired, NotReady, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import Batch, Part
from server.dataplane.ticket import Ticket, TicketState
from tests.dataplane.histories import CountingReply, rows_of, rules
from tests.dataplane.planes import MS, New, Runner, echo, new_of, submit
from tests.planes import PLANES


@pytest.fixture(scope="module", params=PLANES)
def new(request: pytest.FixtureRequest) -> New:
    return new_of(request.param)


PLACES = 50
"""More than a history has requests, so that no limit is in its way."""
LARGEST_BYTES = 128
LOST = "its device is lost"


def all_places_are_free(plane: Any) -> None:
    """Of requests and of bytes: as many go in as ever, and not one more. Nothing takes from this queue."""
    plane.open(rules(3, device="cuda:0", early_drop=False))
    for tag in range(PLACES):
        submit(plane, tag, 8, queue_id=3)
    with pytest.raises(Overloaded):
        submit(plane, 0, 8, queue_id=3)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "submit", "submit", "submit", "submit", "cancel", "pause", "fail"]),
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
    new: New,
    actions: list[tuple[str, int, int | None, int, int]],
    outcomes: list[str],
    stop_early: bool,
    slots: int,
    instances: int,
) -> None:
    runners: list[Runner] = []
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
        if device == "cpu":
            runners.append(Runner(shared, outcome))

    shared = plane = new(another_thread, lambda device: slots, max_requests=PLACES, max_bytes=PLACES * LARGEST_BYTES)
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
        elif action == "fail":
            plane.fail(queue_id, LOST)
        elif action == "pause":
            time.sleep(0.001)
    if not stop_early:
        for queue_id in (1, 2):
            plane.close(queue_id)
            assert plane.wait_idle(queue_id, 10)
        all_places_are_free(plane)
    plane.stop()
    for runner in runners:
        runner.join(10)
        assert not runner.is_alive()
    assert most[1] <= instances
    assert most[2] <= 1
    for ticket, reply, tag, rows in admitted:
        assert ticket.state is TicketState.ENDED
        assert len(reply.answers) == (0 if id(ticket) in cancelled else 1)
        for answer in reply.answers:
            if isinstance(answer, dict):
                assert (answer["Y"] == rows_of(tag, rows).arrays["X"] * 10).all()
            else:
                assert isinstance(answer, BackendFailed | Expired | NotReady | ShuttingDown)
                assert not isinstance(answer, NotReady | DeviceLost) or str(answer) == LOST
                assert not isinstance(answer, ShuttingDown) or stop_early
