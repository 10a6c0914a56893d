"""One version on several devices, on every kind of data plane: where a request goes, who refuses, what a device takes along."""

import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.core.clock import monotonic_ns
from server.core.errors import BackendFailed, Expired, NotReady, Overloaded, PodiumError, ShuttingDown
from server.dataplane.costs import Estimate
from server.dataplane.entrance import Entrance
from server.dataplane.interface import Batch, Part, QueueClosed, QueueRules
from server.dataplane.plan import Plan
from server.dataplane.ticket import Ticket, TicketState
from tests.dataplane.histories import CountingReply, rows_of, rules, ticket
from tests.dataplane.planes import MS, New, Runner, echo, new_of, submit
from tests.planes import PLANES

DEVICES = ("fake:0", "fake:1", "fake:2")


@pytest.fixture(scope="module", params=PLANES)
def new(request: pytest.FixtureRequest) -> New:
    return new_of(request.param)


def places(*costs_ns: tuple[int, ...], first: int = 1, **changes: Any) -> list[QueueRules]:
    """The queues of one version, a device for each of these costs."""
    return [
        rules(first + index, device=DEVICES[index], costs_ns=each, sibling_of=first if index else 0, **changes)
        for index, each in enumerate(costs_ns)
    ]


def opened(new: New, *queues: QueueRules) -> Any:
    """A plane on which nothing runs."""
    plane = new()
    for each in queues:
        plane.open(each)
    return plane


def waiting(plane: Any, count: int) -> list[int]:
    return [plane.snapshot(queue_id).waiting_rows for queue_id in range(1, count + 1)]


def chosen(plane: Any, rows: int = 1, count: int = 2, **kwargs: Any) -> int:
    """The queue that the next request waits in."""
    before = waiting(plane, count)
    submit(plane, 0, rows, **kwargs)
    (queue_id,) = (index + 1 for index, (was, now) in enumerate(zip(before, waiting(plane, count), strict=True)) if now > was)
    return queue_id


def test_equal_devices_take_turns(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), (MS,), max_batch=1))
    assert [chosen(plane, count=3) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    plane.stop()


def test_a_slower_device_is_asked_once_the_faster_one_would_be_later(new: New) -> None:
    plane = opened(new, *places((5 * MS,), (2 * MS,), max_batch=1))
    # finished after 2, 4; then 5 before 6, 6, 8, 10 by turns, 10
    assert [chosen(plane) for _ in range(7)] == [2, 2, 1, 2, 2, 1, 2]
    plane.stop()


def test_where_costs_are_not_known_the_fewest_open_rows_decide(new: New) -> None:
    plane = opened(new, *places((MS,) * 4, (0,) * 4))
    assert [chosen(plane, rows) for rows in (4, 1, 2, 2, 1)] == [1, 2, 2, 2, 1]
    plane.stop()


def test_answers_of_a_decoupled_version_say_nothing_of_the_next_ones(new: New) -> None:
    plane = opened(new, *places((100 * MS,), (MS,), max_batch=0, decoupled=True, early_drop=False))
    assert [chosen(plane) for _ in range(4)] == [1, 2, 1, 2]
    plane.stop()


def test_what_is_more_urgent_on_a_device_counts(new: New) -> None:
    """Each device keeps its one plan: other versions that wait there are ahead of a request."""
    plane = opened(new, *places((MS,), (MS,), max_batch=1), rules(3, device="fake:0", max_batch=1, costs_ns=(10 * MS,)))
    submit(plane, 0, queue_id=3)
    assert [chosen(plane) for _ in range(3)] == [2, 2, 2]
    assert chosen(plane, priority=-1) == 1  # goes before all of that, here as there; it is this one's turn
    plane.stop()


def test_only_what_every_device_refuses_is_refused(new: New) -> None:
    plane = opened(new, *places((MS,), (2 * MS,), max_batch=1, max_requests=1))
    assert [chosen(plane), chosen(plane)] == [1, 2]
    with pytest.raises(Overloaded) as refused:
        submit(plane, 0)
    assert refused.value.retry_after_s == 0.001  # the first choice says it
    plane.stop()


def test_a_deadline_is_held_against_the_device_that_is_to_keep_it(new: New) -> None:
    plane = opened(new, *places((10_000 * MS,), (4_000 * MS,), max_batch=1))
    kept = [chosen(plane, deadline_ns=monotonic_ns() + 9_000 * MS) for _ in range(2)]
    assert kept == [2, 2]
    with pytest.raises(Expired, match="predicted"):
        submit(plane, 0, deadline_ns=monotonic_ns() + 9_000 * MS)
    assert chosen(plane, deadline_ns=monotonic_ns() + 11_000 * MS) == 1
    with pytest.raises(Expired, match=r"expired$"):
        submit(plane, 0, deadline_ns=monotonic_ns() - 1)
    plane.stop()


def test_a_queue_that_closes_sends_nobody_away(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), (MS,), max_batch=1))
    plane.close(1)
    assert [chosen(plane, count=3) for _ in range(4)] == [2, 3, 2, 3]
    assert plane.wait_idle(1, 5)  # nothing was in it
    before = [plane.snapshot(queue_id).waiting_requests for queue_id in (2, 3)]
    submit(plane, 0)  # still by the number of the one that is gone
    assert sum(plane.snapshot(queue_id).waiting_requests for queue_id in (2, 3)) == sum(before) + 1
    plane.close(2)
    submit(plane, 0)
    assert plane.snapshot(3).waiting_requests == 3
    plane.close(3)
    with pytest.raises(QueueClosed):
        submit(plane, 0)
    plane.stop()


