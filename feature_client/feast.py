"""Reads a Redis store that Feast has filled, with the statuses that its rows deserve. Never writes.

One round trip for a batch: an HMGET per entity, sent together. A call that fails or runs out of time closes its connection, so
that no later call can get its answer.
"""

import queue
import time
from collections.abc import Sequence
from typing import Any

from redis import Connection, ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_client.breaker import Breaker
from feature_client.feast_rows import unpack_feast
from feature_client.feast_view import FeastView, feast_keys
from feature_client.schema import Columns, Status
from feature_client.served import Found, absent_rows

CONNECT_S = 0.05
CONNECTIONS = 4
"""How many calls may be out at once; more threads wait for their turn."""


class FeastReader:
    """Rows of one Feast project in one Redis. Thread-safe."""

    def __init__(self, url: str, project: str, breaker: Breaker | None = None) -> None:
        """`url`: as redis-py takes it (`redis://`, `rediss://`, `unix://`), with user and password. `project`: Feast's."""
        self.project = project
        self._breaker = Breaker() if breaker is None else breaker
        pool = ConnectionPool.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=CONNECT_S)
        self._free: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._free.put(pool.make_connection())

    def read(self, view: FeastView, keys: Columns, budget_s: float) -> Found:
        """The rows of N entities, within the budget; TIMEOUT for all where the store did not say.

        Raises: EntityError for keys that cannot be any.
        """
        wanted = feast_keys(self.project, view, keys)
        if not wanted:
            return absent_rows(view, 0, Status.NOT_FOUND)
        end = time.monotonic() + budget_s
        if not self._breaker.allows(time.monotonic()):
            return absent_rows(view, len(wanted), Status.TIMEOUT)
        try:
            replies = self._ask(hmget_commands(wanted, view.fields), len(wanted), end)
        except (RedisError, OSError, queue.Empty):
            self._breaker.failed(time.monotonic())
            return absent_rows(view, len(wanted), Status.TIMEOUT)
        self._breaker.succeeded(time.monotonic())
        return unpack_feast(view, replies)

    def _ask(self, commands: bytes, replies: int, end: float) -> list[list[bytes | None]]:
        connection: Connection = self._free.get(timeout=_left(end))
        try:
            connection.socket_connect_timeout = min(CONNECT_S, _left(end))
            connection.connect()
            connection.update_current_socket_timeout(_left(end))
            connection.send_packed_command([commands], check_health=False)
            return [connection.read_response(disable_decoding=True, timeout=_left(end)) for _ in range(replies)]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._free.put(connection)

    def close(self) -> None:
        """Let go of connections that are not in use. Idempotent."""
        for _ in range(CONNECTIONS):
            try:
                connection = self._free.get_nowait()
            except queue.Empty:
                return
            connection.disconnect()
            self._free.put(connection)


def hmget_commands(keys: Sequence[bytes], fields: Sequence[bytes]) -> bytes:
    """An HMGET of the same fields for each key, as they go over the wire."""
    head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
    tail = b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])
    return b"".join([b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail) for key in keys])


def _left(end: float) -> float:
    """Seconds until an instant. Raises: TimeoutError once it has come."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the budget has ended")
    return left
