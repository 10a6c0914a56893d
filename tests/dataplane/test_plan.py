from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.clock import NS_PER_S
from server.core.errors import Expired, Overloaded
from server.dataplane.costs import TRIAL_AFTER_NS, Estimate
from server.dataplane.plan import Decision, Plan
from server.dataplane.ticket import NO_DEADLINE_NS, PATIENCE_NS, Ticket
from tests.dataplane.histories import rules, ticket


def plan_of(*queue_rules: object) -> Plan:
    plan = Plan(Estimate())
    for one in queue_rules or (rules(),):
        plan.add_queue(one)  # type: ignore[arg-type]
    return plan


def release(plan: Plan, now_ns: int = 0) -> list[Ticket]:
    """The tickets of the next batch, which takes no time."""
    return released(plan.decide(now_ns), plan)


def released(decision: Decision, plan: Plan) -> list[Ticket]:
    if decision.release is None:
        return []
    plan.executed(decision.release.token, 0)
    return decision.release.tickets


def test_takes_everything_waiting_up_to_the_cap_and_says_why() -> None:
    plan = plan_of()
    tickets = [ticket(rows=3) for _ in range(4)]
    for one in tickets:
        plan.admit(one, 0)
    first = plan.decide(0).release
    assert first is not None
    assert (first.tickets, first.rows, first.reason) == (tickets[:2], 6, "too_large")
    plan.executed(first.token, 0)
    second = plan.decide(0).release
    assert second is not None
    assert second.reason == "too_large" or second.reason == "drained"
    assert second.tickets == tickets[2:]
    plan.executed(second.token, 0)
    assert plan.decide(0).release is None


def test_a_full_batch_is_called_full() -> None:
    plan = plan_of()
    for _ in range(9):
        plan.admit(ticket(), 0)
    decision = plan.decide(0)
    assert decision.release is not None
    assert (decision.release.rows, decision.release.reason) == (8, "full")


def test_order_is_priority_then_due_then_arrival() -> None:
    plan = plan_of(rules(max_batch=1))
    late = ticket(1, deadline_ns=5_000)
    soon = ticket(2, deadline_ns=3_000)
    patient = ticket(3)
    urgent = ticket(4, deadline_ns=9_000)
    for one in (late, soon, patient, urgent):
        one.priority = 0 if one is urgent else 1
        plan.admit(one, 0)
    assert [release(plan)[0] for _ in range(4)] == [urgent, soon, late, patient]


def test_a_ticket_without_deadline_ages_past_newer_deadlines() -> None:
    plan = plan_of(rules(max_batch=1))
    patient = ticket(arrival_ns=0)
    newer = ticket(arrival_ns=PATIENCE_NS, deadline_ns=PATIENCE_NS + 5)
    plan.admit(newer, PATIENCE_NS)
    plan.admit(patient, PATIENCE_NS)
    assert release(plan, PATIENCE_NS) == [patient]


def test_different_shapes_never_share_a_batch() -> None:
    plan = plan_of()
    wide, narrow, wide2 = ticket(width=5), ticket(width=3), ticket(width=5)
    for one in (wide, narrow, wide2):
        plan.admit(one, 0)
    assert release(plan) == [wide, wide2]
    assert release(plan) == [narrow]
    assert plan.queues[1].lanes == {}


def test_the_most_urgent_version_goes_first() -> None:
    plan = plan_of(rules(1), rules(2))
    calm, pressed = ticket(deadline_ns=9_000), ticket(queue_id=2, deadline_ns=5_000)
    plan.admit(calm, 0)
    plan.admit(pressed, 0)
    assert release(plan) == [pressed]
    assert release(plan) == [calm]


def test_non_batching_versions_run_one_ticket_at_a_time() -> None:
    plan = plan_of(rules(max_batch=0))
    first, second = ticket(), ticket()
    plan.admit(first, 0)
    plan.admit(second, 0)
    assert release(plan) == [first]
    assert release(plan) == [second]


def test_queue_limit() -> None:
    plan = plan_of(rules(max_requests=1))
    plan.admit(ticket(), 0)
    with pytest.raises(Overloaded, match=r"^Exceeds maximum queue size$") as refused:
        plan.admit(ticket(), 0)
    assert refused.value.retry_after_s is None  # nothing is known yet of how long anything takes
    assert plan.queues[1].open == 1


def test_a_full_queue_says_when_what_waits_will_have_run() -> None:
    plan = plan_of(rules(max_requests=3, costs_ns=(NS_PER_S,) * 4))
    for _ in range(3):
        plan.admit(ticket(rows=8), 0)
    with pytest.raises(Overloaded) as refused:
        plan.admit(ticket(), 0)
    assert refused.value.retry_after_s == 3.0


def test_a_passed_deadline_is_refused_at_the_door() -> None:
    plan = plan_of()
    with pytest.raises(Expired, match=r"^Request timeout expired$"):
        plan.admit(ticket(deadline_ns=10), 10)


COSTS = (100, 100, 100, 100)


