"""The native plan against its oracle: the same histories to both, and the same answer to every question."""

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import podium_native
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.clock import NS_PER_MS, NS_PER_S
from server.core.errors import Expired, Overloaded
from server.dataplane.costs import Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.limit import InflightLimit
from server.dataplane.plan import Release
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket
from tests.dataplane import test_executors, test_plan
from tests.dataplane.histories import rules, ticket
from tests.dataplane.twin_plans import TwinPlan


def scenarios() -> list[Any]:
    """Every test of plan.py itself that makes a plan."""
    return [
        pytest.param(module, function, id=name)
        for module in (test_plan, test_executors)
        for name, function in vars(module).items()
        if name.startswith("test_") and not inspect.signature(function).parameters
    ]


@pytest.mark.parametrize(("module", "scenario"), scenarios())
def test_every_scenario_of_the_oracle(module: Any, scenario: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Plan", TwinPlan)
    scenario()


@dataclass
class World:
    """What a history needs to remember. `scale_ns` turns its small numbers into times."""

    plan: TwinPlan
    scale_ns: int
    now_ns: int = 10 * NS_PER_S
    waiting: list[Ticket] = field(default_factory=list)
    staged: list[Release] = field(default_factory=list)
    executing: list[Release] = field(default_factory=list)
    ended: list[Release] = field(default_factory=list)

    def step(self, event: tuple[Any, ...]) -> None:
        """One event; what it names is found by its number, whatever is there."""
        name, *arguments = event
        getattr(self, name)(*arguments)

    def submit(self, queue: int, rows: int, budget: int | None, priority: int, width: int, age: int) -> None:
        queues = list(self.plan.queues.values())
        if not queues:
            return
        chosen = queues[queue % len(queues)]
        made = ticket(
            rows=min(rows, chosen.cap_rows),
            arrival_ns=self.now_ns - age * self.scale_ns,
            deadline_ns=NO_DEADLINE_NS if budget is None else min(self.now_ns + budget * self.scale_ns, NO_DEADLINE_NS - 1),
            priority=priority,
            queue_id=chosen.rules.queue_id,
            width=width,
            size_class=width % chosen.rules.size_classes,  # of one shape, so of one class
        )
        try:
            self.plan.admit(made, self.now_ns)
        except (Overloaded, Expired):
            return
        self.waiting.append(made)

    def cancel(self, index: int) -> None:
        if self.waiting:
            self.plan.withdraw(self.waiting.pop(index % len(self.waiting)))

    def wait(self, ns: int) -> None:
        self.now_ns += ns * self.scale_ns

    def leap(self, ns: int) -> None:
        self.now_ns += ns

    def decide(self) -> None:
        decision = self.plan.decide(self.now_ns)
        gone = set(decision.late)
        if decision.release is not None:
            gone.update(decision.release.tickets)
            (self.staged if decision.release.staged else self.executing).append(decision.release)
        self.waiting = [one for one in self.waiting if one not in gone]

    def enter(self, index: int) -> None:
        if self.executing:
            self.plan.enter(self.executing[index % len(self.executing)].token)

    def begin(self, index: int, gather: int) -> None:
        if self.staged:
            one = self.staged[index % len(self.staged)]
            if self.plan.may_begin(one.token):
                self.plan.begin(one.token, self.now_ns, gather * self.scale_ns)
                self.staged.remove(one)
                self.executing.append(one)

    def end(self, index: int) -> None:
        if self.executing:
            self.ended.append(self.executing.pop(index % len(self.executing)))
            self.plan.executed(self.ended[-1].token, self.now_ns)

    def end_again(self, index: int) -> None:
        if self.ended:
            self.plan.executed(self.ended[index % len(self.ended)].token, self.now_ns)

    def observe(self, index: int, took: int, features: int) -> None:
        if self.ended:
            one = self.ended[index % len(self.ended)]
            queue_id = one.queue.rules.queue_id
            learnt = (queue_id, one.rows, took * self.scale_ns, min(took, features) * self.scale_ns, self.now_ns)
            size_class = one.tickets[0].size_class
            if queue_id not in self.plan.queues:
                with pytest.raises(LookupError):
                    self.plan.observe(*learnt, size_class=size_class)
            elif self.plan.queues[queue_id] is one.queue:  # its id may be another one's by now
                self.plan.observe(*learnt, size_class=size_class)

    def deliver(self, took: int) -> None:
        self.plan.observe_delivery(took * self.scale_ns)

    def open(self, one: QueueRules) -> None:
        if one.queue_id in self.plan.queues:
            with pytest.raises(ValueError, match="open already"):
                self.plan.add_queue(one)
        else:
            self.plan.add_queue(one)

    def remove(self, index: int) -> None:
        idle = [queue_id for queue_id, queue in self.plan.queues.items() if not queue.waiting]
        if idle:
            self.plan.remove_queue(idle[index % len(idle)])


@st.composite
def some_rules(draw: st.DrawFn, scale_ns: int) -> QueueRules:
    max_batch = draw(st.sampled_from((0, 1, 4, 8)))
    buckets = rules(max_batch=max_batch).buckets
    count = len(buckets) * draw(st.sampled_from((1, 1, 2, 3)))
    costs = draw(st.lists(st.sampled_from((0, 3, 10, 20, 100, 5_000)), min_size=count, max_size=count))
    return rules(
        draw(st.integers(1, 5)),
        max_batch=max_batch,
        costs_ns=tuple(cost * scale_ns for cost in costs),
        max_requests=draw(st.sampled_from((0, 0, 3))),
        early_drop=draw(st.sampled_from((True, True, False))),
        queue_delay_ns=draw(st.sampled_from((0, 0, 30))) * scale_ns,
        decoupled=draw(st.sampled_from((False, False, False, True))),
        instances=draw(st.integers(1, 3)),
        share=draw(st.sampled_from((0.0, 0.0, 0.1, 0.3, 0.7))),
    )


NUMBERS = st.integers(0, 30)
BUDGETS = st.one_of(st.none(), st.integers(-1, 60), st.integers(60, 900), st.integers(1_000, 20_000), st.just(2**62))
LEAPS = st.sampled_from((NS_PER_S, 3 * NS_PER_S, 31 * NS_PER_S, -NS_PER_MS, 10**13))
EVENTS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "submit": (12, (NUMBERS, st.integers(1, 8), BUDGETS, st.sampled_from((0, 0, 0, 1, -1)), st.integers(2, 4), NUMBERS)),
    "decide": (7, ()),
    "cancel": (1, (NUMBERS,)),
    "wait": (3, (st.integers(-3, 40),)),
    "leap": (1, (LEAPS,)),
    "enter": (1, (NUMBERS,)),
    "begin": (3, (NUMBERS, NUMBERS)),
    "end": (4, (NUMBERS,)),
    "end_again": (1, (NUMBERS,)),
    "observe": (2, (NUMBERS, st.integers(0, 300), st.integers(0, 100))),
    "deliver": (1, (st.integers(0, 50),)),
    "remove": (1, (NUMBERS,)),
}
"""How often each happens, and what it is given."""
NAMES = st.sampled_from([name for name, (weight, _) in EVENTS.items() for _ in range(weight)])


