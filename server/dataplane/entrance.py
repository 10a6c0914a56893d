"""Which queue a request waits in, where its version has one on each of several devices. **Pure.**

Each device has its plan, which knows what runs there and what is more urgent. A request goes where it is predicted to be
finished first, for it cannot move later to a device that has become free. (Join the shortest queue: Winston, Journal of Applied
Probability 14(1), 1977, shows it best for equal servers; measured in time here, since devices and batches are not equal.)
"""

from server.core.errors import Expired, Overloaded
from server.dataplane.lanes import Queue
from server.dataplane.plan import Plan
from server.dataplane.ticket import Ticket


class Entrance:
    """The queues of one version, a device each, in the order in which they were opened.

    Ownership: the data plane, under its lock.
    """

    __slots__ = ("_seats", "_turn")

    def __init__(self) -> None:
        self._seats: list[tuple[Plan, Queue]] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def is_open(self) -> bool:
        """Whether any queue admits requests."""
        return any(not queue.closed for _, queue in self._seats)

    def add(self, plan: Plan, queue: Queue) -> None:
        """One more device. `queue` is the plan's."""
        self._seats.append((plan, queue))

    def remove(self, queue: Queue) -> None:
        """One device less. Raises: ValueError for a queue that is not here."""
        index = next((index for index, seat in enumerate(self._seats) if seat[1] is queue), None)
        if index is None:
            raise ValueError(f"queue {queue.rules.queue_id} does not belong to this entrance")
        del self._seats[index]
        if index < self._turn:
            self._turn -= 1

    def admit(self, ticket: Ticket, now_ns: int) -> None:
        """Let a ticket wait in the open queue that is predicted to finish it first, of those that take it, whose number
        the ticket has then.

        Raises: Overloaded, Expired where all of them refuse: what the first choice said. ValueError without an open queue.
        """
        refusal: Overloaded | Expired | None = None
        for index in self._order(ticket, now_ns):
            plan, queue = self._seats[index]
            ticket.queue_id = queue.rules.queue_id
            try:
                plan.admit(ticket, now_ns)
            except (Overloaded, Expired) as refused:
                refusal = refusal or refused
            else:
                self._turn = index + 1
                return
        raise refusal or ValueError("every queue of this entrance is closed")

    def move(self, queue: Queue, now_ns: int) -> list[Ticket]:
        """Admit what waits in a closed queue to the others, the most urgent first. What none of them takes waits on.

        Returns: tickets that cannot be in time anywhere; they wait no longer, and are open until they have their answers.
        """
        late: list[Ticket] = []
        plan = next(plan for plan, its in self._seats if its is queue)
        waiting = [entry for lane in queue.lanes.values() for entry in zip(lane.keys, lane.tickets, strict=True)]
        for _, ticket in sorted(waiting, key=lambda entry: entry[0]) if self.is_open else ():
            plan.withdraw(ticket)
            queue.open -= 1
            queue.open_rows -= ticket.rows
            try:
                self.admit(ticket, now_ns)
                continue
            except (Overloaded, Expired):
                ticket.queue_id = queue.rules.queue_id
            try:
                plan.admit(ticket, now_ns)
            except Expired:
                queue.open += 1
                queue.open_rows += ticket.rows
                late.append(ticket)
        return late

    def _order(self, ticket: Ticket, now_ns: int) -> list[int]:
        """Open queues, the best first. Among equals it is the turn of the one after the last that was chosen."""
        count = len(self._seats)
        turns = [(self._turn + offset) % count for offset in range(count)]
        order = [index for index in turns if not self._seats[index][1].closed]
        if len(order) == 1:
            return order
        finishes = {index: self._seats[index][0].finish_ns(self._seats[index][1], ticket, now_ns) for index in order}
        if None in finishes.values():
            return sorted(order, key=lambda index: self._seats[index][1].open_rows)
        return sorted(order, key=lambda index: finishes[index] or 0)
