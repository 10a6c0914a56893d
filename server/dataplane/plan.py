"""Which tickets run next on a device, which are refused, and when to look again. **Pure**: the oracle for every data plane.

All queues of one device are planned together, because they share its one executor. Tickets whose rows can be concatenated
(same version, same non-batch shapes) wait in one *lane*, sorted by (priority, due time, arrival order).

The rules, in order (PERFORMANCE.md says which simulations chose them; Nexus, SOSP 2019, for early drop):
1. admission refuses at once what is predicted to finish after its deadline;
2. when the device is free, the lane with the most urgent head goes next, and everything waiting in it up to the largest
   batch is taken: work-conserving, never a timer (unless a queue delay is set);
3. tickets that would be late in that full batch are dropped, and the batch is refilled. Shrinking the batch to save its head
   instead starves everybody behind it.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from server.core.errors import Expired, Overloaded
from server.dataplane.costs import CostModel, Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket

Key = tuple[int, int, int]
_SENTINEL = 2**63


@dataclass(slots=True)
class Lane:
    """Tickets that may share a batch, most urgent first."""

    queue: "Queue"
    shape_key: object
    keys: list[Key] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class Queue:
    """One version's waiting tickets, by lane. `open` counts tickets that are admitted and not ended."""

    rules: QueueRules
    costs: CostModel
    cap_rows: int
    lanes: dict[object, Lane] = field(default_factory=dict)
    waiting: int = 0
    open: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """Tickets that run now, as one batch. `reason` is why the batch was closed: full, drained, delay or too_large."""

    queue: Queue
    tickets: list[Ticket]
    rows: int
    reason: str


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

    def __init__(self, delivery: Estimate) -> None:
        self.queues: dict[int, Queue] = {}
        self.running_until_ns = 0
        self._delivery = delivery
        self._arrivals = 0
        self._keys: dict[Ticket, tuple[Lane, Key]] = {}

    def add_queue(self, rules: QueueRules) -> None:
        """Begin to plan for a queue. Raises: ValueError if its id is taken."""
        if rules.queue_id in self.queues:
            raise ValueError(f"queue {rules.queue_id} is open already")
        cap = rules.buckets[-1] if rules.signature.max_batch else 1
        self.queues[rules.queue_id] = Queue(rules, CostModel(rules.buckets, rules.costs_ns), cap)

    def admit(self, ticket: Ticket, now_ns: int) -> None:
        """Let a ticket wait in its queue.

        Raises: Overloaded if the queue is full, Expired if its deadline passed or cannot be met; then nothing has changed.
        """
        queue = self.queues[ticket.queue_id]
        limit = queue.rules.max_requests
        if limit and queue.waiting >= limit:
            raise Overloaded("Exceeds maximum queue size")
        if ticket.deadline_ns <= now_ns:
            raise Expired("Request timeout expired")
        self._arrivals += 1
        key = (ticket.priority, ticket.due_ns, self._arrivals)
        lane = queue.lanes.get(ticket.shape_key)
        if queue.rules.early_drop and ticket.deadline_ns < NO_DEADLINE_NS:
            finish_ns, batch_rows = self._predict_finish(queue, lane, key, ticket.rows, now_ns)
            late_ns = finish_ns + self._delivery.predict_ns() - ticket.deadline_ns
            if late_ns > 0 and not queue.costs.on_trial(batch_rows, now_ns):
                queue.costs.refused(batch_rows, now_ns)
                raise Expired(f"Request timeout expired: predicted to finish {late_ns / 1e6:.3f} ms after its deadline")
        if lane is None:
            lane = queue.lanes[ticket.shape_key] = Lane(queue, ticket.shape_key)
        # bisect and one memory move in C beat a heap here, and cancelling needs no tombstones
        index = bisect_left(lane.keys, key)
        lane.keys.insert(index, key)
        lane.tickets.insert(index, ticket)
        lane.rows += ticket.rows
        queue.waiting += 1
        queue.open += 1
        self._keys[ticket] = (lane, key)

    def withdraw(self, ticket: Ticket) -> None:
        """Take a waiting ticket out. It no longer waits, but is open until it has its answer."""
        lane, key = self._keys.pop(ticket)
        index = bisect_left(lane.keys, key)
        del lane.keys[index], lane.tickets[index]
        self._left(lane, [ticket])

    def decide(self, now_ns: int) -> Decision:
        """What a free device should do now. Taken and late tickets have left their lanes when this returns."""
        late: list[Ticket] = []
        while True:
            lane, wait_until_ns = self._most_urgent(now_ns)
            if lane is None:
                return Decision(late, None, wait_until_ns)
            release = self._fill(lane, now_ns, late)
            if release is not None:
                self.running_until_ns = now_ns + lane.queue.costs.predict_ns(release.rows)
                return Decision(late, release, None)

    def _most_urgent(self, now_ns: int) -> tuple[Lane | None, int | None]:
        """The lane whose head comes first, of those that need not wait; else when the first one will be ripe."""
        best: Lane | None = None
        best_key: Key = (_SENTINEL, _SENTINEL, _SENTINEL)
        wake_ns: int | None = None
        for queue in self.queues.values():
            for lane in queue.lanes.values():
                ripe_ns = _ripe_at_ns(lane)
                if ripe_ns > now_ns:
                    wake_ns = ripe_ns if wake_ns is None else min(wake_ns, ripe_ns)
                elif lane.keys[0] < best_key:
                    best, best_key = lane, lane.keys[0]
        return best, wake_ns

    def _fill(self, lane: Lane, now_ns: int, late: list[Ticket]) -> Release | None:
        """The next batch of a lane; or None, when tickets had to be dropped and another lane may now be more urgent."""
        queue = lane.queue
        count, rows = (1, lane.tickets[0].rows) if queue.rules.decoupled else _prefix(lane, queue.cap_rows)
        predictive = queue.rules.early_drop and not queue.costs.on_trial(rows, now_ns)
        finish_ns = now_ns + queue.costs.predict_ns(rows) + self._delivery.predict_ns() if predictive else now_ns
        tickets = lane.tickets[:count]
        gone = [ticket for ticket in tickets if ticket.deadline_ns <= finish_ns]
        if gone:
            if any(ticket.deadline_ns > now_ns for ticket in gone):
                queue.costs.refused(rows, now_ns)
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
        return Release(queue, tickets, rows, reason)

    def _left(self, lane: Lane, tickets: list[Ticket]) -> None:
        """Settle the counts of tickets that are no longer in their lane, and forget an empty lane (shapes are unbounded)."""
        lane.rows -= sum(ticket.rows for ticket in tickets)
        lane.queue.waiting -= len(tickets)
        if not lane.tickets:
            del lane.queue.lanes[lane.shape_key]

    def _predict_finish(self, queue: Queue, lane: Lane | None, key: Key, rows: int, now_ns: int) -> tuple[int, int]:
        """When a ticket with this key would be executed (the running batch, what is more urgent, then its own batch), and the
        rows of that batch.
        """
        finish_ns = max(now_ns, self.running_until_ns)
        for other_queue in self.queues.values():
            for other in other_queue.lanes.values():
                if other is not lane and other.keys[0] < key:
                    finish_ns += _backlog_ns(other, bisect_left(other.keys, key))
        if lane is None:
            return finish_ns + queue.costs.predict_ns(rows), rows
        before = bisect_left(lane.keys, key)
        rows_before = before * lane.rows // len(lane.tickets)
        full, rest = divmod(rows_before, queue.cap_rows)
        behind = lane.rows - rows_before
        own = min(queue.cap_rows, rest + behind + rows)
        return finish_ns + full * queue.costs.predict_ns(queue.cap_rows) + queue.costs.predict_ns(own), own


