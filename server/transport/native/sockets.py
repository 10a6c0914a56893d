"""Listening sockets for the native door: never somebody else's, and gone when they should be.

Floor 6. C++ takes sockets that listen; who may listen where is decided here.
"""

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.core.door_settings import UNIX
from server.transport.http import split_address
from server.transport.listen import check_free, socket_path

_BACKLOG = 4096
_TRIES = 16
"""How often another port is tried where one that is free on the first of a host's addresses is taken on the next."""


class Listening:
    """Sockets of one address. Ownership: whoever listens, until `hand_over`; it removes a unix socket's file at the end."""

    def __init__(self, address: str, sockets: list[socket.socket], path: Path | None = None) -> None:
        self.address = address
        self.path = path
        self._sockets = sockets
        self._file = None if path is None else _identity(path)

    def hand_over(self) -> list[int]:
        """The file descriptors, which are the caller's from now on."""
        return [each.detach() for each in self._sockets]

    def remove(self) -> None:
        """Remove the socket's file, if it is still the one that was made. Idempotent."""
        if self.path is not None and self._file is not None and _identity(self.path) == self._file:
            self.path.unlink(missing_ok=True)
        self._file = None


def listen(address: str, *, reuse_port: bool = False) -> Listening:
    """Listen on "HOST:PORT" (each address of the host) or "unix:PATH"; a socket file that nobody listens on is replaced.

    `reuse_port`: share the port with whoever says so too.
    Raises: OSError where the address is taken or is none.
    """
    if address.startswith(UNIX):
        return _listen_unix(address)
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(errno.EADDRNOTAVAIL, f"'{address}' cannot be listened on: {error}") from None
    ends = list(dict.fromkeys((family, where) for family, _, _, _, where in found))
    for last in [False] * (_TRIES - 1) + [True]:
        try:
            sockets = _listen_tcp(ends, port, reuse_port)
        except OSError as error:
            if last or port or error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"'{address}' cannot be listened on: {error.strerror}") from None
        else:
            break
    return Listening(f"{address.rpartition(':')[0]}:{sockets[0].getsockname()[1]}", sockets)


def _listen_tcp(
    ends: Sequence[tuple[socket.AddressFamily, tuple[Any, ...]]], port: int, reuse_port: bool
) -> list[socket.socket]:
    """All on one port. An address that this machine does not have is left out, where it has another one."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, where in ends:
            try:
                sockets.append(_listen_one(family, (where[0], port, *where[2:]), reuse_port))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
                continue
            port = sockets[0].getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


def _listen_one(family: socket.AddressFamily, where: tuple[Any, ...], reuse_port: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        # lets a port be taken again while old connections of it fade; never one that is listened on
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "[::]" is every address, as gRPC has it
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, where[0] != "::")
        made.bind(where)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _listen_unix(address: str) -> Listening:
    path = socket_path(address)
    check_free(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        made.bind(str(path))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"'{path}' cannot be listened on: {error.strerror}") from None
    return Listening(address, [made], path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