@st.composite
def histories(draw: st.DrawFn) -> tuple[World, list[tuple[Any, ...]]]:
    scale_ns = draw(st.sampled_from((1, 997, NS_PER_MS)))
    plan = TwinPlan(Estimate(), draw(st.integers(1, 2)), density=draw(st.sampled_from((False, False, True))))
    for one in draw(st.lists(some_rules(scale_ns), min_size=1, max_size=4, unique_by=lambda one: one.queue_id)):
        plan.add_queue(one)
    steps: list[tuple[Any, ...]] = [("open", draw(some_rules(scale_ns)))]
    for _ in range(draw(st.integers(1, 80))):  # lists of no stated length are a handful long
        name = draw(NAMES)
        steps.append((name, *map(draw, EVENTS[name][1])))
    steps.insert(draw(st.integers(0, len(steps))), steps.pop(0))
    return World(plan, scale_ns), steps


@settings(max_examples=300, deadline=None)
@given(histories())
def test_both_agree_over_any_history(history: tuple[World, list[tuple[Any, ...]]]) -> None:
    world, steps = history
    for event in steps:
        world.step(event)


@pytest.mark.parametrize("seed", range(4))
def test_both_agree_on_long_queues(seed: int) -> None:
    """Hundreds wait, in few lanes and in many, and enter and leave at every place."""
    chance = random.Random(seed)
    plan = TwinPlan(Estimate(), slots=2 + seed % 2, density=seed == 3)
    plan.add_queue(rules(1, costs_ns=(10, 12, 15, 20), instances=2))
    classes = (10, 11, 13, 16, 22, 35, 60, 20, 22, 26, 32, 44, 70, 120)
    plan.add_queue(rules(2, max_batch=64, costs_ns=classes, share=0.5, early_drop=False))
    world = World(plan, scale_ns=1000)
    widths = (2, 60)[seed % 2]
    for round_ in range(6):
        for _ in range(120):
            budget = chance.choice((None, chance.randint(1, 50), chance.randint(500, 50_000)))
            priority = chance.choice((0, 0, 1, 2))
            world.submit(chance.randint(0, 1), chance.randint(1, 8), budget, priority, 1 + chance.randint(1, widths), 0)
            if chance.random() < 0.3 * (round_ % 3):
                world.cancel(chance.randrange(10_000))
        for _ in range(chance.randint(2, 30)):
            world.decide()
            world.begin(0, 3)
            world.wait(chance.randint(0, 20))
            world.end(chance.randint(0, 3))
    while plan.waiting:
        world.decide()
        world.end(0)
        world.begin(0, 3)
    assert not any(queue.lanes for queue in plan.queues.values())


def test_of_equally_dense_lanes_both_take_the_first() -> None:
    plan = TwinPlan(Estimate(), density=True)
    for queue_id in (1, 2):
        plan.add_queue(rules(queue_id, costs_ns=(100,) * 4, early_drop=False))
    for queue_id, width in ((2, 2), (1, 3), (1, 2)):
        plan.admit(ticket(queue_id=queue_id, width=width, deadline_ns=150), 0)
    first = plan.decide(0).release
    assert first is not None
    assert (first.queue.rules.queue_id, first.tickets[0].shape_key[0][1]) == (1, (3,))


