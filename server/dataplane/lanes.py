"""Where tickets wait: one lane for those that may share a batch, one queue for each version. **Pure.**

Floor 3: what `plan` reads and changes, and the questions it asks of one lane alone.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from server.dataplane.costs import CostModel, Estimate
from server.dataplane.interface import QueueRules
from server.dataplane.share import Share
from server.dataplane.ticket import Ticket

Key = tuple[int, int, int]
"""Priority, due time in ns, number of arrival: what comes first is taken first."""


@dataclass(slots=True)
class Lane:
    """Tickets that may share a batch, most urgent first. `costs`: of their size class."""

    queue: "Queue"
    shape_key: object
    costs: CostModel
    keys: list[Key] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class Queue:
    """One version's waiting tickets, by lane. `open` counts tickets that are admitted and not ended, `open_rows` their rows,
    `running` its batches that run or are staged. `costs` by size class. `lead`: how much longer a batch takes that is not
    prepared while another one executes."""

    rules: QueueRules
    costs: list[CostModel]
    cap_rows: int
    share: Share
    lanes: dict[object, Lane] = field(default_factory=dict)
    waiting: int = 0
    open: int = 0
    open_rows: int = 0
    running: int = 0
    closed: bool = False
    lead: Estimate = field(default_factory=Estimate)

    def tickets(self) -> list[Ticket]:
        """All that wait."""
        return [ticket for lane in self.lanes.values() for ticket in lane.tickets]


def backlog_ns(lane: Lane, tickets: int) -> int:
    """Predicted time of the first `tickets` tickets of a lane (rows by the lane's mean: exact when all are of one size)."""
    full, rest = divmod(tickets * lane.rows // len(lane.tickets), lane.queue.cap_rows)
    return full * lane.costs.predict_ns(lane.queue.cap_rows) + (lane.costs.predict_ns(rest) if rest else 0)


def prefix(lane: Lane, cap_rows: int) -> tuple[int, int]:
    """How many tickets from the head make one batch of about `cap_rows`, and their rows. The head alone always does."""
    rows = 0
    for count, ticket in enumerate(lane.tickets):
        if rows and rows + ticket.rows > cap_rows:
            return count, rows
        rows += ticket.rows
    return len(lane.tickets), rows


def ripe_at_ns(lane: Lane) -> int:
    """When a lane may run: at once, unless a queue delay is set; then when full, waited enough, or its deadlines press."""
    delay_ns = lane.queue.rules.queue_delay_ns
    if not delay_ns or lane.rows >= lane.queue.cap_rows:
        return 0
    oldest_ns = min(ticket.arrival_ns for ticket in lane.tickets)
    tightest_ns = min(ticket.deadline_ns for ticket in lane.tickets)
    return min(oldest_ns + delay_ns, tightest_ns - 2 * lane.costs.predict_ns(lane.queue.cap_rows))


def density(lane: Lane, now_ns: int) -> float:
    """Answers in time per ns of the device, if this lane goes next. (Requests, not rows: each caller waits for one.)"""
    queue = lane.queue
    finish_ns = now_ns + lane.costs.predict_ns(min(lane.rows, queue.cap_rows))
    level = lane.keys[0][0]
    doomed = bisect_left(lane.keys, (level, finish_ns, 0))
    tickets = min(len(lane.tickets) - doomed, max(queue.cap_rows * len(lane.tickets) // lane.rows, 1))
    rows = min(max(tickets * lane.rows // len(lane.tickets), 1), queue.cap_rows)
    return tickets / max(lane.costs.predict_ns(rows), 1)
