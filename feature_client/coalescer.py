"""Many callers of one event loop, few requests to one node: keys that are asked for while a request is out go with the next.

There is no timer between a caller and its request: what is asked in one turn of the loop is sent at its end when nothing is
out, else when what is out comes back. A key that is already asked for is not asked again; whoever wants it waits for the same
answer. Callers wait with budgets of their own, and may be cancelled: neither ever touches the request, so no connection is
lost over an impatient caller, and no answer can reach another question.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

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

CLOSED = "this reader has been closed"

Exchange = Callable[[Sequence[Key]], Awaitable[Sequence[Row | StoreError | None]]]
"""Asks a node for some keys. Raises: StoreError."""


class Asked:
    """A key that was asked for. `answered`: whether `row` is what the store holds (None: no row); `failed`: why it is not.

    `sent_s`: when its request went out. What is neither answered nor failed is still to come, too late for whoever has it.
    """

    __slots__ = ("answered", "callers", "failed", "key", "row", "sent_s")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.sent_s = 0.0
        self.row: Row | None = None
        self.answered = False
        self.failed: StoreError | None = None
        self.callers: list[Caller] = []


class Caller:
    """Somebody who waits for keys. `done` is set when all have been answered, or the budget has ended.

    `patient`: whether the budget was one that a store can be judged by.
    """

    __slots__ = ("done", "left", "mates", "patient")

    def __init__(self, done: asyncio.Future[None], left: int, mates: set["Caller"], patient: bool) -> None:
        self.done = done
        self.patient = patient
        self.left = left
        self.mates = mates

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
        self._loop = asyncio.get_running_loop()
        self._exchange, self._unawaited, self._late = exchange, unawaited, late
        self._asked: dict[Key, Asked] = {}
        self._queue: deque[Asked] = deque()
        self._requests: dict[asyncio.Task[None], float] = {}
        self._mates: dict[int, set[Caller]] = {}
        self._row_bytes = 0.0
        self._due = False
        self._overdue: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def requests(self) -> int:
        """How many requests are out."""
        return len(self._requests)

    async def ask(self, keys: Sequence[Key], budget_s: float) -> list[Asked]:
        """What became of these keys by the end of the budget. Raises nothing of the store's; each key says what it came to."""
        asked = [self._ask(key) for key in keys]
        waiting = [each for each in asked if not each.answered and each.failed is None]
        if waiting:
            await self._wait(waiting, budget_s)
        return asked

    def _ask(self, key: Key) -> Asked:
        asked = self._asked.get(key)
        if asked is None:
            asked = Asked(key)
            if self._closed:
                asked.failed = StoreError(CLOSED)
                return asked
            self._asked[key] = asked
            self._queue.append(asked)
            if not self._due:
                self._due = True
                self._loop.call_soon(self._send)
        return asked

    async def _wait(self, waiting: list[Asked], budget_s: float) -> None:
        tick = int((self._loop.time() + budget_s) / TICK_S)
        mates = self._mates.get(tick)
        if mates is None:
            mates = self._mates[tick] = set()
            # one turn later: when the loop was held up, what has come in the meantime is taken first
            self._loop.call_at(tick * TICK_S, self._loop.call_soon, self._give_up, tick)
        caller = Caller(self._loop.create_future(), len(waiting), mates, budget_s >= JUDGED_S)
        mates.add(caller)
        for asked in waiting:
            asked.callers.append(caller)
        try:
            await caller.done
        finally:
            mates.discard(caller)

    def _give_up(self, tick: int) -> None:
        """The budgets of some callers have ended; what they asked for stays asked for."""
        mates = self._mates.pop(tick)
        if any(caller.patient for caller in mates):
            self._late()
        for caller in mates:
            if not caller.done.done():
                caller.done.set_result(None)

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
        batch: list[Asked] = []
        room, most = MAX_BYTES, self._fitting()
        while self._queue and len(batch) < most and room > 0:
            room -= len(self._queue[0].key)
            if room > 0 or not batch:
                batch.append(self._queue.popleft())
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
        for asked, row in zip(batch, rows, strict=True):
            del self._asked[asked.key]
            if isinstance(row, StoreError):
                asked.failed = row
            else:
                asked.row, asked.answered = row, True
                size += 0 if row is None else len(row)
        if size:
            self._row_bytes = size / len(batch)
        alone = []
        for asked in batch:
            awaited = False
            for caller in asked.callers:
                awaited |= caller.one_less()
            if not awaited and asked.answered:
                alone.append(asked)
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
