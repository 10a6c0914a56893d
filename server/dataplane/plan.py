"""Which tickets run next on a device, which are refused, and when to look again. **Pure**: the oracle for every data plane.

All queues of one device are planned together, because they share its one executor. Tickets whose rows can be concatenated
(same version, same non-batch shapes once padded) wait in one *lane*, sorted by (priority, due time, arrival order). A device
runs as many batches at once as its version with the most instances has (`executors`), and holds one more staged where it has
two *slots*.

The rules, in order (PERFORMANCE.md says which simulations chose them; Nexus, SOSP 2019, for early drop):
1. admission refuses at once what is predicted to finish after its deadline;
2. when the device is free, the lane with the most urgent head goes next, and everything waiting in it up to the largest
   batch is taken: work-conserving, never a timer (unless a queue delay is set);
3. tickets that would be late in that full batch are dropped, and the batch is refilled. Shrinking the batch to save its head
   instead starves everybody behind it;
4. a version with a share of the device has a claim while it stays within it (see `share`); a share that is not used is
   everybody's;
5. with `density`, more work than can be done in time is served by the most answers per device time instead of by the most
   urgent deadline. That answers a few percent more, all of them of busy versions: quiet ones may get nothing at all.
"""

from bisect import bisect_left
from dataclasses import dataclass

from server.core.clock import NS_PER_S
from server.core.errors import Expired, Overloaded
from server.dataplane.costs import CostModel, Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.lanes import Key, Lane, Queue, backlog_ns, density, prefix, ripe_at_ns
from server.dataplane.share import Share
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket


@dataclass(frozen=True, slots=True)
class Release:
    """Tickets that run now, as one batch, or next if `staged`. `reason` is why the batch was closed: full, drained, delay or
    too_large. `token` names it until `executed`."""

    queue: Queue
    tickets: list[Ticket]
    rows: int
    reason: str
    token: int
    staged: bool


