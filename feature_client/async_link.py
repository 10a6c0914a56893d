"""Connections of one event loop to one server, two of them, each used by one request at a time.

A connection whose request failed in any way is closed, so that no answer can be taken for another's. What decides whether a
new one may be opened stands above: here each request opens one if it has to, and nothing tries twice.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis import connection as blocking
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from feature_client.errors import StoreError, StoreTimeout
from feature_client.redis_address import Address
from feature_client.redis_channel import Word, packed
from feature_client.store import Key, Row

CONNECT_S = 0.5
"""How long a new connection may take, with TLS and login. No caller waits longer than its own budget for it."""
HUNG_S = 1.0
"""How long a request may be out before its connection is given up. Callers' budgets are far shorter; this ends what they no
longer wait for."""
CONNECTIONS = 2

Connect = Callable[[], AbstractConnection]
_KINDS: dict[type[Any], Callable[..., AbstractConnection]] = {
    blocking.Connection: Connection,
    blocking.SSLConnection: SSLConnection,
    blocking.UnixDomainSocketConnection: UnixDomainSocketConnection,
}


def connect_to(address: Address) -> Connect:
    """How to make connections to an address."""
    return lambda: _KINDS[address.kind](**_obeyed(address.options))


def connect_as(client: Redis) -> Connect:
    """How to make connections as a client of redis-py would; its own are left to it, and its timeouts are not obeyed."""
    pool = client.connection_pool
    return lambda: pool.connection_class(**_obeyed(pool.connection_kwargs))


def _obeyed(options: Any) -> dict[str, Any]:
    told = {name: value for name, value in options.items() if name not in ("maint_notifications_config", "retry_on_error")}
    told |= {"retry": Retry(NoBackoff(), 0), "retry_on_timeout": False, "health_check_interval": 0}
    # RESP2 looks the same for what is asked here, and needs no greeting
    return told | {"socket_timeout": HUNG_S, "socket_connect_timeout": CONNECT_S, "decode_responses": False, "protocol": 2}


class AsyncLink:
    """Connections to one server. Belongs to one event loop. `connected` counts how many were ever opened, or tried to be."""

    def __init__(self, connect: Connect) -> None:
        self._free = [connect() for _ in range(CONNECTIONS)]
        self.connected = 0

    async def mget(self, groups: Sequence[Sequence[Key]]) -> list[list[Row | None] | ResponseError]:
        """The rows of each group by one MGET, all in one round trip; an error where the server refused one.

        At most `CONNECTIONS` at once. Raises: StoreError, StoreTimeout.
        """
        connection = self._free.pop()
        try:
            if connection.is_connected and await connection.can_read():
                # the server has closed it, or said what nobody asked for: that would be taken for the next answer
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                self.connected += 1
                await connection.connect()  # type: ignore[no-untyped-call]
            commands = packed(*[_mget(group) for group in groups])
            await connection.send_packed_command(commands, check_health=False)
            return [await _reply(connection, len(group)) for group in groups]
        except (RedisTimeout, TimeoutError):
            await connection.disconnect(nowait=True)
            raise StoreTimeout(f"the store did not answer within {HUNG_S:g} s") from None
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise StoreError(f"the store cannot be asked: {error}") from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._free.append(connection)

    async def close(self) -> None:
        """Let go of connections; takes no longer than `CONNECT_S` each. Idempotent."""
        for connection in self._free:
            await connection.disconnect()
        # those that were given up just now need two turns of the loop to go, should it end after this
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def _mget(keys: Sequence[Key]) -> tuple[Word, ...]:
    return ("MGET", *keys)


async def _reply(connection: AbstractConnection, rows: int) -> list[Row | None] | ResponseError:
    """One reply; what the server refuses is an answer too, and the next one stands behind it."""
    try:
        reply = await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
    if not isinstance(reply, list) or len(reply) != rows:
        raise RedisError(f"{rows} rows were asked for, and something else came")
    return reply
