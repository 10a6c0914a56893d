"""Reading rows for serving from asyncio: as `Reader` does, for thousands of callers of one event loop with a row or two each.

What they want is asked for together (`coalescer`) and unpacked together (`gathered`); each has a budget of its own, and gets
statuses, never an error, whatever the store does. An answer that comes too late for whoever asked is remembered for the next.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from feature_client.async_link import Connect, connect_as, connect_to
from feature_client.async_nodes import LEFT_ALONE, AsyncNode, ManyNodes, OneNode
from feature_client.breaker import Breaker, State
from feature_client.cache import RowCache
from feature_client.coalescer import CLOSED, FOREIGN, Asked
from feature_client.errors import StoreError
from feature_client.gathered import Gathered, found_part, served_part
from feature_client.reader import StoreReading, ViewReading, Wanted
from feature_client.redis_address import parse_address
from feature_client.schema import Status
from feature_client.served import Found, Served, serve
from feature_client.store import LONGEST_S, Key, Row
from feature_client.view import View

_LETS_PASS = State.CLOSED  # reading a member of an enum costs every lookup

_Mine = tuple[list[Row | None], list[int], list[tuple[int, Asked]]]
"""One caller's rows of one view, as `Gathered.add` takes them."""


class AsyncReader:
    """Belongs to the event loop that it is first used in; an application with several has one in each.

    Ownership: the cache belongs to this reader from now on.
    """

    def __init__(
        self,
        source: str | Redis,
        cache: RowCache | None = None,
        breaker: Callable[[], Breaker] = Breaker,
        *,
        fail_on_timeout: bool = False,
    ) -> None:
        """`source`: a URL as `RedisStore` takes it, or a client, to connect as it would. `breaker`: makes one per node.

        `fail_on_timeout`: as of `serve`. Nothing is connected before the first call. Raises: StoreError for a URL that is none.
        """
        self._source = parse_address(source) if isinstance(source, str) else source
        self.name = "a client's Redis" if isinstance(self._source, Redis) else self._source.name
        self._cache = RowCache(0) if cache is None else cache
        self._remembers = cache is not None
        self._breaker = breaker
        self._fail_on_timeout = fail_on_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nodes: OneNode | ManyNodes | None = None
        self._alone: AsyncNode | None = None
        self._closed = False
        self._finding: dict[tuple[View, int], Gathered[Found]] = {}
        self._serving: dict[tuple[View, int], Gathered[Served]] = {}
        self._statuses: dict[str, NDArray[np.int64]] = {}
        self._failures = {"timeout": 0, "error": 0, "refused_by_breaker": 0, "no_budget": 0}
        self._keys_fresh = self._keys_stale = 0

    async def read(self, wanted: Sequence[Wanted], budget_s: float, *, remembered: bool = True) -> list[Found]:
        """As `Reader.read`. Ownership: arrays may be numpy views of what other callers have as well: not to be written to."""
        rows = await self._known(wanted, budget_s, remembered and self._remembers)
        waiting = [self._finder(each).add(*mine) for each, mine in zip(wanted, rows, strict=True)]
        return [await each for each in waiting]

    async def serve(self, wanted: Sequence[Wanted], budget_s: float) -> list[Served]:
        """What is found, judged now: `serve` of as many callers as came in one turn, at once. Ownership: as of `read`."""
        rows = await self._known(wanted, budget_s, self._remembers)
        waiting = [self._server(each).add(*mine) for each, mine in zip(wanted, rows, strict=True)]
        return [await each for each in waiting]

    def rows(self, keys: Sequence[Key], budget_s: float) -> Coroutine[Any, Any, list[Asked]]:
        """What the store has under these keys, or why that is not known: bytes, neither remembered nor judged."""
        # no coroutine of its own: each costs every lookup
        alone = self._alone
        if alone is not None and alone.breaker.state is _LETS_PASS and 0 < budget_s <= LONGEST_S:
            return alone.coalesced(keys, budget_s)
        return self._rows(keys, budget_s)

    async def _rows(self, keys: Sequence[Key], budget_s: float) -> list[Asked]:
        if not budget_s > 0 or self._closed:
            asked = [Asked(key) for key in keys]
            for each in asked:
                each.failed = StoreError(CLOSED if self._closed else "there was no time left")
            return asked
        nodes = self._begin() if self._nodes is None else self._nodes
        if self._loop is not asyncio.get_running_loop():
            raise StoreError(FOREIGN)
        return await nodes.ask(keys, min(budget_s, LONGEST_S))

    async def close(self) -> None:
        """Answer everybody, then let go of connections. Idempotent."""
        self._closed = True
        if self._nodes is not None:
            await self._nodes.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def readings(self) -> Sequence[ViewReading]:
        """As `Reader.readings`."""
        counts = [(ref, statuses.tolist()) for ref, statuses in self._statuses.items()]
        return [ViewReading(ref, {status.name: each[status] for status in Status if each[status]}) for ref, each in counts]

    def store_reading(self) -> StoreReading:
        """As `Reader.store_reading`; the breaker is the one that stands worst, of several nodes."""
        nodes = [] if self._nodes is None else self._nodes.nodes
        states = {node.breaker.state for node in nodes}
        worst = next((state for state in (State.OPEN, State.PROBING) if state in states), State.CLOSED)
        return StoreReading(
            self.name,
            sum(node.calls for node in nodes),
            dict(self._failures),
            sum(node.keys_asked for node in nodes),
            self._keys_fresh,
            self._keys_stale,
            sum(node.seconds for node in nodes),
            worst.value,
            len(self._cache),
            self._cache.bytes,
        )

    @property
    def connected(self) -> int:
        """How many connections were ever opened, or tried to be."""
        return 0 if self._nodes is None else sum(node.link.connected for node in self._nodes.nodes)

    def _begin(self) -> OneNode | ManyNodes:
        self._loop = asyncio.get_running_loop()
        if isinstance(self._source, Redis):
            self._nodes = OneNode(self._node(connect_as(self._source), by_slot=False))
        elif self._source.is_cluster:
            self._nodes = ManyNodes(self._source, partial(self._node, by_slot=True))
        else:
            self._nodes = OneNode(self._node(connect_to(self._source), by_slot=False))
        self._alone = self._nodes.nodes[0] if isinstance(self._nodes, OneNode) else None
        return self._nodes

    def _node(self, connect: Connect, *, by_slot: bool) -> AsyncNode:
        return AsyncNode(connect, self._breaker(), time.monotonic, self._unawaited, by_slot=by_slot)

    async def _known(self, wanted: Sequence[Wanted], budget_s: float, remembered: bool) -> list[_Mine]:
        """What can be known of each view's rows within the budget."""
        known: dict[Key, Row | None] = {}
        answers: dict[Key, Asked] = {}
        if remembered:
            now_s = time.monotonic()
            for each in wanted:
                known |= self._cache.fresh(each.keys, now_s, self._cache.ttl_s(each.view))
            self._keys_fresh += len(known)
        asked = list(dict.fromkeys(key for each in wanted for key in each.keys if key not in known))
        failed: list[Asked] = []
        for each_asked in await self.rows(asked, budget_s) if asked else ():
            if each_asked.answered:
                known[each_asked.key] = each_asked.row
                answers[each_asked.key] = each_asked
            else:
                failed.append(each_asked)
        if failed:
            self._count_failure(failed[0], budget_s)
            if remembered:
                stale = self._cache.stale([each_asked.key for each_asked in failed], time.monotonic())
                self._keys_stale += len(stale)
                known |= stale
        return [_mine(each.keys, known, answers if remembered else {}, complete=not failed) for each in wanted]

    def _count_failure(self, asked: Asked, budget_s: float) -> None:
        if not budget_s > 0:
            reason = "no_budget"
        elif asked.failed is None:
            reason = "timeout"
        else:
            reason = "refused_by_breaker" if str(asked.failed) == LEFT_ALONE else "error"
        self._failures[reason] += 1

    def _finder(self, wanted: Wanted) -> Gathered[Found]:
        at = (wanted.view, wanted.stamp)
        finder = self._finding.get(at)
        if finder is None:
            seen = partial(self._seen, wanted.view.ref)
            finder = self._finding[at] = Gathered(*at, seen, lambda found: found, found_part)
        return finder

    def _server(self, wanted: Wanted) -> Gathered[Served]:
        at = (wanted.view, wanted.stamp)
        server = self._serving.get(at)
        if server is None:
            seen, judge = partial(self._seen, wanted.view.ref), partial(self._judged, wanted.view)
            server = self._serving[at] = Gathered(*at, seen, judge, served_part)
        return server

    def _judged(self, view: View, found: Found) -> Served:
        return serve(view, found, time.time_ns() // 1000, fail_on_timeout=self._fail_on_timeout)

    def _seen(self, ref: str, found: Found, answers: Sequence[tuple[int, Asked]]) -> None:
        """Count, and remember what the store said, but for what is damaged: that must be asked for again."""
        counts = np.bincount(found.row_status, minlength=len(Status))
        self._statuses[ref] = self._statuses.get(ref, 0) + counts
        if answers:
            damaged = counts[Status.FP_MISMATCH] > 0
            rows = [
                (asked.key, asked.row) for at, asked in answers if not damaged or found.row_status[at] != Status.FP_MISMATCH
            ]
            self._cache.remember(rows, min(asked.sent_s for _, asked in answers))

    def _unawaited(self, answers: Sequence[Asked]) -> None:
        if self._remembers:
            self._cache.remember([(asked.key, asked.row) for asked in answers], min(asked.sent_s for asked in answers))


def _mine(keys: Sequence[Key], known: dict[Key, Row | None], answers: dict[Key, Asked], *, complete: bool) -> _Mine:
    rows = [known.get(key) for key in keys]
    missed = [] if complete else [at for at, key in enumerate(keys) if key not in known]
    return rows, missed, [(at, answers[key]) for at, key in enumerate(keys) if key in answers] if answers else []
