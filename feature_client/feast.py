"""Reads a Redis store that Feast has filled, with the statuses that its rows deserve. Never writes.

One round trip for a batch: an HMGET per entity, sent together, over connections as `RedisStore` has them.
"""

import threading
import time
from collections.abc import Callable, Sequence

import hiredis

from feature_client.breaker import Breaker, Passage
from feature_client.errors import StoreError
from feature_client.feast_rows import unpack_feast
from feature_client.feast_view import FeastView, feast_keys
from feature_client.forking import start_anew_in_children
from feature_client.redis_address import parse_address
from feature_client.redis_channel import Reply
from feature_client.redis_cluster import Cluster
from feature_client.redis_exchange import Asked, exchange
from feature_client.redis_places import Node, Places, SinglePlace
from feature_client.schema import Columns, Status
from feature_client.served import Found, absent_rows
from feature_client.store import LONGEST_S

_CONNECTIONS = 4
_CONNECT_S = 0.05
_WRONG_KIND = "WRONGTYPE"


class FeastReader:
    """Rows of one Feast project in one Redis, or Redis cluster. Thread-safe. Raises: StoreError where the URL cannot be one."""

    def __init__(
        self,
        url: str,
        project: str,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        judged_budget_s: float = 0.001,
    ) -> None:
        """`url`: as `RedisStore` takes it; `project`: Feast's; `judged_budget_s`: as of `Reader`."""
        address = parse_address(url)
        self.name, self.project = address.name, project
        self._places: Places
        if address.is_cluster:
            self._places = Cluster(address, connections=_CONNECTIONS, connect_timeout_s=_CONNECT_S)
        else:
            self._places = SinglePlace(Node(address, connections=_CONNECTIONS, connect_timeout_s=_CONNECT_S))
        self._breaker = Breaker() if breaker is None else breaker
        self._clock = clock
        self._judged_budget_s = judged_budget_s
        self.start_anew()
        start_anew_in_children(self)

    def start_anew(self) -> None:
        """Have a lock of its own."""
        self._lock = threading.Lock()

    def read(self, view: FeastView, keys: Columns, budget_s: float) -> Found:
        """The rows of N entities, within the budget; TIMEOUT where the store did not say. Never raises for what it does.

        Raises: EntityError for keys that cannot be any.
        """
        wanted = feast_keys(self.project, view, keys)
        if not wanted:
            return absent_rows(view, 0, Status.NOT_FOUND)
        with self._lock:
            passage = self._breaker.ask(self._clock()) if budget_s > 0 else Passage.REFUSED
        if passage is Passage.REFUSED:
            return absent_rows(view, len(wanted), Status.TIMEOUT)
        replies = self._ask(wanted, view.fields, time.monotonic() + min(budget_s, LONGEST_S))
        answered = any(reply is not None for reply in replies)
        if answered or budget_s >= self._judged_budget_s:
            with self._lock:
                self._breaker.tell(passage, answered, self._clock())
        return _found(view, replies)

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        self._places.close()

    def _ask(self, keys: Sequence[bytes], fields: Sequence[bytes], deadline_s: float) -> list[Reply]:
        """Each entity's reply; None where there is none in time."""
        replies: list[Reply] = [None] * len(keys)
        try:
            shares = self._places.shares(keys, deadline_s)
        except StoreError:
            return replies
        orders = [[at for run in share.runs for at in run] for share in shares]
        asked = [
            Asked(share.node.reading, hmget_commands([keys[at] for at in order], fields), len(order))
            for share, order in zip(shares, orders, strict=True)
        ]
        for order, told in zip(orders, exchange(asked, deadline_s), strict=True):
            if isinstance(told, StoreError):
                self._places.doubt()
                continue
            for at, reply in zip(order, told, strict=True):
                if isinstance(reply, hiredis.ReplyError) and not str(reply).startswith(_WRONG_KIND):
                    self._places.doubt()
                else:
                    replies[at] = reply
        return replies


def _found(view: FeastView, replies: Sequence[Reply]) -> Found:
    nothing = [None] * len(view.fields)
    found = unpack_feast(view, [reply if _is_whole(view, reply) else nothing for reply in replies])
    for at, reply in enumerate(replies):
        if reply is None:
            found.row_status[at] = Status.TIMEOUT
        elif not _is_whole(view, reply):  # what lies there is no hash
            found.row_status[at] = Status.FP_MISMATCH
    return found


def _is_whole(view: FeastView, reply: Reply) -> bool:
    return isinstance(reply, list) and len(reply) == len(view.fields)


def hmget_commands(keys: Sequence[bytes], fields: Sequence[bytes]) -> bytes:
    """An HMGET of the same fields for each key, as they go over the wire."""
    head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
    tail = b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])
    return b"".join([b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail) for key in keys])
