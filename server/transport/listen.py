"""The gRPC server's socket: what is bound, and never somebody else's; and what both kinds of doors have in common.

Floor 6. gRPC itself would let a second server take the port of a running one (SO_REUSEPORT) or unlink its unix socket, and
both would start without a word; here the second one is refused.
"""

import errno
import socket
from pathlib import Path
from typing import Any, Protocol

import grpc

from server.core.door_settings import UNIX
from server.core.settings import ServerSettings
from server.transport.options import channel_options
from server.transport.tls import server_credentials

_CONNECT_S = 1.0
_COMPRESSIONS = {"none": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


class Door(Protocol):
    """A server that handlers are registered with, of either kind. Ownership: the event loop it was made on."""

    def add_generic_rpc_handlers(self, handlers: Any, /) -> None:
        """Serve the methods of these handlers. Before `start`."""
        ...

    def bind(self, address: str) -> str:
        """Listen on "HOST:PORT" or "unix:PATH"; the address that clients use (port 0 is any). Before `start`.

        Raises: OSError, RuntimeError where the address is taken or is none; OSError for certificates that cannot be used.
        """
        ...

    async def start(self) -> None:
        """Take calls."""
        ...

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; cancel those that are open after so many seconds, at once for None."""
        ...


class GrpcioDoor:
    """The door of the python data plane."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._server = open_server(settings)

    def add_generic_rpc_handlers(self, handlers: Any, /) -> None:
        """See `Door`."""
        self._server.add_generic_rpc_handlers(handlers)

    def bind(self, address: str) -> str:
        """See `Door`."""
        return bind(self._server, address, server_credentials(self._settings.tls))

    async def start(self) -> None:
        """See `Door`."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """See `Door`."""
        await self._server.stop(grace)


def open_server(settings: ServerSettings) -> grpc.aio.Server:
    """A server that is not bound yet. Ownership: the running event loop.

    Compressed requests are always taken: gRPC stops expanding one at `max_message_bytes`.
    """
    return grpc.aio.server(options=channel_options(settings), compression=_COMPRESSIONS[settings.compression])


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Bind "HOST:PORT", with TLS where there are credentials, or "unix:PATH"; the address that clients use (port 0 is any).

    A socket file that nobody listens on is replaced; gRPC removes its own at the end.
    Raises: OSError, RuntimeError where the address is taken or is none.
    """
    if address.startswith(UNIX):
        check_free(socket_path(address))
        server.add_insecure_port(address)
        return address
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    return f"{address.rpartition(':')[0]}:{port}"


def socket_path(address: str) -> Path:
    """The file of a unix address, relative or absolute.

    >>> socket_path("unix:a.sock"), socket_path("unix:///run/a.sock")
    (PosixPath('a.sock'), PosixPath('/run/a.sock'))
    """
    path = address.removeprefix(UNIX)
    return Path(path.removeprefix("//") if path.startswith("///") else path)


def check_free(path: Path) -> None:
    """Raises: OSError where somebody listens, or a file is in the way; a socket that nobody listens on is not."""
    if _answers(path):
        raise OSError(errno.EADDRINUSE, f"another server listens on '{path}'")
    if path.exists() and not path.is_socket():
        raise OSError(errno.EEXIST, f"'{path}' is there and is no socket")


def _answers(path: Path) -> bool:
    """Whether somebody listens there. Raises: OSError for a path that cannot be a socket's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except TimeoutError:
            return True  # a listener whose backlog is full
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                return False
            raise
    return True