def test_an_entrance_is_gone_with_its_last_queue_and_can_be_made_again(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), max_batch=1))
    for queue_id in (2, 1):
        plane.close(queue_id)
        assert plane.wait_idle(queue_id, 5)
    with pytest.raises(QueueClosed):
        submit(plane, 0)
    with pytest.raises(QueueClosed):
        submit(plane, 0, queue_id=2)  # nobody enters by the number of a later queue
    plane.open(rules(1, device="fake:1", max_batch=1))
    submit(plane, 0)
    plane.stop()


def test_a_place_in_the_limit_is_given_back_when_all_refuse(new: New) -> None:
    plane = new(max_requests=3)
    for each in places((MS,), (MS,), max_batch=1, max_requests=1):
        plane.open(each)
    submit(plane, 0), submit(plane, 0)
    for _ in range(5):
        with pytest.raises(Overloaded, match=r"^Exceeds maximum queue size$"):
            submit(plane, 0)
    plane.stop()


def test_a_waiting_request_is_cancelled_where_it_waits(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), max_batch=1))
    tickets = [submit(plane, tag)[0] for tag in range(4)]
    assert plane.cancel(tickets[1]) is TicketState.WAITING
    assert [plane.snapshot(queue_id).open_requests for queue_id in (1, 2)] == [2, 1]
    assert chosen(plane) == 2
    plane.stop()


def test_every_device_runs_what_went_to_it_at_once(new: New) -> None:
    running: list[str] = []
    both = threading.Barrier(2, timeout=10)

    def together(batch: Batch) -> list[Part]:
        running.append(batch.rules.device)
        both.wait()  # neither ends before the other has begun
        return echo(batch)

    started: list[Runner] = []
    made: list[Any] = []

    def begin(device: str) -> None:
        started.append(Runner(made[0], together, device))

    made.append(new(begin))
    for each in places((MS,), (MS,), max_batch=1):
        made[0].open(each)
    replies = [submit(made[0], tag)[1] for tag in (1, 2)]
    for tag, reply in enumerate(replies, 1):
        assert (reply.result(10)["Y"] == rows_of(tag, 1).arrays["X"] * 10).all()
    assert sorted(running) == ["fake:0", "fake:1"]
    made[0].stop()
    for runner in started:
        runner.join(10)


