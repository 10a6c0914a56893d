"""One server as one event loop sees it: its connections, when it is left alone, and the callers who share its answers."""

from collections.abc import Callable, Sequence

from redis.asyncio import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import MovedError, ResponseError

from feature_client.breaker import Breaker, Passage, State
from feature_client.coalescer import Asked, Coalescer
from feature_client.errors import StoreError
from feature_client.lanes import Lanes
from feature_client.store import Key, Row

LEFT_ALONE = "the store keeps failing, and is left alone but for a probe now and then"


class Moved(StoreError):
    """A key lies with another node now, which the error names."""

    def __init__(self, error: MovedError) -> None:
        super().__init__(f"the slot {error.slot_id} has moved to {error.host}:{error.port}")
        self.slot, self.host, self.port = error.slot_id, error.host, error.port


class Node:
    """One server. Belongs to one event loop."""

    def __init__(
        self, pool: ConnectionPool, breaker: Breaker, now: Callable[[], float], unawaited: Callable[[Sequence[Asked]], None],
        *, by_slot: bool = False,
    ) -> None:
        """`by_slot`: it is part of a cluster, where an MGET may only have keys of one slot."""
        self.lanes = Lanes(pool)
        self.breaker = breaker
        self.calls = self.keys_asked = self.refused = 0
        self.seconds = 0.0
        self._now = now
        self._by_slot = by_slot
        self._probe = Passage.REFUSED
        self._coalescer = Coalescer(self._exchange, unawaited=unawaited, late=self._late)

    async def ask(self, keys: Sequence[Key], budget_s: float) -> list[Asked]:
        """What became of these keys by the end of the budget; at once where the server is being left alone."""
        if self.breaker.state is not State.CLOSED:
            passage = self.breaker.ask(self._now())
            if passage is Passage.REFUSED:
                self.refused += 1
                return [_refused(key) for key in keys]
            self._probe = passage
        return await self._coalescer.ask(keys, budget_s)

    async def _exchange(self, keys: Sequence[Key]) -> Sequence[Row | None | StoreError]:
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
            replies = await self.lanes.mget([[keys[at] for at in group] for group in groups])
            succeeded = any(not isinstance(reply, ResponseError) or isinstance(reply, MovedError) for reply in replies)
        finally:
            now_s = self._now()
            self.seconds += now_s - begun_s
            if succeeded and self.breaker.state is not State.CLOSED:
                passage = Passage.PROBE  # whatever it was sent as: there is an answer
            self.breaker.tell(passage, succeeded, now_s)
        if len(groups) == 1 and not isinstance(replies[0], ResponseError):
            return replies[0]
        rows: list[Row | None | StoreError] = [None] * len(keys)
        for group, reply in zip(groups, replies, strict=True):
            for index, at in enumerate(group):
                rows[at] = _refusal(reply) if isinstance(reply, ResponseError) else reply[index]
        return rows

    def _late(self) -> None:
        self.breaker.tell(Passage.CALL, False, self._now())

    async def close(self) -> None:
        """Answer everybody, then let go of connections. Idempotent."""
        await self._coalescer.close()
        await self.lanes.close()


def _refused(key: Key) -> Asked:
    asked = Asked(key)
    asked.failed = StoreError(LEFT_ALONE)
    return asked


def _refusal(error: ResponseError) -> StoreError:
    return Moved(error) if isinstance(error, MovedError) else StoreError(f"the store refused: {error}")


def _by_slot(keys: Sequence[Key]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key_slot(key), []).append(at)
    return list(groups.values())