def _backlog_ns(lane: Lane, tickets: int) -> int:
    """Predicted time of the first `tickets` tickets of a lane (rows by the lane's mean: exact when all are of one size)."""
    full, rest = divmod(tickets * lane.rows // len(lane.tickets), lane.queue.cap_rows)
    costs = lane.queue.costs
    return full * costs.predict_ns(lane.queue.cap_rows) + (costs.predict_ns(rest) if rest else 0)


def _prefix(lane: Lane, cap_rows: int) -> tuple[int, int]:
    """How many tickets from the head fit into one batch, and their rows. The head alone always fits: it was checked."""
    rows = 0
    for count, ticket in enumerate(lane.tickets):
        if rows + ticket.rows > cap_rows:
            return count, rows
        rows += ticket.rows
    return len(lane.tickets), rows


def _ripe_at_ns(lane: Lane) -> int:
    """When a lane may run: at once, unless a queue delay is set; then when full, waited enough, or its deadlines press."""
    delay_ns = lane.queue.rules.queue_delay_ns
    if not delay_ns or lane.rows >= lane.queue.cap_rows:
        return 0
    oldest_ns = min(ticket.arrival_ns for ticket in lane.tickets)
    tightest_ns = min(ticket.deadline_ns for ticket in lane.tickets)
    return min(oldest_ns + delay_ns, tightest_ns - 2 * lane.queue.costs.predict_ns(lane.queue.cap_rows))