def test_admission_counts_the_running_batch_and_the_backlog() -> None:
    plan = plan_of(rules(costs_ns=COSTS))
    plan.admit(ticket(rows=8), 0)
    assert plan.decide(0).release is not None  # runs until 100
    with pytest.raises(Expired, match="predicted to finish"):
        plan.admit(ticket(deadline_ns=199), 50)
    plan.admit(ticket(rows=8, deadline_ns=200), 50)
    with pytest.raises(Expired):
        plan.admit(ticket(rows=8, deadline_ns=299), 50)
    plan.admit(ticket(rows=8, deadline_ns=300), 50)
    # more urgent than both: nothing is ahead of it but the running batch
    plan.admit(ticket(rows=8, deadline_ns=200, priority=-1), 50)


def test_admission_counts_more_urgent_work_of_other_versions() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS))
    plan.admit(ticket(rows=8, deadline_ns=200), 0)
    plan.admit(ticket(rows=4, deadline_ns=300), 0)
    with pytest.raises(Expired):
        # the ticket due at 200 comes first, the one due at 300 does not
        plan.admit(ticket(queue_id=2, rows=8, deadline_ns=299), 199)
    plan.admit(ticket(queue_id=2, rows=8, deadline_ns=100), 0)


def test_early_drop_refuses_what_the_full_batch_would_make_late_and_refills() -> None:
    plan = plan_of(rules(costs_ns=(100, 100, 100, 200)))
    doomed = ticket(1, deadline_ns=150)
    plan.admit(doomed, 0)
    others = [ticket(2, deadline_ns=1_000) for _ in range(8)]
    for one in others:
        plan.admit(one, 0)
    decision = plan.decide(0)
    assert decision.late == [doomed]
    assert decision.release is not None
    assert decision.release.tickets == others
    plan.admit(ticket(deadline_ns=300), 0)
    with pytest.raises(Expired):
        plan.admit(ticket(deadline_ns=299), 0)