def test_what_waits_on_a_lost_device_is_taken_by_the_others(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), (MS,), max_batch=1))
    tickets = [submit(plane, tag)[0] for tag in range(6)]
    plane.close(1, move=True)
    assert plane.snapshot(1).open_requests == 0
    assert plane.wait_idle(1, 5)
    assert [plane.snapshot(queue_id).open_requests for queue_id in (2, 3)] == [3, 3]
    assert [plane.cancel(one) for one in tickets] == [TicketState.WAITING] * 6
    plane.stop()


def test_what_nobody_else_takes_waits_on(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), max_batch=1, max_requests=2))
    for tag in range(4):
        submit(plane, tag)
    plane.close(1, move=True)
    assert waiting(plane, 2) == [2, 2]
    plane.close(2, move=True)  # nobody is left to take anything
    assert waiting(plane, 2) == [2, 2]
    plane.close(9, move=True)
    plane.stop()


def test_what_cannot_be_in_time_on_the_devices_left_ends_there_and_then(new: New) -> None:
    other = rules(4, device="fake:0", max_batch=1, costs_ns=(60_000 * MS,))
    plane = opened(new, *places((10_000 * MS,), (60_000 * MS,), max_batch=1), other)
    ticket, reply = submit(plane, 0, deadline_ns=monotonic_ns() + 30_000 * MS)
    submit(plane, 0, queue_id=4, priority=-1)  # nor could it be here any more
    plane.close(1, move=True)
    with pytest.raises(Expired):
        reply.result(10)
    assert ticket.state is TicketState.ENDED
    assert isinstance(ticket.refusal, Expired)
    assert plane.wait_idle(1, 5)
    plane.stop()


def test_who_waits_in_a_queue_that_fails_is_told_why_whichever_sibling_it_is(new: New) -> None:
    plane = opened(new, *places((MS,), (MS,), max_batch=1))
    (_, stays), (ticket, reply) = submit(plane, 0), submit(plane, 1)
    plane.fail(2, "'m' is not at ready state: device 'fake:1' is lost")
    with pytest.raises(NotReady, match="device 'fake:1' is lost"):
        reply.result(10)
    assert "device 'fake:1' is lost" in str(ticket.refusal)
    assert not stays.done()
    assert [chosen(plane), chosen(plane)] == [1, 1]
    plane.stop()


def test_the_most_urgent_of_a_lost_device_go_first(new: New) -> None:
    made: list[Any] = []
    order: list[int] = []

    def note(batch: Batch) -> list[Part]:
        order.append(int(batch.inputs["X"][0, 1]))
        return echo(batch)

    made.append(new())
    for each in places((MS,), (MS,), max_batch=1):
        made[0].open(each)
    made[0].close(2)
    replies = [submit(made[0], tag, priority=priority)[1] for tag, priority in ((1, 2), (2, 1), (3, 2), (4, 0))]
    made[0].open(rules(5, device="fake:2", max_batch=1, costs_ns=(MS,), sibling_of=1))
    made[0].close(1, move=True)
    runner = Runner(made[0], note, "fake:2")
    for reply in replies:
        reply.result(10)
    assert order == [4, 2, 1, 3]
    made[0].stop()
    runner.join(10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["submit"] * 6 + ["close", "lose", "cancel"]), st.integers(1, 8), st.integers(0, 2)),
        max_size=40,
    ),
    st.lists(st.sampled_from([(0,) * 4, (MS,) * 4, (MS, 2 * MS, 3 * MS, 5 * MS)]), min_size=1, max_size=3),
)
def test_both_kinds_choose_alike(history: list[tuple[str, int, int]], costs: list[tuple[int, ...]]) -> None:
    """Nothing runs, so that the instants of the two differ in nothing that counts."""
    planes = [opened(new_of(kind), *places(*costs, max_requests=5)) for kind in PLANES]
    tickets: list[list[Ticket]] = [[] for _ in planes]
    for action, number, priority in history:
        said = []
        for plane, own in zip(planes, tickets, strict=True):
            try:
                if action == "submit":
                    own.append(submit(plane, 0, number, priority=priority)[0])
                elif action in ("close", "lose") and number <= len(costs):
                    plane.close(number, move=action == "lose")
                elif action == "cancel" and own:
                    plane.cancel(own.pop(number % len(own)))
                said.append("")
            except PodiumError as error:
                said.append(repr(error))
        assert len(set(said)) == 1
        assert len({tuple(waiting(plane, len(costs))) for plane in planes}) == 1
    for plane in planes:
        plane.stop()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit"] * 5 + ["cancel", "pause", "close", "lose"]),
        st.integers(1, 8),
        st.sampled_from([None, 0, 1, 5, 50]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.lists(st.sampled_from(["ok", "fail"]), min_size=1, max_size=4), st.booleans(), st.integers(1, 2))
