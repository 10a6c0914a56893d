"""Connections of one event loop to one server, two of them, each used by one request at a time.

A connection whose request failed in any way is closed, so that no answer can be taken for another's. What decides whether a
new one may be opened stands above: here each request opens one if it has to, and nothing tries twice.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import connection as blocking
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
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

_READ_BYTES = 1 << 18
_KEPT_BUFFER_BYTES = 1 << 20
"""How much of its buffer a parser keeps between replies. Its own 16 KiB is allocated anew for every large reply."""
_MORE = object()
"""What a parser gives when the reply is not whole yet; None and False are replies."""

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
        self._parsers: dict[AbstractConnection, hiredis.Reader] = {}
        self.connected = 0

    async def mget(self, groups: Sequence[Sequence[Key]]) -> list[list[Row | None] | ResponseError]:
        """The rows of each group by one MGET, all in one round trip; an error where the server refused one.

        At most `CONNECTIONS` at once. Raises: StoreError, StoreTimeout.
        """
        connection = self._free.pop()
        try:
            if connection.is_connected and (self._parsers[connection].has_data() or await connection.can_read()):
                # the server has closed it, or said what nobody asked for: that would be taken for the next answer
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                self.connected += 1
                await connection.connect()  # type: ignore[no-untyped-call]
                self._parsers[connection] = _parser(connection)
            async with asyncio.timeout(HUNG_S):
                return await _replies(connection, self._parsers[connection], groups)
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


def _parser(connection: AbstractConnection) -> hiredis.Reader:
    """As redis-py makes its own: what the server refuses becomes one of redis-py's errors."""
    parser = hiredis.Reader(
        protocolError=InvalidResponse,
        replyError=connection._parser.parse_error,
        notEnoughData=_MORE,
    )
    parser.setmaxbuf(_KEPT_BUFFER_BYTES)
    return parser


async def _replies(
    connection: AbstractConnection, parser: hiredis.Reader, groups: Sequence[Sequence[Key]]
) -> list[list[Row | None] | ResponseError]:
    """One reply for each group; what the server refuses is an answer too, and the next one stands behind it.

    redis-py's own way to send and to read takes a task and several turns of the loop for each request. No public name gives
    its streams; a version that had none by these names would fail every test of this file.
    """
    stream, writer = connection._reader, connection._writer
    if stream is None or writer is None:
        raise RedisConnectionError("the server closed it at once")
    writer.write(packed(*[_mget(group) for group in groups]))
    await writer.drain()
    replies: list[list[Row | None] | ResponseError] = []
    for group in groups:
        while (reply := parser.gets()) is _MORE:
            data = await stream.read(_READ_BYTES)
            if not data:
                raise RedisConnectionError("the server closed it")
            parser.feed(data)
        if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
            raise reply
        if not isinstance(reply, ResponseError) and (not isinstance(reply, list) or len(reply) != len(group)):
            raise RedisError(f"{len(group)} rows were asked for, and something else came")
        replies.append(reply)
    return replies
