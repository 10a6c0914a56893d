"""Rows in Redis, or what speaks its protocol: one round trip per read, newest wins on write.

A caller's budget never cuts a command, and a late reply never reaches another call (`redis_channel`); nothing is ever tried
again here, so that a store in trouble is not asked twice as much.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence

import hiredis

from feature_client.errors import StoreError, StorePartial, StoreTimeout
from feature_client.redis_address import parse_address
from feature_client.redis_channel import Reply, Word, packed
from feature_client.redis_cluster import Cluster
from feature_client.redis_exchange import Asked, exchange
from feature_client.redis_link import Link
from feature_client.redis_places import Node, Places, SinglePlace
from feature_client.redis_replies import ELSEWHERE, code_of, refused
from feature_client.redis_writing import Command, commands_of
from feature_client.row_times import row_times
from feature_client.store import LONGEST_S, Key, Row

KEYS_OF_A_READ = 512
KEY_BYTES_OF_A_READ = 256 * 1024
"""What one MGET asks for at most: a longer one would keep the server from everybody else for too long."""
_ROUND_BYTES = 1 << 20
"""How much is sent to a node before its answers are collected."""


class RedisStore:
    """A `Store` in Redis, or in a Redis cluster. Nothing is connected before the first call.

    `connections`: how many sockets a server gets for reading (1 or more); `write_timeout_s`: how long a write may take per MiB.
    `name`: in place of the URL, for people; `on_close` ends what was started for this store.
    Raises: StoreError where the URL cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 4,
        connect_timeout_s: float = 0.05,
        write_timeout_s: float = 5.0,
        name: str = "",
        on_close: Callable[[], None] | None = None,
    ) -> None:
        if connections < 1:
            raise StoreError("a store needs at least one connection")
        address = parse_address(url, name)
        self.name = name or address.name
        self._is_cluster = address.is_cluster
        self._write_timeout_s = write_timeout_s
        self._on_close = on_close
        self._places: Places
        if address.is_cluster:
            self._places = Cluster(address, connections=connections, connect_timeout_s=connect_timeout_s)
        else:
            self._places = SinglePlace(Node(address, connections=connections, connect_timeout_s=connect_timeout_s))

    def read(self, keys: Sequence[Key], budget_s: float) -> list[Row | None]:
        """As `Store.read`."""
        if not keys:
            return []
        if not budget_s > 0:
            raise StoreTimeout(f"{self.name} was not asked: there was no time left")
        deadline_s = time.monotonic() + min(budget_s, LONGEST_S)
        asked: list[Asked] = []
        runs_of: list[list[Sequence[int]]] = []
        for share in self._places.shares(keys, deadline_s):
            runs = [part for run in share.runs for part in parts_of(run, keys)]
            commands: list[tuple[Word, ...]] = [("MGET", *(keys[index] for index in run)) for run in runs]
            asked.append(Asked(share.node.reading, packed(*commands), len(commands)))
            runs_of.append(runs)
        rows: list[Row | None] = [None] * len(keys)
        answered: list[Sequence[int]] = []
        trouble = StoreError(f"{self.name}: no node has the slots of these keys")
        for each, runs, replies in zip(asked, runs_of, exchange(asked, deadline_s), strict=True):
            if isinstance(replies, StoreError):
                trouble = self._doubting(replies)
                continue
            for run, reply in zip(runs, replies, strict=True):
                if isinstance(reply, list) and len(reply) == len(run):
                    answered.append(run)
                    for index, row in zip(run, reply, strict=True):
                        rows[index] = row
                else:
                    trouble = self._refused(each, reply)
        if sum(map(len, answered)) == len(keys):
            return rows
        if not answered:
            raise trouble
        unanswered = set(range(len(keys))).difference(*answered)
        raise StorePartial(f"{len(unanswered)} of {len(keys)} keys: {trouble}", rows, sorted(unanswered))

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        """As `Store.write`. Raises: StoreError where a row lacks the times to be compared by; then none was written."""
        for _, row in rows:
            row_times(row)
        deadline_s = time.monotonic() + self._write_timeout_s
        keys = [key for key, _ in rows]
        queues: list[tuple[Link, Iterator[Command]]] = []
        placed = 0
        for share in self._places.shares(keys, deadline_s) if rows else ():
            placed += sum(map(len, share.runs))
            queues.append((share.node.writing, _commands(rows, share.runs, expire_s)))
        if placed < len(rows):
            raise StoreError(f"{self.name}: no node has the slots of {len(rows) - placed} of {len(rows)} rows")
        written = 0
        while batch := [(link, commands) for link, queue in queues if (commands := _next_round(queue))]:
            written += self._written(batch)
        return written

    def claim_text(self, key: str, text: str) -> str:
        """As `Store.claim_text`. Two commands: the one that does both is newer than some servers."""
        kept = self._text(self._ask(key, ("SET", key, text, "NX"), ("GET", key))[1])
        if kept is None:
            raise StoreError(f"{self.name} did not keep the text '{key}'")
        return kept

    def ping(self, budget_s: float) -> None:
        """As `Store.ping`; of a cluster, one node that answers is enough."""
        deadline_s = time.monotonic() + min(budget_s, LONGEST_S)
        nodes = self._places.nodes(deadline_s)
        trouble = StoreError(f"{self.name} has no nodes")
        for index, node in enumerate(nodes):
            left_s = deadline_s - time.monotonic()
            asked = Asked(node.reading, packed(("PING",)), 1)
            (replies,) = exchange([asked], time.monotonic() + left_s / (len(nodes) - index))
            if isinstance(replies, StoreError):
                trouble = self._doubting(replies)
            elif replies[0] == b"PONG":
                return
            else:
                trouble = self._refused(asked, replies[0])
        raise trouble

    def close(self) -> None:
        """As `Store.close`."""
        self._places.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _written(self, batch: Sequence[tuple[Link, Sequence[Command]]]) -> int:
        """Send one round and count what was written; scripts that a server did not know are sent in full."""
        asked = [Asked(link, packed(*(each.words for each in commands)), len(commands)) for link, commands in batch]
        written = 0
        again: list[tuple[Link, Sequence[Command]]] = []
        trouble: StoreError | None = None
        answers = exchange(asked, time.monotonic() + self._write_timeout_s)
        for each, (link, commands), replies in zip(asked, batch, answers, strict=True):
            if isinstance(replies, StoreError):
                trouble = self._doubting(replies)
                continue
            unknown = []
            for command, reply in zip(commands, replies, strict=True):
                if (
                    isinstance(reply, hiredis.ReplyError)
                    and code_of(str(reply)) == "NOSCRIPT"
                    and command.words[0] == "EVALSHA"
                ):
                    unknown.append(command.in_full)
                elif reply == b"OK" or isinstance(reply, int):
                    written += reply if isinstance(reply, int) else 1
                else:
                    trouble = self._refused(each, reply)
            if unknown:
                again.append((link, unknown))
        if trouble is not None:
            raise trouble
        return written + (self._written(again) if again else 0)

    def _ask(self, key: str, *commands: tuple[Word, ...]) -> list[Reply]:
        deadline_s = time.monotonic() + self._write_timeout_s
        shares = self._places.shares([key.encode()], deadline_s)
        if not shares:
            raise StoreError(f"{self.name}: no node has the slot of '{key}'")
        asked = Asked(shares[0].node.writing, packed(*commands), len(commands))
        (replies,) = exchange([asked], deadline_s)
        if isinstance(replies, StoreError):
            raise self._doubting(replies)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise self._refused(asked, reply)
        return replies

    def _text(self, reply: Reply) -> str | None:
        try:
            return None if reply is None else str(reply, "utf-8")
        except (UnicodeDecodeError, TypeError):
            raise StoreError(f"{self.name} holds something else than a text") from None

    def _doubting(self, error: StoreError) -> StoreError:
        self._places.doubt()
        return error

    def _refused(self, asked: Asked, reply: Reply) -> StoreError:
        if not isinstance(reply, hiredis.ReplyError):
            return StoreError(f"{asked.link.name} answered otherwise than a store of rows does")
        if code_of(str(reply)) in ELSEWHERE:
            self._places.doubt()
        return refused(asked.link.name, str(reply), cluster=self._is_cluster)


def parts_of(run: Sequence[int], keys: Sequence[Key]) -> Iterator[Sequence[int]]:
    """A run of positions in pieces that one command may ask for."""
    if len(run) <= KEYS_OF_A_READ and sum(len(keys[index]) for index in run) <= KEY_BYTES_OF_A_READ:
        yield run
        return
    first, size = 0, 0
    for at, index in enumerate(run):
        if at > first and (at - first == KEYS_OF_A_READ or size + len(keys[index]) > KEY_BYTES_OF_A_READ):
            yield run[first:at]
            first, size = at, 0
        size += len(keys[index])
    yield run[first:]


def _commands(rows: Sequence[tuple[Key, Row]], runs: Sequence[Sequence[int]], expire_s: int) -> Iterator[Command]:
    for run in runs:
        expire_ms = [expire_s * 1000 + random.randrange(expire_s * 100 + 1) if expire_s else 0 for _ in run]
        yield from commands_of([rows[index] for index in run], expire_ms)


def _next_round(queue: Iterator[Command]) -> list[Command]:
    commands: list[Command] = []
    size = 0
    while size < _ROUND_BYTES and (command := next(queue, None)) is not None:
        commands.append(command)
        size += command.size
    return commands
