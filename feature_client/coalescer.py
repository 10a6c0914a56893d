"""Many callers of one event loop, few requests to one node: keys that are asked for while a request is out go with the next.

There is no timer between a caller and its request: what is asked in one turn of the loop is sent at its end when nothing is
out, else when what is out comes back. A key that is already asked for is not asked again; whoever wants it waits for the same
answer. Callers wait with budgets of their own, and may be cancelled: neither ever touches the request, so no connection is
lost over an impatient caller, and no answer can reach another question.
"""

import asyncio
from asyncio import get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic

from feature_client.errors import StoreError
from feature_client.store import Key, Row

MAX_KEYS = 512
MAX_BYTES = 256 * 1024
MAX_REQUESTS = 2
SLOW_S = 0.002
"""A request that has been out for longer no longer holds up the others: a second one goes beside it."""
WAITED_S = 0.005
"""After so long what is queued is sent beside it even if nobody asks for more; sooner, busy loops would ask in small pieces."""
JUDGED_S = 0.001
"""Whoever cannot wait that long learns nothing about the store."""
TICK_S = 0.0005
"""Budgets end on this grid, the part of it that has begun being given up, so that thousands of callers share a few timers."""

FOREIGN = "a reader belongs to the event loop that it was first used in; another one needs its own"
CLOSED = "this reader has been closed"

Exchange = Callable[[Sequence[Key]], Awaitable[Sequence[Row | StoreError | None]]]
"""Asks a node for some keys. Raises: StoreError."""


class Asked:
    """A key that was asked for. `answered`: whether `row` is what the store holds (None: no row); `failed`: why it is not.

    `sent_s`: when its request went out. What is neither answered nor failed is still to come, too late for whoever has it.
    """

    __slots__ = ("answered", "callers", "failed", "key", "row", "sent_s", "single")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.row: Row | None = None
        self.answered = False
        self.failed: StoreError | None = None
        self.single: asyncio.Future[None] | None = None
        self.callers: list[Caller] | None = None
        self.sent_s = 0.0


class Caller:
    """Somebody who waits for keys. `done` is set when all have been answered, or the budget has ended.

    The first who waits for a key and for no other is that future alone, `Asked.single`: each object more costs every lookup.
    """

    __slots__ = ("done", "left")

    def __init__(self, done: asyncio.Future[None], left: int) -> None:
        self.done = done
        self.left = left

    def one_less(self) -> bool:
        """One of the keys has its answer; whether this caller still waited for it."""
        self.left -= 1
        if self.done.done():
            return False
        if not self.left:
            self.done.set_result(None)
        return True


