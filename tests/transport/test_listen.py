"""What is bound is nobody else's, and says where it is."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from server.core.settings import ServerSettings
from server.transport.listen import bind, open_server, socket_path

SETTINGS = ServerSettings(repository="models")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_port_0_is_any_that_is_free_and_is_told() -> None:
    async def main() -> None:
        server = open_server(SETTINGS)
        address = bind(server, "127.0.0.1:0")
        host, _, port = address.rpartition(":")
        await server.start()
        with socket.create_connection((host, int(port)), timeout=10):
            pass
        with pytest.raises(RuntimeError, match=address):
            bind(open_server(SETTINGS), address)
        await server.stop(None)

    run(main)


def test_a_live_socket_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        server = open_server(SETTINGS)
        assert bind(server, f"unix:{path}") == f"unix:{path}"
        await server.start()
        with pytest.raises(OSError, match=f"another server listens on '{path}'"):
            bind(open_server(SETTINGS), f"unix:{path}")
        await server.stop(None)

    run(main)


def test_a_stale_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    stale, file = tmp_path / "stale", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    file.write_text("precious")

    async def main() -> None:
        server = open_server(SETTINGS)
        bind(server, f"unix://{stale}")
        with pytest.raises(OSError, match="is there and is no socket"):
            bind(server, f"unix:{file}")
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            bind(server, f"unix:{tmp_path}/{'x' * 200}")
        with pytest.raises(RuntimeError):
            bind(server, f"unix:{tmp_path}/no/such/folder/s")
        await server.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(stale))
        await server.stop(None)

    run(main)
    assert file.read_text() == "precious"


def test_socket_paths() -> None:
    assert socket_path("unix:/run/a") == socket_path("unix:///run/a") == Path("/run/a")
    assert socket_path("unix:a/b") == Path("a/b")
