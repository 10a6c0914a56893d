"""The python kind: the plan behind a lock, with threads waiting on it.

Three parties meet here. The door submits and cancels (any thread, never blocks for long). An engine thread takes a batch and
finishes it. One timer thread ends tickets whose deadline passes while they wait, whatever the engine is doing: the expired
must not sit in a queue until a long batch is over.

Answers leave through `deliver`, once per batch and outside the lock.
"""

import heapq
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_S, Clock
from server.core.errors import DeviceLost, Expired, NotReady, PodiumError, ShuttingDown
from server.core.tensors import Array
from server.dataplane.costs import TRIAL_AFTER_NS, Estimate
from server.dataplane.entrance import Entrance
from server.dataplane.interface import Batch, Part, QueueClosed, QueueRules, QueueSnapshot
from server.dataplane.lanes import Queue
from server.dataplane.limit import InflightLimit
from server.dataplane.plan import Plan
from server.dataplane.python.answers import Answer, check_parts, give_further, outcomes_of
from server.dataplane.python.batches import batch_of
from server.dataplane.ticket import NO_DEADLINE_NS, Reply, StreamReply, Ticket, TicketState

_HAND_OVER_S = 0.002
"""How long a thread waits at most for the one whose batch comes next. Measured 2026-11-21, fake batches of 2 ms whose answers
take 0.4 ms to deal out: the device stands still for 150 to 270 us between two batches, and for 500 us with one slot."""
_MIN_TIMER_NS = 1_000_000  # a timer tick per millisecond at most: the GIL is shared with the door


