"""From a store's URL to what connects to it: checked before anything is connected, and never printed with a password.

`redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://`, `rediss+cluster://`; the options of a URL are redis-py's
(`db`, `client_name`, `username`, `password`, `ssl_...`), but for those about timeouts, retries and pools: these are settled
here.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from redis.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import RedisError

from feature_client.errors import StoreError
from feature_client.redis_channel import Channel
from feature_client.redis_replies import refused

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_OPTIONS = frozenset({"db", "client_name", "username", "password"})
_FIRST_WORDS_S = 1.0
"""How long TLS and a login may take after the connection stands. Nobody waits for it: see `Link`."""
_TCP_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 3000}
"""A machine that acknowledges nothing for 3 s is given up; one whose server merely hangs does acknowledge."""


@dataclass(frozen=True)
class Address:
    """Where a server is and how to be let in. `name`: the URL for people: without password or options."""

    name: str
    kind: type[AbstractConnection]
    options: Mapping[str, Any]
    is_cluster: bool

    def at(self, host: str, port: int) -> Self:
        """The same for another node of its cluster."""
        shown = f"[{host}]" if ":" in host else host
        name = f"{self.name.partition('://')[0].removesuffix('+cluster')}://{shown}:{port}"
        return type(self)(name, self.kind, {**self.options, "host": host, "port": port}, self.is_cluster)

    @property
    def host(self) -> str:
        """The machine's name or number; "" of a local socket."""
        return str(self.options.get("host", ""))

    @property
    def port(self) -> int:
        """The port; 0 of a local socket."""
        return int(self.options.get("port", 0))

    def connect(self, timeout_s: float) -> Channel:
        """Connect, log in, choose the database. Takes longer than `timeout_s` where names are slow to resolve, or TLS is.

        Raises: StoreError.
        """
        connection = self.kind(**self.options, socket_connect_timeout=timeout_s, socket_timeout=_FIRST_WORDS_S)
        try:
            connection.connect()  # type: ignore[no-untyped-call]
            return Channel(connection, self.name)
        except RedisError as error:
            code = getattr(error, "status_code", None)
            if code is not None:
                raise refused(self.name, f"{code} {error}") from None
            raise StoreError(f"{self.name} cannot be reached: {error}") from None
        except OSError as error:  # a file of certificates that is not there
            raise StoreError(f"{self.name} cannot be reached: {error.strerror or error}") from None


def parse_address(url: str, called: str = "") -> Address:
    """What a URL says. `called`: the name for people, where it is not to be the URL's.

    Raises: StoreError where the URL cannot be one; its text never holds the URL itself."""
    scheme, separator, rest = url.partition("://")
    if scheme not in SCHEMES or not separator:
        raise StoreError(f"the URL of a store starts with one of {', '.join(f'{each}://' for each in SCHEMES)}")
    is_cluster = scheme.endswith("+cluster")
    plain = f"{scheme.removesuffix('+cluster')}://{rest}"
    try:
        parts = urlsplit(plain)
        found: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
        names = parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        raise StoreError(
            f"the URL of the store cannot be read (it starts with {scheme}://): a password is to be percent-encoded"
        ) from None
    alien = sorted(name for name in names if name not in _OPTIONS and not name.startswith("ssl_"))
    if alien:
        raise StoreError(f"the URL of the store has options that are not taken: {', '.join(alien)}")
    kind: type[AbstractConnection] = found.pop("connection_class", Connection)
    if scheme == "unix":
        if not found.get("path"):
            raise StoreError("the URL of the store names no socket: unix:///path/of/the.sock")
        name = f"unix://{found['path']}"
    else:
        database = parts.path.strip("/")
        if (database and not database.isdigit()) or (is_cluster and int(found.get("db", 0))):
            raise StoreError("the database in the store's URL is a number, and 0 of a cluster")
        found.setdefault("host", "localhost")
        found.setdefault("port", 6379)
        shown = f"[{found['host']}]" if ":" in found["host"] else found["host"]
        name = f"{scheme}://{shown}:{found['port']}" + ("" if is_cluster else f"/{found.get('db', 0)}")
        found["socket_keepalive_options"] = {
            getattr(socket, option): value for option, value in _TCP_OPTIONS.items() if hasattr(socket, option)
        }
    # RESP2: the third version's greeting is refused by older servers, and by users without a right to it
    address = Address(called or name, kind, {**found, "protocol": 2}, is_cluster)
    try:
        kind(**address.options)
    except (TypeError, ValueError, RedisError):
        raise StoreError(f"the options in the store's URL ({', '.join(sorted(names))}) are not what they must be") from None
    return address
