"""Servers as one event loop sees them: which one has a key, when it is left alone, and the callers who share its answers."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError

from feature_client.async_link import AsyncLink, Connect, connect_to
from feature_client.breaker import Breaker, Passage, State
from feature_client.coalescer import Asked, Coalescer
from feature_client.errors import StoreError
from feature_client.redis_address import Address
from feature_client.redis_cluster import Cluster
from feature_client.store import Key, Row

LEFT_ALONE = "the store keeps failing, and is left alone but for a probe now and then"
LEARN_S = 1.0
"""How long it may take until a cluster has told its slots for the first time."""


class Elsewhere(StoreError):
    """A node of a cluster that does not have a slot, or not any more."""


class AsyncNode:
    """One server. Belongs to one event loop."""

    def __init__(
        self,
        connect: Connect,
        breaker: Breaker,
        now: Callable[[], float],
        unawaited: Callable[[Sequence[Asked]], None],
        *,
        by_slot: bool = False,
    ) -> None:
        """`by_slot`: it is part of a cluster, where an MGET may only have keys of one slot."""
        self.link = AsyncLink(connect)
        self.breaker = breaker
        self.calls = self.keys_asked = 0
        self.seconds = 0.0
        self._now = now
        self._by_slot = by_slot
        self._probe = Passage.REFUSED
        self._coalescer = Coalescer(self._exchange, unawaited=unawaited, late=self._late)
        self.coalesced = self._coalescer.ask
        """As `ask` while the breaker is closed, for whoever has seen that it is."""

    def ask(self, keys: Sequence[Key], budget_s: float) -> Coroutine[Any, Any, list[Asked]]:
        """What became of these keys by the end of the budget; at once where the server is being left alone."""
        # no coroutine of its own: each costs every lookup
        if self.breaker.state is not State.CLOSED:
            passage = self.breaker.ask(self._now())
            if passage is Passage.REFUSED:
                return _left_alone(keys)
            self._probe = passage
        return self.coalesced(keys, budget_s)

    async def _exchange(self, keys: Sequence[Key]) -> Sequence[Row | StoreError | None]:
        passage = Passage.CALL
        if self.breaker.state is not State.CLOSED:
            # what was queued when it opened is no probe
            passage, self._probe = self._probe, Passage.REFUSED
            if passage is Passage.REFUSED:
                raise StoreError(LEFT_ALONE)
        groups = _by_slot(keys) if self._by_slot else [list(range(len(keys)))]
        begun_s = self._now()
        self.calls += 1
        self.keys_asked += len(keys)
        succeeded = False
        try:
            replies = await self.link.mget([[keys[at] for at in group] for group in groups])
            succeeded = any(
                not isinstance(reply, ResponseError) or isinstance(reply, MovedError | AskError) for reply in replies
            )
        finally:
            now_s = self._now()
            self.seconds += now_s - begun_s
            if succeeded and self.breaker.state is not State.CLOSED:
                passage = Passage.PROBE  # whatever it was sent as: there is an answer
            self.breaker.tell(passage, succeeded, now_s)
        if len(groups) == 1 and not isinstance(replies[0], ResponseError):
            return replies[0]
        rows: list[Row | StoreError | None] = [None] * len(keys)
        for group, reply in zip(groups, replies, strict=True):
            for index, at in enumerate(group):
                rows[at] = _refusal(reply) if isinstance(reply, ResponseError) else reply[index]
        return rows

    def _late(self) -> None:
        self.breaker.tell(Passage.CALL, False, self._now())

    async def close(self) -> None:
        """Answer everybody, then let go of connections. Idempotent."""
        await self._coalescer.close()
        await self.link.close()


class OneNode:
    """Everything is on one server."""

    def __init__(self, node: AsyncNode) -> None:
        self.nodes = [node]

    def ask(self, keys: Sequence[Key], budget_s: float) -> Coroutine[Any, Any, list[Asked]]:
        """As `AsyncNode.ask`."""
        return self.nodes[0].ask(keys, budget_s)

    async def close(self) -> None:
        """As `AsyncNode.close`."""
        await self.nodes[0].close()


class ManyNodes:
    """The nodes of a cluster. Its slots are asked for aside, by a thread; only the first callers wait for them."""

    def __init__(self, address: Address, new_node: Callable[[Connect], AsyncNode]) -> None:
        self._slots = Cluster(address, connections=1, connect_timeout_s=LEARN_S)
        self._new_node = new_node
        self._nodes: dict[tuple[str, int], AsyncNode] = {}
        self._learning: asyncio.Task[bool] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def nodes(self) -> list[AsyncNode]:
        """Those that were asked so far."""
        return list(self._nodes.values())

    async def ask(self, keys: Sequence[Key], budget_s: float) -> list[Asked]:
        """As `AsyncNode.ask`, of all nodes at once."""
        end_s = time.monotonic() + budget_s
        if self._learning is None:
            self._learning = asyncio.create_task(self._learn())
        if not self._learning.done():
            await asyncio.wait((self._learning,), timeout=budget_s)
        learnt = self._learning.done() and not self._learning.cancelled() and self._learning.result()
        if not learnt:
            if self._learning.done():
                self._learning = None
            return [_failed(key, "the cluster does not say where its slots are") for key in keys]
        shares = self._slots.shares(keys, 0.0)
        orders = [list(chain.from_iterable(share.runs)) for share in shares]
        left_s = end_s - time.monotonic()
        asking = [
            self._node(share.node.address).ask([keys[at] for at in order], left_s)
            for share, order in zip(shares, orders, strict=True)
        ]
        told = [await asking[0]] if len(asking) == 1 else await asyncio.gather(*asking)
        answers: dict[int, Asked] = {}
        for order, asked in zip(orders, told, strict=True):
            answers.update(zip(order, asked, strict=True))
        if any(asked.failed is not None for asked in answers.values()):
            self._slots.doubt()
        return [answers[at] if at in answers else _failed(keys[at], "no node has its slot") for at in range(len(keys))]

    async def _learn(self) -> bool:
        """Whether the slots are known; that they are doubted later does not make anybody wait."""
        try:
            await asyncio.to_thread(self._slots.nodes, time.monotonic() + LEARN_S)
        except StoreError:
            return False
        return True

    def _node(self, address: Address) -> AsyncNode:
        at = (address.host, address.port)
        node = self._nodes.get(at)
        if node is None:
            node = self._nodes[at] = self._new_node(connect_to(address))
            self._let_go()
        return node

    def _let_go(self) -> None:
        """Nodes that have no slots any more. Checked when there is a new one: they come and go together."""
        there = {(node.address.host, node.address.port) for node in self._slots.nodes(0.0)}
        for at in [at for at in self._nodes if at not in there]:
            task = asyncio.create_task(self._nodes.pop(at).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Answer everybody, then let go of connections. Idempotent."""
        if self._learning is not None:
            await asyncio.wait((self._learning,))
        for node in self.nodes:
            await node.close()
        if self._leaving:
            await asyncio.wait(self._leaving)
        await asyncio.to_thread(self._slots.close)


async def _left_alone(keys: Sequence[Key]) -> list[Asked]:
    # whoever asks in a loop must not keep the answer that would end this from being read
    await asyncio.sleep(0)
    return [_failed(key, LEFT_ALONE) for key in keys]


def _failed(key: Key, reason: str) -> Asked:
    asked = Asked(key)
    asked.failed = StoreError(reason)
    return asked


def _refusal(error: ResponseError) -> StoreError:
    if isinstance(error, MovedError | AskError):
        return Elsewhere(str(error))
    return StoreError(f"the store refused: {error}")


def _by_slot(keys: Sequence[Key]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key_slot(key), []).append(at)
    return list(groups.values())