def test_on_any_device_an_admitted_ticket_ends_exactly_once(
    new: New, actions: list[tuple[str, int, int | None, int]], outcomes: list[str], stop_early: bool, slots: int
) -> None:
    count = iter(range(10**9))
    made: list[Any] = []
    runners: list[Runner] = []

    def outcome(batch: Batch) -> list[Part]:
        time.sleep(0.0005)
        if outcomes[next(count) % len(outcomes)] == "fail":
            return [Part(0, len(batch.spans) - 1, None, BackendFailed("chosen"))]
        return echo(batch)

    made.append(new(lambda device: runners.append(Runner(made[0], outcome, device)), lambda device: slots))
    plane = made[0]
    open_now = {1, 2, 3}
    for each in places((50_000,) * 4, (80_000,) * 4, (0,) * 4):
        plane.open(each)
    admitted: list[tuple[Ticket, CountingReply, int, int]] = []
    cancelled: set[int] = set()
    for tag, (action, rows, budget_ms, priority) in enumerate(actions):
        if action == "submit":
            now_ns, reply = monotonic_ns(), CountingReply()
            deadline = {} if budget_ms is None else {"deadline_ns": now_ns + budget_ms * MS}
            made_ticket = Ticket(rows_of(tag, rows), reply, now_ns, priority=priority, **deadline)
            try:
                plane.submit(1, made_ticket)
            except QueueClosed:
                assert not open_now
                assert reply.answers == []
            except PodiumError:
                assert open_now
                assert reply.answers == []
            else:
                assert open_now
                admitted.append((made_ticket, reply, tag, rows))
        elif action == "cancel" and admitted:
            one = admitted[rows % len(admitted)][0]
            if plane.cancel(one) is not TicketState.ENDED:
                cancelled.add(id(one))
        elif action in ("close", "lose"):
            closing = 1 + rows % 3
            open_now.discard(closing)
            plane.close(closing, move=action == "lose")
        elif action == "pause":
            time.sleep(0.001)
    if not stop_early:
        for queue_id in (1, 2, 3):
            plane.close(queue_id)
            assert plane.wait_idle(queue_id, 10)
    plane.stop()
    for runner in runners:
        runner.join(10)
        assert not runner.is_alive()
    for one, reply, tag, rows in admitted:
        assert one.state is TicketState.ENDED
        assert len(reply.answers) == (0 if id(one) in cancelled else 1)
        for answer in reply.answers:
            if isinstance(answer, dict):
                assert (answer["Y"] == rows_of(tag, rows).arrays["X"] * 10).all()
            else:
                assert isinstance(answer, BackendFailed | Expired | ShuttingDown)
                assert not isinstance(answer, ShuttingDown) or stop_early


def test_an_entrance_knows_its_own() -> None:
    plan = Plan(Estimate())
    for each in (rules(1), rules(2)):
        plan.add_queue(each)
    entrance = Entrance()
    entrance.add(plan, plan.queues[1])
    with pytest.raises(ValueError, match="queue 2"):
        entrance.remove(plan.queues[2])
    plan.queues[1].closed = True
    assert not entrance.is_open
    with pytest.raises(ValueError, match="closed"):
        entrance.admit(ticket(), 0)