class PythonPlane:
    """A `DataPlane`, and `submit` and `cancel` for the door."""

    kind = "python"

    def __init__(
        self,
        clock: Clock,
        limit: InflightLimit,
        deliver: Callable[[Sequence[Answer], int | None], None],
        on_device: Callable[[str], None] = lambda device: None,
        slots: Callable[[str], int] = lambda device: 1,
        *,
        density: bool = False,
    ) -> None:
        """`deliver` gets answers with the instant their execution ended, or None where nothing was executed; whoever delivers
        tells `observe_delivery` how long that took. `on_device` is called once for every engine thread that a device needs
        from now on, the first time before its first queue admits anything. `slots` says how many batches a device may have
        at hand: 2 to gather one while another runs. `density`: see `Plan`.
        """
        self._clock = clock
        self._limit = limit
        self._deliver = deliver
        self._on_device = on_device
        self._lock = threading.Lock()
        self._changed: dict[str, threading.Condition] = {}
        self._begins: dict[str, threading.Condition] = {}
        self._idle = threading.Condition(self._lock)
        self._timer_changed = threading.Condition(self._lock)
        self._plans: dict[str, Plan] = {}
        self._delivery = Estimate()
        self._delivered_ns = 0
        self._devices: dict[int, str] = {}
        self._entrances: dict[int, Entrance] = {}
        self._running: dict[int, int] = {}
        self._slots = slots
        self._density = density
        self._threads: dict[str, int] = {}
        self._sleeping: dict[str, int] = {}
        self._staged: set[Ticket] = set()
        self._deadlines: list[tuple[int, int, Ticket]] = []
        self._sequence = 0
        self._stopped = False
        self._timer = threading.Thread(target=self._expire_forever, name="podium-deadlines", daemon=True)
        self._timer.start()

    # -- the door's side ------------------------------------------------------------------------------------------------

    def submit(self, entrance: int, ticket: Ticket, *, wake: bool = True) -> None:
        """Admit a ticket to one of the queues of an entrance, or raise and forget it. With `wake` False an idle engine sleeps
        on until `wake` is called.

        Raises: QueueClosed, Overloaded, Expired, ShuttingDown. Afterwards the ticket's reply gets exactly one answer.
        """
        with self._lock:
            if self._stopped:
                raise ShuttingDown("Server is stopping, scheduler for model has stopped accepting new inference requests")
            queues = self._entrances.get(entrance)
            if queues is None or not queues.is_open:
                raise QueueClosed("the version has just left service")
            self._limit.enter(ticket.nbytes)
            try:
                queues.admit(ticket, self._clock())
            except PodiumError:
                self._limit.leave(ticket.nbytes)
                raise
            if ticket.deadline_ns < NO_DEADLINE_NS:
                self._watch_deadline(ticket)
            device = self._devices[ticket.queue_id]
            if wake and device in self._sleeping:
                self._changed[device].notify()

    def wake(self) -> None:
        """Let idle engines look at what was submitted without waking them."""
        with self._lock:
            for device in self._sleeping:
                self._changed[device].notify()

    def observe_delivery(self, took_ns: int) -> None:
        """Learn how long the answers of an executed batch needed to leave."""
        with self._lock:
            now_ns = self._clock()
            if now_ns - self._delivered_ns >= TRIAL_AFTER_NS:
                # this was a trial, or first after a lull: believed at once, where means would refuse for half a minute more
                self._delivery.at_most(Estimate(took_ns))
            self._delivery.observe(took_ns)
            self._delivered_ns = now_ns

    def cancel(self, ticket: Ticket) -> TicketState:
        """End a ticket without an answer, unless it has ended. A running batch goes on without it.

        Returns: the state it was in. WAITING: it is never executed. TAKEN: it is executed for nobody. ENDED: nothing changed.
        """
        with self._lock:
            before = ticket.state
            if before is TicketState.WAITING:
                self._plans[self._devices[ticket.queue_id]].withdraw(ticket)
            if before is not TicketState.ENDED:
                self._end(ticket)
            return before

    # -- the engine's side ----------------------------------------------------------------------------------------------

    def open(self, rules: QueueRules) -> None:
        """See `DataPlane.open`."""
        with self._lock:
            plan = self._plan(rules.device)
            have, need = self._threads.get(rules.device, 0), plan.threads_with(rules.instances)
            self._threads[rules.device] = max(have, need)
        for _ in range(have, need):
            self._on_device(rules.device)
        with self._lock:
            plan.add_queue(rules)
            self._entrances.setdefault(rules.entrance, Entrance()).add(plan, plan.queues[rules.queue_id])
            self._devices[rules.queue_id] = rules.device
            self._running[rules.queue_id] = 0

    def take(self, device: str) -> Batch | None:
        """See `DataPlane.take`."""
        while True:
            with self._lock:
                plan = self._plan(device)
                if self._stopped:
                    return None
                now_ns = self._clock()
                decision = plan.decide(now_ns)
                late = self._end_all(decision.late, Expired("Request timeout expired"))
                if decision.release is not None:
                    # read before the lock is left: a ticket cancelled from now on drops its tensors, but its rows are in
                    parts = [ticket.checked.arrays for ticket in decision.release.tickets if ticket.checked is not None]
                    for ticket in decision.release.tickets:
                        ticket.move(TicketState.TAKEN)
                    if decision.release.staged:
                        self._staged.update(decision.release.tickets)
                    self._running[decision.release.queue.rules.queue_id] += 1
                    if plan.waiting and device in self._sleeping:
                        # another executor may be free, or time to stage the next batch
                        self._changed[device].notify()
                elif not late:
                    self._sleep(device, decision.wait_until_ns, now_ns)
            if late:
                self._deliver(late, None)
            if decision.release is not None:
                return batch_of(decision.release, parts, now_ns)

    def enter_device(self, batch: Batch) -> None:
        """See `DataPlane.enter_device`."""
        device, execution = batch.rules.device, batch.execution
        gather_ns = self._clock() - execution.taken_ns
        with self._lock:
            plan, begins = self._plans[device], self._begins[device]
            if batch.staged:
                # even when the plane stops: what runs before it ends, and this one has been taken
                begins.wait_for(lambda: plan.may_begin(batch.token))
                now_ns = self._clock()
                plan.begin(batch.token, now_ns, gather_ns)
                self._staged.difference_update(batch.tickets)
                # until now its requests waited for the device, as those do that were not taken yet
                execution.taken_ns = now_ns - gather_ns
                if plan.waiting and device in self._sleeping:
                    # the place behind this batch is free
                    self._changed[device].notify()
            plan.enter(batch.token)
            begins.notify_all()

    def leave_device(self, batch: Batch) -> None:
        """See `DataPlane.leave_device`."""
        with self._lock:
            self._leave_device(batch)
            device = batch.rules.device
            plan = self._plans[device]
            # the thread of the next batch needs the interpreter, which this one would keep while it deals out answers
            takers = device in self._sleeping
            self._begins[device].wait_for(lambda: not plan.stands_still(takers=takers), _HAND_OVER_S)

    def _leave_device(self, batch: Batch) -> None:
        device = batch.rules.device
        self._plans[device].executed(batch.token, self._clock())
        self._begins[device].notify_all()
        if device in self._sleeping:
            self._changed[device].notify()

    def respond(self, batch: Batch, outputs: Mapping[str, Array]) -> bool:
        """See `DataPlane.respond`."""
        (ticket,) = batch.tickets
        with self._lock:
            if ticket.state is not TicketState.TAKEN:
                return False
            reply: StreamReply = ticket.reply
        give_further(reply, outputs, self._deliver)
        return True

    def finish(self, batch: Batch, parts: Sequence[Part], *, ran_rows: int, ran_ns: int) -> NDArray[np.bool_]:
        """See `DataPlane.finish`."""
        tickets: list[Ticket] = list(batch.tickets)
        check_parts(parts, len(tickets))
        rules = batch.rules
        outcomes = outcomes_of(batch, parts)
        answered = np.zeros(len(tickets), dtype=np.bool_)
        answers: list[Answer] = []
        ended_ns = self._clock()
        with self._lock:
            plan = self._plans[rules.device]
            self._leave_device(batch)
            if ran_rows:
                lead_ns, size_class = batch.execution.lead_ns, tickets[0].size_class
                plan.observe(rules.queue_id, ran_rows, ran_ns, lead_ns, ended_ns, size_class=size_class)
            for index, ticket in enumerate(tickets):
                if ticket.state is TicketState.TAKEN:
                    ticket.execution = batch.execution
                    answered[index] = True
                    answers.append((self._end(ticket), outcomes[index]))
            self._running[rules.queue_id] -= 1
            self._idle.notify_all()
        if answers:
            self._deliver(answers, ended_ns)
        return answered

    def close(self, queue_id: int, *, move: bool = False) -> None:
        """See `DataPlane.close`."""
        late: list[Answer] = []
        with self._lock:
            device = self._devices.get(queue_id)
            if device is None:
                return
            queue = self._plans[device].queues[queue_id]
            queue.closed = True
            if move:
                tickets = self._entrances[queue.rules.entrance].move(queue, self._clock())
                late = self._end_all(tickets, Expired("Request timeout expired"))
                self._idle.notify_all()
                for sleeping in self._sleeping:
                    self._changed[sleeping].notify()
        if late:
            self._deliver(late, None)

    def fail(self, queue_id: int, reason: str) -> None:
        """See `DataPlane.fail`."""
        with self._lock:
            device = self._devices.get(queue_id)
            if device is None:
                return
            plan = self._plans[device]
            plan.queues[queue_id].closed = True
            waiting = plan.queues[queue_id].tickets()
            for ticket in waiting:
                plan.withdraw(ticket)
            staged = [ticket for ticket in self._staged if ticket.queue_id == queue_id and ticket.state is TicketState.TAKEN]
            answers = [*self._end_all(waiting, NotReady(reason)), *self._end_all(staged, DeviceLost(reason))]
        self._deliver(answers, None)

    def wait_idle(self, queue_id: int, timeout_s: float) -> bool:
        """See `DataPlane.wait_idle`."""
        with self._lock:
            device = self._devices.get(queue_id)
            if device is None:
                return True
            queue = self._plans[device].queues[queue_id]
            if not self._idle.wait_for(lambda: queue.open == 0 and self._running[queue_id] == 0, timeout_s):
                return False
            self._leave_entrance(self._plans[device].queues[queue_id])
            self._plans[device].remove_queue(queue_id)
            del self._devices[queue_id], self._running[queue_id]
            return True

    def snapshot(self, queue_id: int) -> QueueSnapshot | None:
        """See `DataPlane.snapshot`."""
        with self._lock:
            device = self._devices.get(queue_id)
            if device is None:
                return None
            queue = self._plans[device].queues[queue_id]
            rows = sum(lane.rows for lane in queue.lanes.values())
            return QueueSnapshot(queue.waiting, rows, queue.open)

    def stop(self) -> None:
        """See `DataPlane.stop`."""
        with self._lock:
            self._stopped = True
            queues = [queue for plan in self._plans.values() for queue in plan.queues.values()]
            waiting = [ticket for queue in queues for ticket in queue.tickets()]
            for ticket in waiting:
                self._plans[self._devices[ticket.queue_id]].withdraw(ticket)
            answers = self._end_all(waiting, ShuttingDown("Server is stopping"))
            for condition in self._changed.values():
                condition.notify_all()
            self._timer_changed.notify_all()
        self._deliver(answers, None)
        self._timer.join()

    # -- under the lock, or on the timer thread -------------------------------------------------------------------------

    def _plan(self, device: str) -> Plan:
        if device not in self._plans:
            self._plans[device] = Plan(self._delivery, self._slots(device), density=self._density)
            self._changed[device] = threading.Condition(self._lock)
            self._begins[device] = threading.Condition(self._lock)
        return self._plans[device]

    def _leave_entrance(self, queue: Queue) -> None:
        entrance = queue.rules.entrance
        self._entrances[entrance].remove(queue)
        if not self._entrances[entrance]:
            del self._entrances[entrance]

    def _sleep(self, device: str, wake_ns: int | None, now_ns: int) -> None:
        self._sleeping[device] = self._sleeping.get(device, 0) + 1
        self._changed[device].wait(None if wake_ns is None else max(wake_ns - now_ns, 0) / NS_PER_S)
        self._sleeping[device] -= 1
        if not self._sleeping[device]:
            del self._sleeping[device]

    def _end(self, ticket: Ticket) -> Reply:
        """End a ticket that has left its lane and settle every count. Each ticket comes here exactly once."""
        reply = ticket.end()
        self._limit.leave(ticket.nbytes)
        queue = self._plans[self._devices[ticket.queue_id]].queues[ticket.queue_id]
        queue.open -= 1
        queue.open_rows -= ticket.rows
        if queue.closed and not queue.open:
            self._idle.notify_all()
        return reply

    def _end_all(self, tickets: Sequence[Ticket], error: PodiumError) -> list[Answer]:
        # an error of their own, which nobody raises: the traceback of the one that is raised leads to its caller's request
        refusal = type(error)(*error.args)
        for ticket in tickets:
            ticket.refusal = refusal
        return [(self._end(ticket), error) for ticket in tickets]

    def _watch_deadline(self, ticket: Ticket) -> None:
        self._sequence += 1
        heapq.heappush(self._deadlines, (ticket.deadline_ns, self._sequence, ticket))
        if self._deadlines[0][2] is ticket:
            self._timer_changed.notify()
        if len(self._deadlines) > 1000 + 4 * self._limit.requests:
            # ended tickets leave the heap when their deadline comes; far deadlines must not pile up until then
            self._deadlines = [entry for entry in self._deadlines if self._may_expire(entry[2])]
            heapq.heapify(self._deadlines)

    def _may_expire(self, ticket: Ticket) -> bool:
        """Whether a ticket has yet to reach the device. A staged one too: what runs before it may overrun for long."""
        return ticket.state is TicketState.WAITING or (ticket.state is TicketState.TAKEN and ticket in self._staged)

    def _expire_forever(self) -> None:
        while True:
            with self._lock:
                if self._stopped:
                    return
                now_ns = self._clock()
                expired: list[Ticket] = []
                while self._deadlines and self._deadlines[0][0] <= now_ns:
                    ticket = heapq.heappop(self._deadlines)[2]
                    if not self._may_expire(ticket):
                        continue
                    if ticket.state is TicketState.WAITING:
                        self._plans[self._devices[ticket.queue_id]].withdraw(ticket)
                    expired.append(ticket)
                answers = self._end_all(expired, Expired("Request timeout expired"))
                if not answers:
                    wait_ns = self._deadlines[0][0] - now_ns if self._deadlines else None
                    self._timer_changed.wait(None if wait_ns is None else max(wait_ns, _MIN_TIMER_NS) / NS_PER_S)
            if answers:
                self._deliver(answers, None)
