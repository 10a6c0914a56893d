"""Several batches at once on a device, one more at hand, shares of its time, and order under overload."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import Expired
from server.dataplane.costs import Estimate
from server.dataplane.plan import Plan, Release
from server.dataplane.share import BURST_NS, Share
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket
from tests.dataplane.histories import rules, ticket

COSTS = (100, 100, 100, 100)


def plan_of(*queues: Any, slots: int = 1, density: bool = False) -> Plan:
    plan = Plan(Estimate(), slots, density=density)
    for one in queues:
        plan.add_queue(one)
    return plan


def admit(plan: Plan, *tickets: Ticket, now_ns: int = 0) -> None:
    for one in tickets:
        plan.admit(one, now_ns)


def release(plan: Plan, now_ns: int = 0) -> Release:
    found = plan.decide(now_ns).release
    assert found is not None
    return found


def test_a_version_runs_as_often_at_once_as_it_has_instances() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS, instances=2), rules(2, costs_ns=COSTS))
    assert plan.executors == 2
    admit(plan, *(ticket(rows=8) for _ in range(3)), ticket(queue_id=2, rows=8, arrival_ns=5))
    first, second = release(plan), release(plan)
    assert {first.queue.rules.queue_id, second.queue.rules.queue_id} == {1}
    assert plan.decide(0).release is None  # both executors are busy
    plan.executed(first.token, 0)
    third = release(plan)
    assert third.queue.rules.queue_id == 1
    plan.executed(second.token, 0)
    last = release(plan)
    assert last.queue.rules.queue_id == 2


def test_a_version_whose_instances_are_busy_lets_others_pass() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS, instances=2))
    admit(plan, ticket(rows=8), ticket(rows=8), ticket(queue_id=2, arrival_ns=5))
    assert release(plan).queue.rules.queue_id == 1
    assert release(plan).queue.rules.queue_id == 2


def test_executors_are_counted_anew_when_a_version_leaves() -> None:
    plan = plan_of(rules(1, instances=3), rules(2))
    assert (plan.executors, plan.threads_with(1), plan.threads_with(5)) == (3, 3, 5)
    plan.remove_queue(1)
    assert plan.executors == 1
    plan.remove_queue(2)
    assert plan.executors == 1


def test_admission_knows_how_many_run_at_once() -> None:
    one, two = plan_of(rules(costs_ns=COSTS)), plan_of(rules(costs_ns=COSTS, instances=2))
    for plan, finish_ns in ((one, 300), (two, 200)):
        admit(plan, ticket(rows=8, deadline_ns=10_000), ticket(rows=8, deadline_ns=10_000))
        release(plan)
        with pytest.raises(Expired):
            plan.admit(ticket(rows=8, deadline_ns=finish_ns - 1, priority=1), 0)
        plan.admit(ticket(rows=8, deadline_ns=finish_ns, priority=1), 0)


def test_the_next_batch_is_staged_as_late_as_gathering_allows() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=2)
    admit(plan, ticket(rows=8), ticket(rows=8))
    running = release(plan)
    assert plan.decide(40).wait_until_ns == 100  # nothing is known yet of how long gathering takes
    staged = release(plan, 100)
    assert staged.staged
    assert not plan.may_begin(staged.token)
    admit(plan, ticket())
    assert plan.decide(100).release is None  # one is staged already
    plan.executed(running.token, 110)
    assert plan.may_begin(staged.token)
    plan.begin(staged.token, 110, gather_ns=30)
    decision = plan.decide(111)
    assert (decision.release, decision.wait_until_ns) == (None, 180)
    assert release(plan, 180).staged


def test_features_found_while_another_batch_executes_are_no_time_of_the_device() -> None:
    one, two = plan_of(rules(costs_ns=COSTS)), plan_of(rules(costs_ns=COSTS), slots=2)
    for plan in (one, two):
        for _ in range(60):
            plan.observe(1, 8, took_ns=180, features_ns=80, now_ns=0)
    assert one.queues[1].costs[0].predict_ns(8) == pytest.approx(180, abs=2)
    assert (two.queues[1].costs[0].predict_ns(8), two.queues[1].lead.predict_ns()) == (100, 80)
    # an idle device waits for features; what is behind another batch has them by then
    for finish_ns, priority in ((180, 2), (280, 3), (380, 4)):
        with pytest.raises(Expired):
            two.admit(ticket(rows=8, deadline_ns=finish_ns - 1, priority=priority), 0)
        admit(two, ticket(rows=8, deadline_ns=finish_ns + 1, priority=priority))
    running = release(two)
    two._staging.observe(80)
    assert two.decide(99).wait_until_ns == 100
    staged = release(two, 100)
    two.executed(running.token, 180)
    two.begin(staged.token, 180, gather_ns=80)
    assert two.decide(180).wait_until_ns == 200


def test_a_third_slot_is_a_thread_and_not_a_second_batch_that_waits() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=3)
    assert plan.threads_with(1) == 3
    admit(plan, *(ticket(rows=8) for _ in range(3)))
    running = release(plan, 0)
    assert not running.staged
    assert release(plan, 10**6).staged
    assert plan.decide(10**6).release is None
    plan.executed(running.token, 10**6)
    assert plan.decide(10**6).release is None, "the staged one has yet to begin"


def test_a_slow_store_is_forgotten_by_the_first_trial() -> None:
    plan = plan_of(rules(costs_ns=(10**8,) * 4), slots=2)
    plan.observe(1, 8, took_ns=2 * 10**8, features_ns=10**8, now_ns=0)
    plan.queues[1].costs[0].refused(8, 0)
    plan.observe(1, 8, took_ns=10**8 + 1000, features_ns=1000, now_ns=10**11)
    assert plan.queues[1].lead.predict_ns() == 1000


def test_features_that_take_longer_than_executions_are_what_batches_wait_for() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=2)
    for _ in range(60):
        plan.observe(1, 8, took_ns=400, features_ns=300, now_ns=0)
    assert plan.queues[1].costs[0].predict_ns(8) == pytest.approx(300, abs=2)
    assert plan.queues[1].lead.predict_ns() == 100


def test_nobody_overtakes_a_staged_batch_whose_thread_has_yet_to_wake_up() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS), slots=2)
    admit(plan, ticket(rows=8), ticket(rows=8))
    running = release(plan)
    staged = release(plan, 100)
    admit(plan, ticket(queue_id=2))
    plan.executed(running.token, 110)
    decision = plan.decide(110)  # by a thread that was quicker
    assert (decision.release, decision.wait_until_ns) == (None, None)
    plan.begin(staged.token, 110, gather_ns=0)
    assert release(plan, 210).staged


def test_with_nothing_waiting_there_is_nothing_to_stage() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=2)
    admit(plan, ticket())
    release(plan)
    assert plan.decide(99).wait_until_ns is None


def test_a_device_with_two_slots_stands_still_until_somebody_enters_it() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=2)
    assert not plan.stands_still(takers=True)  # there is nothing to do
    admit(plan, ticket(rows=8), ticket(rows=8))
    assert plan.stands_still(takers=True)
    assert not plan.stands_still(takers=False)  # nobody is about to change that
    running = release(plan)
    assert plan.stands_still(takers=False)  # its thread is
    plan.enter(running.token)
    staged = release(plan, 100)
    assert not plan.stands_still(takers=True)
    plan.executed(running.token, 100)
    assert plan.stands_still(takers=False)
    plan.begin(staged.token, 100, gather_ns=1)
    assert plan.stands_still(takers=False)
    plan.enter(staged.token)
    assert not plan.stands_still(takers=True)
    one = plan_of(rules(costs_ns=COSTS))
    admit(one, ticket())
    assert not one.stands_still(takers=True)  # with one slot the thread that is free takes it itself


def test_a_staged_batch_counts_in_admission() -> None:
    plan = plan_of(rules(costs_ns=COSTS), slots=2)
    admit(plan, ticket(rows=8), ticket(rows=8))
    release(plan)
    release(plan, 100)  # it begins when the first ends, late as that is
    with pytest.raises(Expired):
        plan.admit(ticket(deadline_ns=299), 100)
    plan.admit(ticket(deadline_ns=300), 100)


def test_a_staged_batch_waits_for_an_instance_of_its_own() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS, instances=2), slots=2)
    admit(plan, ticket(rows=8), ticket(queue_id=2))
    mine, other = release(plan), release(plan)
    admit(plan, ticket(rows=8))
    staged = release(plan, 100)
    plan.executed(other.token, 100)
    assert not plan.may_begin(staged.token)
    plan.executed(mine.token, 100)
    assert plan.may_begin(staged.token)


def test_a_share_goes_first_until_it_is_used_up() -> None:
    slow = (BURST_NS,) * 4
    plan = plan_of(rules(1, costs_ns=slow), rules(2, costs_ns=slow, share=0.5))
    admit(plan, *(ticket(rows=8) for _ in range(3)), *(ticket(queue_id=2, rows=8, arrival_ns=9) for _ in range(3)))
    order = []
    for turn in range(6):
        one = release(plan, turn * BURST_NS)
        order.append(one.queue.rules.queue_id)
        plan.executed(one.token, (turn + 1) * BURST_NS)
    assert order == [2, 1, 2, 1, 2, 1]


def test_one_of_two_executors_uses_half_of_the_devices_time() -> None:
    slow = (BURST_NS,) * 4
    plan = plan_of(rules(1, costs_ns=slow, instances=2), rules(2, costs_ns=slow, share=0.5))
    admit(plan, *(ticket(rows=8) for _ in range(3)), *(ticket(queue_id=2, rows=8, arrival_ns=9) for _ in range(3)))
    first, _ = release(plan), release(plan)
    assert first.queue.rules.queue_id == 2
    plan.executed(first.token, BURST_NS)
    assert release(plan, BURST_NS).queue.rules.queue_id == 2  # half of its claim is left


def test_admission_lets_a_claim_pass_the_backlog_of_others() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS, share=0.5))
    admit(plan, *(ticket(rows=8, deadline_ns=1_000) for _ in range(5)))
    plan.admit(ticket(queue_id=2, rows=8, deadline_ns=100), 0)
    with pytest.raises(Expired):
        plan.admit(ticket(rows=8, deadline_ns=199), 0)  # before its own, but behind the claim
    plan.admit(ticket(rows=8, deadline_ns=200), 0)


def test_shares_fill_empty_and_forgive() -> None:
    share = Share(0.5)
    assert share.claim(0) == 1.0
    share.use(10 * BURST_NS, BURST_NS)
    assert share.claim(BURST_NS) == 0.0
    assert share.claim(3 * BURST_NS) == 0.0  # what it owes is paid, and no more
    assert share.claim(4 * BURST_NS) == pytest.approx(0.5)
    assert share.claim(3 * BURST_NS) == pytest.approx(0.5)  # an instant that another thread read earlier
    assert share.claim(99 * BURST_NS) == 1.0
    none = Share(0.0)
    none.use(BURST_NS, 0)
    assert none.claim(BURST_NS) == 0.0


def test_density_serves_the_fullest_batches_when_not_all_can_be_in_time() -> None:
    for density, first in ((True, 2), (False, 1)):
        late: dict[str, Any] = {"costs_ns": COSTS, "early_drop": False}
        plan = plan_of(rules(1, **late), rules(2, **late), density=density)
        admit(plan, ticket(deadline_ns=150), *(ticket(queue_id=2, deadline_ns=180) for _ in range(8)))
        assert release(plan).queue.rules.queue_id == first


def test_density_changes_nothing_while_all_can_be_in_time() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS), density=True)
    admit(plan, ticket(deadline_ns=150), *(ticket(queue_id=2, deadline_ns=300) for _ in range(8)))
    assert release(plan).queue.rules.queue_id == 1


def test_density_keeps_priorities_and_claims() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS), density=True)
    admit(plan, ticket(deadline_ns=150), *(ticket(queue_id=2, deadline_ns=150, priority=1) for _ in range(8)))
    assert release(plan).queue.rules.queue_id == 1
    plan = plan_of(rules(1, costs_ns=COSTS, share=0.5), rules(2, costs_ns=COSTS), density=True)
    admit(plan, ticket(deadline_ns=150), *(ticket(queue_id=2, deadline_ns=150) for _ in range(8)))
    assert release(plan).queue.rules.queue_id == 1


def test_an_executed_batch_may_be_reported_twice() -> None:
    plan = plan_of(rules())
    admit(plan, ticket())
    one = release(plan)
    plan.executed(one.token, 0)
    plan.executed(one.token, 0)
    assert plan.queues[1].running == 0


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 3), st.integers(1, 8), st.integers(1, 900) | st.none()),
        st.tuples(st.just("pass"), st.integers(1, 300)),
        st.just(("decide",)),
        st.tuples(st.just("begin"), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
    ),
    max_size=80,
)


@given(EVENTS, st.integers(1, 2), st.booleans())
def test_never_more_at_once_than_there_are_executors_instances_and_slots(history: list[Any], slots: int, density: bool) -> None:
    instances = {1: 1, 2: 2, 3: 3}
    plan = plan_of(
        *(
            rules(queue_id, costs_ns=COSTS, instances=count, share=0.1 * (queue_id - 1))
            for queue_id, count in instances.items()
        ),
        slots=slots,
        density=density,
    )
    now_ns, waiting = 0, 0
    executing: list[Release] = []
    staged: list[Release] = []
    for event in history:
        match event:
            case ("submit", int(queue_id), int(rows), budget):
                deadline_ns = NO_DEADLINE_NS if budget is None else now_ns + budget
                try:
                    plan.admit(ticket(rows=rows, queue_id=queue_id, arrival_ns=now_ns, deadline_ns=deadline_ns), now_ns)
                    waiting += 1
                except Expired:
                    assert budget is not None
            case ("pass", int(ns)):
                now_ns += ns
            case ("decide",):
                decision = plan.decide(now_ns)
                waiting -= len(decision.late)
                if decision.release is not None:
                    waiting -= len(decision.release.tickets)
                    (staged if decision.release.staged else executing).append(decision.release)
            case ("begin", int(index)) if staged:
                one = staged[index % len(staged)]
                if plan.may_begin(one.token):
                    plan.begin(one.token, now_ns, 10)
                    staged.remove(one)
                    executing.append(one)
            case ("end", int(index)) if executing:
                one = executing.pop(index % len(executing))
                plan.executed(one.token, now_ns)
        assert plan.waiting == waiting
        assert len(executing) <= 3
        assert len(staged) <= slots - 1
        for queue_id, count in instances.items():
            own = [one for one in executing if one.queue.rules.queue_id == queue_id]
            assert len(own) <= count
            ahead = [one for one in staged if one.queue.rules.queue_id == queue_id]
            assert plan.queues[queue_id].running == len(own) + len(ahead) <= count + slots - 1
    # nothing is stuck: whatever is staged may begin once everything that runs has ended
    for one in executing:
        plan.executed(one.token, now_ns)
    assert all(plan.may_begin(one.token) for one in staged)
