"""One plan of each kind under one name: whatever is asked of it is asked of both, and both must agree on everything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import podium_native

from server.core.clock import NS_PER_S
from server.core.errors import Expired, Overloaded, PodiumError
from server.dataplane.costs import CostModel, Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.plan import Decision, Plan
from server.dataplane.ticket import Ticket


class TwinPlan(Plan):
    """`server.dataplane.plan.Plan`, and beside it the native one: compared after every step."""

    def __init__(self, delivery: Estimate, slots: int = 1, *, density: bool = False) -> None:
        super().__init__(delivery, slots, density=density)
        self.native = podium_native.Plan(slots, density)
        self.now_ns = 0
        self._inside = False
        self._finish_ns = 0
        self._staging = _TaughtEstimate(self)
        self.numbers: dict[Ticket, int] = {}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What estimates learn meanwhile, the native plan learns by itself."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def taught(self, teach: Callable[[], None]) -> None:
        """A test has taught an estimate by hand."""
        if not self._inside:
            teach()

    def add_queue(self, rules: QueueRules) -> None:
        def native() -> None:
            self.native.add_queue(
                queue_id=rules.queue_id,
                buckets=rules.buckets,
                costs_ns=rules.costs_ns,
                max_batch=rules.signature.max_batch,
                max_requests=rules.max_requests,
                queue_delay_ns=rules.queue_delay_ns,
                padding=rules.padding,
                early_drop=rules.early_drop,
                decoupled=rules.decoupled,
                instances=rules.instances,
                share=rules.share,
            )

        self._both(lambda: Plan.add_queue(self, rules), native)
        self.queues[rules.queue_id].costs[:] = [_TaughtCosts(self, rules, each) for each in range(rules.size_classes)]

    def remove_queue(self, queue_id: int) -> None:
        self._both(lambda: Plan.remove_queue(self, queue_id), lambda: self.native.remove_queue(queue_id))

    def admit(self, ticket: Ticket, now_ns: int) -> None:
        self.now_ns = now_ns
        number = self.numbers.setdefault(ticket, len(self.numbers))
        native = self.native.admit(
            number,
            ticket.queue_id,
            repr(ticket.shape_key),
            ticket.rows,
            ticket.arrival_ns,
            ticket.deadline_ns,
            ticket.priority,
            now_ns,
            ticket.size_class,
        )
        expected = ("admitted", 0)
        try:
            with self.inside():
                super().admit(ticket, now_ns)
        except PodiumError as refusal:
            expected = self._outcome(refusal, native[1], ticket)
            raise
        finally:
            assert native == expected
            self.agree()

    def _outcome(self, refusal: PodiumError, native_ns: int, ticket: Ticket) -> tuple[str, int]:
        if isinstance(refusal, Overloaded):
            assert refusal.retry_after_s == (native_ns / NS_PER_S or None)
            return "queue_full", native_ns
        assert isinstance(refusal, Expired)
        if str(refusal) == "Request timeout expired":
            return "passed", 0
        return "predicted", self._finish_ns + self._delivery.predict_ns() - ticket.deadline_ns

    def _predict_finish(self, *arguments: Any) -> tuple[int, int]:
        self._finish_ns, rows = super()._predict_finish(*arguments)
        return self._finish_ns, rows

    def withdraw(self, ticket: Ticket) -> None:
        if self._inside:  # `decide` drops late tickets by this
            super().withdraw(ticket)
        else:
            self._both(lambda: Plan.withdraw(self, ticket), lambda: self.native.withdraw(self.numbers[ticket]))

    def decide(self, now_ns: int) -> Decision:
        self.now_ns = now_ns
        late, release, wait_until_ns = self.native.decide(now_ns)
        with self.inside():
            decision = super().decide(now_ns)
        assert late == [self.numbers[one] for one in decision.late]
        assert wait_until_ns == decision.wait_until_ns
        assert (release is None) == (decision.release is None)
        if decision.release is not None:
            one = decision.release
            tickets = [self.numbers[ticket] for ticket in one.tickets]
            assert release == (one.queue.rules.queue_id, tickets, one.rows, one.reason, one.token, one.staged)
        self.agree()
        return decision

    def enter(self, token: int) -> None:
        self._both(lambda: Plan.enter(self, token), lambda: self.native.enter(token))

    def may_begin(self, token: int) -> bool:
        may = super().may_begin(token)
        assert self._inside or self.native.may_begin(token) == may
        return may

    def begin(self, token: int, now_ns: int, gather_ns: int) -> None:
        self._both(lambda: Plan.begin(self, token, now_ns, gather_ns), lambda: self.native.begin(token, now_ns, gather_ns))

    def executed(self, token: int, now_ns: int) -> None:
        self._both(lambda: Plan.executed(self, token, now_ns), lambda: self.native.executed(token, now_ns))

    def observe(self, queue_id: int, rows: int, took_ns: int, features_ns: int, now_ns: int, *, size_class: int = 0) -> None:
        learnt = (queue_id, rows, took_ns, features_ns, now_ns)
        self._both(lambda: Plan.observe(self, *learnt, size_class=size_class), lambda: self.native.observe(*learnt, size_class))

    def observe_delivery(self, took_ns: int) -> None:
        """Learn how long answers need to leave."""
        self._both(lambda: self._delivery.observe(took_ns), lambda: self.native.observe_delivery(took_ns))

    def _both(self, python: Callable[[], None], native: Callable[[], None]) -> None:
        """The same step of both; where one refuses, the other does in the same way."""
        kinds = (ValueError, LookupError)
        try:
            with self.inside():
                python()
        except kinds as refusal:
            kind = next(kind for kind in kinds if isinstance(refusal, kind))
            try:
                native()
            except kind:
                raise refusal from None
            raise AssertionError(f"only Python refuses: {refusal!r}") from refusal
        native()
        self.agree()

    def agree(self) -> None:
        """Everything that decides the future is the same in both."""
        native = self.native
        with self.inside():
            assert (native.waiting, native.executors, native.beginning) == (self.waiting, self.executors, self.beginning)
            for takers in (False, True):
                assert native.stands_still(takers) == self.stands_still(takers=takers)
            for instances in (1, 3):
                assert native.threads_with(instances) == self.threads_with(instances)
            assert native.staging_ns() == self._staging.predict_ns()
            assert native.delivery_ns() == self._delivery.predict_ns()
            everybody: list[int] = []
            for queue_id, queue in self.queues.items():
                rows = sum(lane.rows for lane in queue.lanes.values())
                assert native.counts(queue_id) == (queue.waiting, queue.open, queue.running, rows)
                lanes = [(lane.rows, [self.numbers[one] for one in lane.tickets]) for lane in queue.lanes.values()]
                assert native.lanes(queue_id) == lanes
                everybody += [number for _, numbers in lanes for number in numbers]
                predicted = [
                    (costs.predict_ns(size), costs.on_trial(size, self.now_ns))
                    for costs in queue.costs
                    for size in queue.rules.buckets
                ]
                for lane in queue.lanes.values():
                    assert lane.costs is queue.costs[lane.tickets[0].size_class]
                assert native.predictions(queue_id, self.now_ns) == predicted
                assert native.lead_ns(queue_id) == queue.lead.predict_ns()
                assert native.share_left_ns(queue_id) == queue.share._left_ns
            assert native.all_waiting() == everybody


class _TaughtCosts(CostModel):
    """Costs that a test may teach by hand."""

    __slots__ = ("_of", "_plan")

    def __init__(self, plan: TwinPlan, rules: QueueRules, size_class: int) -> None:
        super().__init__(rules.buckets, rules.class_costs_ns(size_class))
        self._plan = plan
        self._of = rules.queue_id, size_class

    def observe(self, rows: int, took_ns: int, now_ns: int) -> None:
        super().observe(rows, took_ns, now_ns)
        self._plan.taught(lambda: self._plan.native.costs_observe(*self._of, rows, took_ns, now_ns))

    def refused(self, rows: int, now_ns: int) -> None:
        super().refused(rows, now_ns)
        self._plan.taught(lambda: self._plan.native.costs_refused(*self._of, rows, now_ns))


class _TaughtEstimate(Estimate):
    """How long gathering takes, which a test may teach by hand."""

    __slots__ = ("_plan",)

    def __init__(self, plan: TwinPlan) -> None:
        super().__init__()
        self._plan = plan

    def observe(self, took_ns: int) -> None:
        super().observe(took_ns)
        self._plan.taught(lambda: self._plan.native.staging_observe(took_ns))