def test_small_batches_that_run_do_not_keep_a_large_one_refused_for_ever() -> None:
    plan = plan_of(rules(costs_ns=(100, 100, 100, 5_000)))  # 8 rows were slow once
    costs = plan.queues[1].costs[0]
    large = None
    for now_ns in range(0, 3 * TRIAL_AFTER_NS, TRIAL_AFTER_NS // 10):
        plan.admit(ticket(rows=1, deadline_ns=now_ns + 1_000), now_ns)
        small = plan.decide(now_ns).release
        assert small is not None
        assert len(small.tickets) == 1
        costs.observe(1, 100, now_ns + 100)
        plan.executed(small.token, now_ns + 100)
        try:
            large = ticket(rows=8, deadline_ns=now_ns + 1_000)
            plan.admit(large, now_ns)
        except Expired:
            continue
        break
    assert release(plan, now_ns) == [large]


def test_without_early_drop_only_the_expired_are_refused() -> None:
    plan = plan_of(rules(costs_ns=(100, 100, 100, 200), early_drop=False))
    expired, tight = ticket(deadline_ns=40), ticket(deadline_ns=60)
    plan.admit(expired, 0)
    plan.admit(tight, 0)
    decision = plan.decide(50)
    assert decision.late == [expired]
    assert decision.release is not None
    assert decision.release.tickets == [tight]


def test_when_everything_is_late_the_lane_is_left_and_the_next_one_runs() -> None:
    plan = plan_of(rules(1, costs_ns=COSTS), rules(2, costs_ns=COSTS))
    hopeless = ticket(deadline_ns=120)
    fine = ticket(queue_id=2, deadline_ns=500)
    plan.admit(hopeless, 0)
    plan.admit(fine, 0)
    decision = plan.decide(60)
    assert decision.late == [hopeless]
    assert decision.release is not None
    assert decision.release.tickets == [fine]


def test_a_prediction_that_refuses_everything_is_tried() -> None:
    """A cost measured far too high would otherwise refuse for ever, since only running can correct it."""
    plan = plan_of(rules(costs_ns=(10**7,) * 4))
    with pytest.raises(Expired):
        plan.admit(ticket(deadline_ns=1_000), 0)
    later = TRIAL_AFTER_NS
    trial = ticket(deadline_ns=later + 1_000)
    plan.admit(trial, later)
    assert release(plan, later) == [trial]
    plan.queues[1].costs[0].observe(1, 10**9, later + 10**9)  # the prediction was right
    with pytest.raises(Expired):
        plan.admit(ticket(deadline_ns=later + 1_000), later)


def test_queue_delay_waits_until_full_or_old_or_pressed() -> None:
    plan = plan_of(rules(queue_delay_ns=100, costs_ns=(10, 10, 10, 10)))
    first = ticket(arrival_ns=5)
    plan.admit(first, 5)
    assert plan.decide(6).wait_until_ns == 105
    decision = plan.decide(105)
    assert decision.release is not None
    assert (released(decision, plan), decision.release.reason) == ([first], "delay")
    pressed = ticket(arrival_ns=200, deadline_ns=260)
    plan.admit(pressed, 200)
    assert plan.decide(200).wait_until_ns == 240
    assert release(plan, 240) == [pressed]
    for _ in range(8):
        plan.admit(ticket(arrival_ns=300), 300)
    full = plan.decide(300).release
    assert full is not None
    assert full.reason == "full"


def test_of_two_delayed_lanes_the_earlier_one_sets_the_alarm() -> None:
    plan = plan_of(rules(1, queue_delay_ns=100), rules(2, queue_delay_ns=50))
    plan.admit(ticket(arrival_ns=0), 0)
    plan.admit(ticket(queue_id=2, arrival_ns=0), 0)
    assert plan.decide(1).wait_until_ns == 50


def test_a_queue_id_is_taken_once() -> None:
    plan = plan_of(rules(1))
    with pytest.raises(ValueError, match="open already"):
        plan.add_queue(rules(1))


@dataclass
class World:
    """Drives one plan by hand and keeps the books that the plan must agree with."""

    plan: Plan = field(default_factory=lambda: plan_of(rules(1, costs_ns=(5, 6, 8, 12)), rules(2, max_batch=0, costs_ns=(7,))))
    waiting: list[Ticket] = field(default_factory=list)
    ended: list[Ticket] = field(default_factory=list)
    now_ns: int = 0


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("submit"),
                st.integers(1, 8),
                st.integers(1, 60) | st.none(),
                st.integers(0, 2),
                st.integers(1, 2),
                st.integers(2, 3),
            ),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
            st.tuples(st.just("pass"), st.integers(0, 40)),
            st.tuples(st.just("decide")),
        ),
        max_size=60,
    )
)
def test_books_balance_over_any_history(history: list[tuple[object, ...]]) -> None:
    world = World()
    plan = world.plan
    for event in history:
        match event:
            case ("submit", int(rows), budget, int(priority), int(queue_id), int(width)):
                deadline = NO_DEADLINE_NS if budget is None else world.now_ns + budget  # type: ignore[operator]
                rows = rows if queue_id == 1 else 1
                one = ticket(
                    0, rows, arrival_ns=world.now_ns, deadline_ns=deadline, priority=priority, queue_id=queue_id, width=width
                )
                try:
                    plan.admit(one, world.now_ns)
                except Expired:
                    assert budget is not None
                else:
                    world.waiting.append(one)
            case ("cancel", int(index)) if world.waiting:
                one = world.waiting.pop(index % len(world.waiting))
                plan.withdraw(one)
                world.ended.append(one)
            case ("pass", int(ns)):
                world.now_ns += ns
            case ("decide",):
                before = list(world.waiting)
                decision = plan.decide(world.now_ns)
                gone = decision.late + (decision.release.tickets if decision.release else [])
                assert all(one.deadline_ns < NO_DEADLINE_NS for one in decision.late)
                if decision.release:
                    taken = released(decision, plan)
                    assert sum(one.rows for one in taken) == decision.release.rows <= 8
                    assert len({(one.queue_id, one.shape_key) for one in taken}) == 1
                    assert all(one.deadline_ns > world.now_ns for one in taken)
                    most_urgent = min((one.priority, one.due_ns) for one in before if one not in decision.late)
                    assert (taken[0].priority, taken[0].due_ns) == most_urgent
                else:
                    assert len(gone) == len(before), "work is never left behind while the device is free"
                for one in gone:
                    world.waiting.remove(one)
                world.ended.extend(gone)
        for queue_id, queue in plan.queues.items():
            mine = [one for one in world.waiting if one.queue_id == queue_id]
            assert queue.waiting == len(mine)
            assert sum(lane.rows for lane in queue.lanes.values()) == sum(one.rows for one in mine)
            for lane in queue.lanes.values():
                assert lane.keys == sorted(lane.keys)
                assert len(lane.keys) == len(lane.tickets) > 0
    assert len(set(map(id, world.ended))) == len(world.ended)


def test_a_lane_has_the_costs_of_its_size_class() -> None:
    """The same rows of a larger size take ten times as long, and what is learnt of one size says nothing of the other."""
    plan = plan_of(rules(costs_ns=(10, 20, 30, 40, 100, 200, 300, 400)))
    plan.admit(ticket(rows=8, deadline_ns=50), 0)
    with pytest.raises(Expired, match="predicted to finish"):
        plan.admit(ticket(rows=8, width=3, size_class=1, deadline_ns=50), 0)
    large = ticket(rows=4, width=3, size_class=1, deadline_ns=340)
    plan.admit(large, 0)  # behind the others: 40 + 300
    taken = plan.decide(0).release
    assert taken is not None
    plan.executed(taken.token, 40)
    plan.observe(1, 8, 30, 0, 40)
    plan.observe(1, 4, 500, 0, 40, size_class=1)
    assert [costs.predict_ns(8) for costs in plan.queues[1].costs] == [41, 400]
    assert plan.queues[1].costs[1].predict_ns(4) > 300
    decision = plan.decide(40)  # what took longer than was measured makes it late
    assert (decision.late, decision.release) == ([large], None)