@dataclass(slots=True)
class _Running:
    """A batch that began at `begun_ns` and takes about `took_ns`; one that is staged has yet to begin."""

    queue: Queue
    took_ns: int
    begun_ns: int
    staged: bool
    entered: bool = False

    @property
    def until_ns(self) -> int:
        return self.begun_ns + self.took_ns


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. `late` are tickets to refuse; without a `release`, look again at `wait_until_ns` or the next arrival."""

    late: list[Ticket]
    release: Release | None
    wait_until_ns: int | None


class Plan:
    """The queues of one device. Ownership: the data plane, under its lock.

    `delivery` estimates how long answers need from the end of an execution until they have left: they too must be in time.
    """

    def __init__(self, delivery: Estimate, slots: int = 1, *, density: bool = False) -> None:
        """`slots` 2: the next batch is gathered while one runs; 3: and the answers of the one before are dealt out as well."""
        self.queues: dict[int, Queue] = {}
        self.executors = 1
        self._slots = slots
        self._density = density
        self._delivery = delivery
        self._staging = Estimate()
        self._arrivals = 0
        self._tokens = 0
        self._running: dict[int, _Running] = {}
        self._keys: dict[Ticket, tuple[Lane, Key]] = {}

    def threads_with(self, instances: int) -> int:
        """How many engine threads the device can use, once it has a version of so many instances."""
        return max(self.executors, instances) + self._slots - 1

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._keys)

    def add_queue(self, rules: QueueRules) -> None:
        """Begin to plan for a queue. Raises: ValueError if its id is taken."""
        if rules.queue_id in self.queues:
            raise ValueError(f"queue {rules.queue_id} is open already")
        cap = rules.buckets[-1] if rules.signature.max_batch else 1
        costs = [CostModel(rules.buckets, rules.class_costs_ns(size_class)) for size_class in range(rules.size_classes)]
        self.queues[rules.queue_id] = Queue(rules, costs, cap, Share(rules.share))
        self._count_executors()

    def remove_queue(self, queue_id: int) -> None:
        """Forget a queue without tickets."""
        del self.queues[queue_id]
        self._count_executors()

    def _count_executors(self) -> None:
        self.executors = max((queue.rules.instances for queue in self.queues.values()), default=1)

    def admit(self, ticket: Ticket, now_ns: int) -> None:
        """Let a ticket wait in its queue.

        Raises: Overloaded if the queue is full, Expired if its deadline passed or cannot be met; then nothing has changed.
        """
        queue = self.queues[ticket.queue_id]
        limit = queue.rules.max_requests
        if limit and queue.waiting >= limit:
            waits_ns = sum(backlog_ns(lane, len(lane.tickets)) for lane in queue.lanes.values()) // self.executors
            raise Overloaded("Exceeds maximum queue size", waits_ns / NS_PER_S or None)
        if ticket.deadline_ns <= now_ns:
            raise Expired("Request timeout expired")
        self._arrivals += 1
        key = (ticket.priority, ticket.due_ns, self._arrivals)
        lane, costs = queue.lanes.get(ticket.shape_key), queue.costs[ticket.size_class]
        if queue.rules.early_drop and ticket.deadline_ns < NO_DEADLINE_NS and not self._density:
            finish_ns, batch_rows = self._predict_finish(queue, lane, costs, key, ticket.rows, now_ns)
            late_ns = finish_ns + self._delivery.predict_ns() - ticket.deadline_ns
            if late_ns > 0 and not costs.on_trial(batch_rows, now_ns):
                costs.refused(batch_rows, now_ns)
                raise Expired(f"Request timeout expired: predicted to finish {late_ns / 1e6:.3f} ms after its deadline")
        if lane is None:
            lane = queue.lanes[ticket.shape_key] = Lane(queue, ticket.shape_key, costs)
        # bisect and one memory move in C beat a heap here, and cancelling needs no tombstones
        index = bisect_left(lane.keys, key)
        lane.keys.insert(index, key)
        lane.tickets.insert(index, ticket)
        lane.rows += ticket.rows
        queue.waiting += 1
        queue.open += 1
        queue.open_rows += ticket.rows
        self._keys[ticket] = (lane, key)

    def finish_ns(self, queue: Queue, ticket: Ticket, now_ns: int) -> int | None:
        """When a ticket would be executed, were it admitted now; None where that is not known."""
        if queue.rules.decoupled:
            return None  # how long a stream of answers takes says nothing about the next one
        key = (ticket.priority, ticket.due_ns, self._arrivals + 1)
        lane, costs = queue.lanes.get(ticket.shape_key), queue.costs[ticket.size_class]
        finish_ns, batch_rows = self._predict_finish(queue, lane, costs, key, ticket.rows, now_ns)
        return finish_ns if costs.predict_ns(batch_rows) else None

    def withdraw(self, ticket: Ticket) -> None:
        """Take a waiting ticket out. It no longer waits, but is open until it has its answer."""
        lane, key = self._keys.pop(ticket)
        index = bisect_left(lane.keys, key)
        del lane.keys[index], lane.tickets[index]
        self._left(lane, [ticket])

    def decide(self, now_ns: int) -> Decision:
        """What the device should do now. Taken and late tickets have left their lanes when this returns."""
        executing = sum(not one.staged for one in self._running.values())
        # a staged batch that may begin has its executor, though its thread may not have woken up yet
        staged = executing + self.beginning >= self.executors
        if staged:
            if not self._keys or len(self._running) - executing >= min(self._slots - 1, 1):
                return Decision([], None, None)
            # as late as it can be: what arrives until then rides along
            ends_ns = [one.until_ns for one in self._running.values() if not one.staged]
            stage_ns = min(ends_ns, default=now_ns) - self._staging.predict_ns()
            if now_ns < stage_ns:
                return Decision([], None, stage_ns)
        late: list[Ticket] = []
        while True:
            lane, wait_until_ns = self._next_lane(now_ns, staged=staged)
            if lane is None:
                return Decision(late, None, wait_until_ns)
            release = self._fill(lane, now_ns, late, staged=staged)
            if release is not None:
                return Decision(late, release, None)

    @property
    def beginning(self) -> int:
        """Staged batches that may run now, and whose threads have yet to notice."""
        return sum(self.may_begin(token) for token, one in self._running.items() if one.staged)

    def stands_still(self, *, takers: bool) -> bool:
        """Whether an executor of a device with a second slot has nothing to do though another thread is about to change that:
        with a batch that is gathered or may begin, or as one of the `takers` that look for work.
        """
        if self._slots == 1:
            return False
        running = self._running.values()
        coming = self.beginning > 0 or any(not one.staged and not one.entered for one in running)
        return (coming or (takers and bool(self._keys))) and sum(one.entered for one in running) < self.executors

    def enter(self, token: int) -> None:
        """A batch that is not staged any more is gathered, and goes to the device."""
        self._running[token].entered = True

    def may_begin(self, token: int) -> bool:
        """Whether a staged batch may run now."""
        staged = self._running[token]
        executing = [one for one in self._running.values() if not one.staged]
        own = sum(one.queue is staged.queue for one in executing)
        return len(executing) < self.executors and own < staged.queue.rules.instances

    def begin(self, token: int, now_ns: int, gather_ns: int) -> None:
        """A staged batch runs from now on; gathering it took `gather_ns`."""
        self._staging.observe(gather_ns)
        running = self._running[token]
        running.staged, running.begun_ns = False, now_ns

    def executed(self, token: int, now_ns: int) -> None:
        """A batch has left the device. Idempotent."""
        running = self._running.pop(token, None)
        if running is not None:
            running.queue.running -= 1
            # one of several executors is a part of the device
            running.queue.share.use((now_ns - running.begun_ns) // self.executors, now_ns)

    def observe(self, queue_id: int, rows: int, took_ns: int, features_ns: int, now_ns: int, *, size_class: int = 0) -> None:
        """Learn from a batch of `rows` rows that has ended now. `features_ns`: the part of its time that its features took."""
        queue = self.queues[queue_id]
        costs = queue.costs[size_class]
        if self._slots > 1:
            # features of the next batch are found while one executes: what lies between two batches is the longer of both
            own_ns = took_ns - features_ns
            took_ns, lead_ns = max(own_ns, features_ns), min(own_ns, features_ns)
            if costs.on_trial(rows, now_ns - took_ns):
                queue.lead.at_most(Estimate(lead_ns))
            queue.lead.observe(lead_ns)
        costs.observe(rows, took_ns, now_ns)

    def _next_lane(self, now_ns: int, *, staged: bool) -> tuple[Lane | None, int | None]:
        """The lane that goes next, of those that need not wait; else when the first one will be ripe."""
        best: Lane | None = None
        best_rank: tuple[float, Key] = (2.0, (0, 0, 0))
        wake_ns: int | None = None
        lanes: list[Lane] = []
        for queue in self.queues.values():
            if not queue.lanes or queue.running >= queue.rules.instances + staged:
                continue
            place = -queue.share.claim(now_ns)
            for lane in queue.lanes.values():
                ripe_ns = ripe_at_ns(lane)
                if ripe_ns > now_ns:
                    wake_ns = ripe_ns if wake_ns is None else min(wake_ns, ripe_ns)
                    continue
                lanes.append(lane)
                if (place, lane.keys[0]) < best_rank:
                    best, best_rank = lane, (place, lane.keys[0])
        if self._density and best is not None and best_rank[0] >= 0 and self._overloaded(lanes, now_ns):
            level = best.keys[0][0]
            best = max((lane for lane in lanes if lane.keys[0][0] == level), key=lambda lane: density(lane, now_ns))
        return best, wake_ns

    def _overloaded(self, lanes: list[Lane], now_ns: int) -> bool:
        """Whether what waits takes longer than the most patient of it can wait."""
        work_ns = sum(backlog_ns(lane, len(lane.tickets)) for lane in lanes) // self.executors
        return now_ns + work_ns > max(lane.keys[-1][1] for lane in lanes)

    def _free_at_ns(self, now_ns: int) -> list[int]:
        """When each executor could begin what is decided on next, soonest first."""
        if not self._running:
            return [now_ns] * self.executors
        free = [max(one.until_ns, now_ns) for one in self._running.values() if not one.staged]
        free += [now_ns] * (self.executors - len(free))
        for one in self._running.values():
            if one.staged:
                free.sort()
                free[0] += one.took_ns
        return sorted(free)

    def _fill(self, lane: Lane, now_ns: int, late: list[Ticket], *, staged: bool) -> Release | None:
        """The next batch of a lane; or None, when tickets had to be dropped and another lane may now be more urgent."""
        queue = lane.queue
        count, rows = (1, lane.tickets[0].rows) if queue.rules.decoupled else prefix(lane, queue.cap_rows)
        predictive = queue.rules.early_drop and not lane.costs.on_trial(rows, now_ns)
        took_ns, lead_ns = lane.costs.predict_ns(rows), queue.lead.predict_ns()
        start_ns = max(self._free_at_ns(now_ns)[0], now_ns + lead_ns)
        finish_ns = start_ns + took_ns + self._delivery.predict_ns() if predictive else now_ns
        tickets = lane.tickets[:count]
        gone = [ticket for ticket in tickets if ticket.deadline_ns <= finish_ns]
        if gone:
            if any(ticket.deadline_ns > now_ns for ticket in gone):
                lane.costs.refused(rows, now_ns)
            for ticket in gone:
                self.withdraw(ticket)
            late.extend(gone)
            return None
        if rows >= queue.cap_rows:
            reason = "full"
        elif count < len(lane.tickets):
            reason = "too_large"
        else:
            reason = "delay" if queue.rules.queue_delay_ns else "drained"
        del lane.keys[:count], lane.tickets[:count]
        for ticket in tickets:
            del self._keys[ticket]
        self._left(lane, tickets)
        self._tokens += 1
        queue.running += 1
        self._running[self._tokens] = _Running(queue, took_ns if staged else lead_ns + took_ns, now_ns, staged)
        return Release(queue, tickets, rows, reason, self._tokens, staged)

    def _left(self, lane: Lane, tickets: list[Ticket]) -> None:
        """Settle the counts of tickets that are no longer in their lane, and forget an empty lane (shapes are unbounded)."""
        lane.rows -= sum(ticket.rows for ticket in tickets)
        lane.queue.waiting -= len(tickets)
        if not lane.tickets:
            del lane.queue.lanes[lane.shape_key]

    def _predict_finish(
        self, queue: Queue, lane: Lane | None, costs: CostModel, key: Key, rows: int, now_ns: int
    ) -> tuple[int, int]:
        """When a ticket with this key would be executed (the running batch, what is more urgent, then its own batch), and the
        rows of that batch.
        """
        ahead_ns = 0
        claim = queue.share.claim(now_ns)
        for other_queue in self.queues.values():
            more = other_queue.share.claim(now_ns) - claim
            if more < 0:
                continue
            for other in other_queue.lanes.values():
                if other is not lane and (more or other.keys[0] < key):
                    ahead_ns += backlog_ns(other, len(other.tickets) if more else bisect_left(other.keys, key))
        # the executors this version can use, each behind its part of what is ahead
        soonest_ns = now_ns + queue.lead.predict_ns()
        free_ns = self._free_at_ns(now_ns)[: queue.rules.instances]
        free = [max(ns + ahead_ns // self.executors, soonest_ns) for ns in free_ns]
        if lane is None:
            return free[0] + costs.predict_ns(rows), rows
        before = bisect_left(lane.keys, key)
        rows_before = before * lane.rows // len(lane.tickets)
        full, rest = divmod(rows_before, queue.cap_rows)
        rounds, odd = divmod(full, len(free))
        start_ns = free[odd] + rounds * costs.predict_ns(queue.cap_rows)
        own = min(queue.cap_rows, rest + lane.rows - rows_before + rows)
        return start_ns + costs.predict_ns(own), own