OPEN_LIMIT = st.lists(
    st.one_of(st.tuples(st.just("enter"), st.integers(0, 200)), st.tuples(st.just("leave"), st.integers(0, 9)))
)


@given(st.integers(0, 5), st.integers(0, 300), OPEN_LIMIT)
def test_both_limits_agree(max_requests: int, max_bytes: int, history: list[tuple[str, int]]) -> None:
    python, native = InflightLimit(max_requests, max_bytes), podium_native.InflightLimit(max_requests, max_bytes)
    inside: list[int] = []
    for name, number in history:
        if name == "enter":
            expected = "entered"
            try:
                python.enter(number)
            except Overloaded as refusal:
                expected = "too_many_requests" if "requests are in flight" in str(refusal) else "too_many_bytes"
            else:
                inside.append(number)
            assert native.enter(number) == expected
        elif inside:
            one = inside.pop(number % len(inside))
            python.leave(one)
            native.leave(one)
        assert (native.requests, native.bytes) == (python.requests, python.bytes)


def test_a_limit_is_not_fooled_by_sizes_that_overflow() -> None:
    limit = podium_native.InflightLimit(10, 100)
    assert limit.enter(2**64 - 1) == "entered"  # alone
    assert limit.enter(2) == "too_many_bytes"
    limit.leave(2**64 - 1)
    assert (limit.enter(50), limit.enter(2**64 - 1)) == ("entered", "too_many_bytes")


NATIVE_RULES: dict[str, Any] = {
    "queue_id": 1,
    "buckets": (1, 2),
    "costs_ns": (10, 20),
    "max_batch": 2,
    "max_requests": 0,
    "queue_delay_ns": 0,
    "padding": True,
    "early_drop": True,
    "decoupled": False,
    "instances": 1,
    "share": 0.0,
}


@pytest.mark.parametrize(
    "wrong",
    [{"buckets": ()}, {"buckets": (2, 1)}, {"buckets": (0, 1)}, {"costs_ns": (1,)}, {"costs_ns": ()}, {"instances": 0}],
    ids=str,
)
def test_rules_that_cannot_be_planned_with_are_refused(wrong: dict[str, Any]) -> None:
    plan = podium_native.Plan()
    with pytest.raises(ValueError, match=r"bucket|instance"):
        plan.add_queue(**(NATIVE_RULES | wrong))
    plan.add_queue(**NATIVE_RULES)


def test_what_is_not_there_is_refused_and_changes_nothing() -> None:
    plan = podium_native.Plan()
    plan.add_queue(**NATIVE_RULES)
    arrival = (0, NO_DEADLINE_NS, 0, 0)
    for queue_id, rows in ((2, 1), (1, 0), (1, 3)):
        with pytest.raises(LookupError):
            plan.admit(7, queue_id, "", rows, *arrival)
    with pytest.raises(LookupError):
        plan.admit(7, 1, "", 1, *arrival, size_class=1)
    with pytest.raises(LookupError):
        plan.observe(1, 1, 10, 0, 10, size_class=1)
    assert plan.admit(7, 1, "", 1, *arrival) == ("admitted", 0)
    with pytest.raises(ValueError, match="wait in queue"):
        plan.remove_queue(1)
    plan.withdraw(7)
    for name, missing in (("withdraw", 7), ("remove_queue", 2), ("enter", 1), ("may_begin", 1)):
        with pytest.raises(LookupError):
            getattr(plan, name)(missing)
    plan.remove_queue(1)
    assert (plan.waiting, plan.executors) == (0, 1)


def test_a_queue_is_as_new_after_a_burst() -> None:
    plan = podium_native.Plan()
    plan.add_queue(**NATIVE_RULES)
    for burst in range(2):
        numbers = range(burst * 10_000, burst * 10_000 + 5_000)
        for number in numbers:
            plan.admit(number, 1, "", 1, 0, NO_DEADLINE_NS - 1, number % 2, 0)
        for number in reversed(numbers):
            plan.withdraw(number)
        assert plan.counts(1) == (0, (burst + 1) * 5_000, 0, 0)
    assert plan.lanes(1) == []


def test_times_beyond_64_bits_are_as_late_as_can_be() -> None:
    plan = podium_native.Plan()
    plan.add_queue(**(NATIVE_RULES | {"costs_ns": (2**63 - 1, 2**63 - 1), "early_drop": False}))
    for number in range(40):
        plan.admit(number, 1, "", 2, 0, NO_DEADLINE_NS, 0, 0)
    plan.add_queue(**(NATIVE_RULES | {"queue_id": 2}))
    outcome, late_ns = plan.admit(99, 2, "", 1, 0, NO_DEADLINE_NS - 1, 1, 0)
    assert outcome == "predicted"
    assert late_ns > 2**61
    released = plan.decide(1)[1]
    assert released is not None
    assert released[:4] == (1, [0], 2, "full")
