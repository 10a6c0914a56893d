"""The gRPC server's socket: what is bound, and never somebody else's.

Floor 6. gRPC itself would let a second server take the port of a running one (SO_REUSEPORT) or unlink its unix socket, and
both would start without a word; here the second one is refused.
"""

import errno
import socket
from pathlib import Path

import grpc

_UNIX = "unix:"
_CONNECT_S = 1.0


def open_server(max_message_bytes: int) -> grpc.aio.Server:
    """A server that is not bound yet. Ownership: the running event loop."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # without this a second server on the same port starts silently and takes half the calls
            ("grpc.so_reuseport", 0),
        ]
    )


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind "HOST:PORT" or "unix:PATH"; the address that clients use (port 0 is any that is free).

    A socket file that nobody listens on is replaced; gRPC removes its own at the end.
    Raises: OSError, RuntimeError where the address is taken or is none.
    """
    if address.startswith(_UNIX):
        path = socket_path(address)
        if _answers(path):
            raise OSError(errno.EADDRINUSE, f"another server listens on '{path}'")
        if path.exists() and not path.is_socket():
            raise OSError(errno.EEXIST, f"'{path}' is there and is no socket")
    port = server.add_insecure_port(address)
    if address.startswith(_UNIX):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def socket_path(address: str) -> Path:
    """The file of a unix address, relative or absolute.

    >>> socket_path("unix:a.sock"), socket_path("unix:///run/a.sock")
    (PosixPath('a.sock'), PosixPath('/run/a.sock'))
    """
    path = address.removeprefix(_UNIX)
    return Path(path.removeprefix("//") if path.startswith("///") else path)


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