class Coalescer:
    """Asks one node for what many callers want. Belongs to one event loop, and to nobody else's thread."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        unawaited: Callable[[Sequence[Asked]], None] = lambda asked: None,
        late: Callable[[], None] = lambda: None,
    ) -> None:
        """`unawaited` is told of answers that nobody waits for any more; `late`, that patient callers have given up."""
        self._loop = get_running_loop()
        self._new_future = self._loop.create_future
        self._exchange, self._unawaited, self._late = exchange, unawaited, late
        self._asked: dict[Key, Asked] = {}
        self._queue: deque[Asked] = deque()
        self._requests: dict[asyncio.Task[None], float] = {}
        self._patient: dict[int, set[asyncio.Future[None]]] = {}
        self._hasty: dict[int, set[asyncio.Future[None]]] = {}
        self._row_bytes = 0.0
        self._due = False
        self._overdue: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def requests(self) -> int:
        """How many requests are out."""
        return len(self._requests)

    async def ask(self, keys: Sequence[Key], budget_s: float) -> list[Asked]:
        """What became of these keys by the end of the budget. Raises nothing of the store's; each key says what it came to.

        Raises: StoreError in an event loop that is not this one's.
        """
        # one coroutine and few calls: whatever stands here costs every lookup
        if get_running_loop() is not self._loop:
            raise StoreError(FOREIGN)
        if self._closed:
            return [_closed(key) for key in keys]
        known = self._asked
        if len(keys) == 1:
            key = keys[0]
            asked = known.get(key)
            if asked is None:
                asked = known[key] = Asked(key)
                self._queue.append(asked)
                if not self._due:
                    self._due = True
                    self._loop.call_soon(self._send)
            done: asyncio.Future[None] = self._new_future()
            all_asked = [asked]
            if asked.single is None:
                asked.single = done
            else:
                self._join(Caller(done, 1), all_asked)
        else:
            all_asked = [known.get(key) or self._ask(key) for key in keys]
            if not all_asked:
                return all_asked
            done = self._new_future()
            self._join(Caller(done, len(all_asked)), all_asked)
        tick = int((monotonic() + budget_s) / TICK_S)
        mates = (self._patient if budget_s >= JUDGED_S else self._hasty).get(tick)
        if mates is None:
            mates = self._new_tick(tick, budget_s >= JUDGED_S)
        mates.add(done)
        try:
            await done
        finally:
            mates.discard(done)
        return all_asked

    def _ask(self, key: Key) -> Asked:
        asked = self._asked[key] = Asked(key)
        self._queue.append(asked)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._send)
        return asked

    @staticmethod
    def _join(caller: Caller, all_asked: Sequence[Asked]) -> None:
        for asked in all_asked:
            if asked.callers is None:
                asked.callers = [caller]
            else:
                asked.callers.append(caller)

    def _new_tick(self, tick: int, patient: bool) -> set[asyncio.Future[None]]:
        mates: set[asyncio.Future[None]] = set()
        (self._patient if patient else self._hasty)[tick] = mates
        # one turn later: when the loop was held up, what has come in the meantime is taken first
        self._loop.call_later(tick * TICK_S - monotonic(), self._loop.call_soon, self._give_up, tick, patient)
        return mates

    def _give_up(self, tick: int, patient: bool) -> None:
        """The budgets of some callers have ended; what they asked for stays asked for."""
        mates = (self._patient if patient else self._hasty).pop(tick)
        if patient and mates:
            self._late()
        for done in mates:
            if not done.done():
                done.set_result(None)

    def _send(self) -> None:
        self._due = False
        while self._queue and not self._closed and self._may_send():
            now_s, batch = self._loop.time(), self._batch()
            for asked in batch:
                asked.sent_s = now_s
            task = self._loop.create_task(self._request(batch))
            self._requests[task] = now_s
            task.add_done_callback(partial(self._returned, batch))
        if self._queue and len(self._requests) < MAX_REQUESTS and self._overdue is None:
            self._overdue = self._loop.call_at(min(self._requests.values()) + WAITED_S, self._send_beside)

    def _send_beside(self) -> None:
        """What is out may have become slow, and nobody has asked for anything since."""
        self._overdue = None
        self._send()

    def _may_send(self) -> bool:
        if not self._requests:
            return True
        if len(self._requests) >= MAX_REQUESTS:
            return False
        return len(self._queue) >= self._fitting() or self._loop.time() - min(self._requests.values()) >= SLOW_S

    def _fitting(self) -> int:
        """How many rows of the size seen last fit into one answer."""
        return min(MAX_KEYS, max(1, int(MAX_BYTES / max(self._row_bytes, 1.0))))

    def _batch(self) -> list[Asked]:
        queue, most = self._queue, self._fitting()
        if len(queue) <= most and sum([len(asked.key) for asked in queue]) < MAX_BYTES:
            batch = list(queue)
            queue.clear()
            return batch
        batch, room = [], MAX_BYTES
        while queue and len(batch) < most and room > 0:
            room -= len(queue[0].key)
            if room > 0 or not batch:
                batch.append(queue.popleft())
        return batch

    async def _request(self, batch: list[Asked]) -> None:
        try:
            rows = await self._exchange([asked.key for asked in batch])
        except StoreError as error:
            self._settle(batch, [error] * len(batch))
        except Exception as error:
            # a fault of this program, not of the store: nobody may be left waiting over it
            self._settle(batch, [StoreError(f"asking failed: {error!r}")] * len(batch))
            raise
        else:
            self._settle(batch, rows)

    def _settle(self, batch: list[Asked], rows: Sequence[Row | StoreError | None]) -> None:
        size = 0
        known, alone = self._asked, []
        for asked, row in zip(batch, rows, strict=True):
            del known[asked.key]
            if row is None:
                asked.answered = True
            elif isinstance(row, StoreError):
                asked.failed = row
            else:
                asked.row, asked.answered = row, True
                size += len(row)
            awaited, done = False, asked.single
            if done is not None and not done.done():
                done.set_result(None)
                awaited = True
            if asked.callers is not None:
                for caller in asked.callers:
                    awaited |= caller.one_less()
            if not awaited and asked.answered:
                alone.append(asked)
        if size:
            self._row_bytes = size / len(batch)
        if alone:
            self._unawaited(alone)

    def _returned(self, batch: list[Asked], task: asyncio.Task[None]) -> None:
        del self._requests[task]
        if task.cancelled():
            # by `close`, or by whoever ends the loop: nobody may be left waiting, and nothing may be begun any more
            self._end(batch)
            self._end_queue()
        else:
            task.exception()  # has been told to those who waited
            self._send()

    def _end(self, asked: list[Asked]) -> None:
        self._settle(asked, [StoreError(CLOSED)] * len(asked))

    def _end_queue(self) -> None:
        queued = list(self._queue)
        self._queue.clear()
        self._end(queued)

    async def close(self) -> None:
        """Answer everybody, and end what is out. Idempotent."""
        self._closed = True
        requests = tuple(self._requests)
        for task in requests:
            task.cancel()
        if requests:
            await asyncio.wait(requests)
        self._end_queue()


def _closed(key: Key) -> Asked:
    asked = Asked(key)
    asked.failed = StoreError(CLOSED)
    return asked
