"""Connections of one event loop to one node, two of them, each used by one request at a time and never shared while it is out.

A connection whose request failed in any way is closed, so that no answer can be taken for another's. What decides whether a
new one may be opened stands above: here each request opens one if it has to, and nothing tries twice.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from feature_client.errors import StoreError, StoreTimeout
from feature_client.store import Key, Row

CONNECT_S = 0.25
"""How long a new connection may take, with TLS and login."""
HUNG_S = 1.0
"""How long a request may be out before its connection is given up. Callers' budgets are far shorter; this ends what they no
longer wait for."""
LANES = 2


class Lanes:
    """Connections to one node. `connected` counts how many have been opened."""

    def __init__(self, pool: ConnectionPool) -> None:
        """`pool` says how to connect; none of its own connections is used. Its timeouts and retries are not obeyed."""
        told = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0), "retry_on_error": [], "retry_on_timeout": False}
        told |= {"socket_timeout": HUNG_S, "socket_connect_timeout": CONNECT_S, "socket_keepalive": True}
        # RESP2: what is asked here looks the same in both, and its first answer needs no negotiation
        told |= {"health_check_interval": 0, "decode_responses": False, "protocol": 2}
        if "path" in told:
            del told["socket_keepalive"]
        told.pop("maint_notifications_config", None)
        self._free: list[Connection] = [pool.connection_class(**told) for _ in range(LANES)]
        self.connected = 0

    async def mget(self, groups: Sequence[Sequence[Key]]) -> list[list[Row | None] | ResponseError]:
        """The rows of each group by one MGET, all in one round trip; an error where the node refused one.

        Raises: StoreError, StoreTimeout.
        """
        return await self._exchange(b"".join(map(mget_command, groups)), len(groups))

    async def _exchange(self, commands: bytes, replies: int) -> list[Any]:
        connection = self._free.pop()
        try:
            if not connection.is_connected:
                self.connected += 1
                await connection.connect()
            await connection.send_packed_command(commands, check_health=False)
            return [await _reply(connection) for _ in range(replies)]
        except (RedisTimeout, TimeoutError) as error:
            await connection.disconnect(nowait=True)
            raise StoreTimeout(f"no answer within {HUNG_S:g} s") from error
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise StoreError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._free.append(connection)

    async def close(self) -> None:
        """Let go of connections; none may be in use. Idempotent."""
        for connection in self._free:
            await connection.disconnect(nowait=True)


async def _reply(connection: Connection) -> Any:
    """One reply; what the node refuses is an answer too, and the next one stands behind it."""
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def mget_command(keys: Sequence[Key]) -> bytes:
    """MGET as it goes over the wire."""
    return b"".join((b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1), *[b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]))
