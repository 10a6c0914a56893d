"""What is bound is nobody else's, and says where it is."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.core.settings import ServerSettings
from server.transport.listen import bind, open_server, socket_path
from tests.server.certificates import OWN_POOL

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


@asynccontextmanager
async def answering(**settings: Any) -> AsyncIterator[str]:
    """A server with these settings, whose one call answers 10 kB; its address."""

    async def infer(request: bytes, context: Any) -> bytes:
        return bytes(10_000)

    server = open_server(ServerSettings.model_validate({"repository": "r", **settings}))
    handlers: dict[str, Any] = {"m": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    yield address
    await server.stop(None)


async def outcome(channel: grpc.aio.Channel, metadata: list[tuple[str, str]] | None = None) -> str:
    call: Any = channel.unary_unary("/s/m")
    try:
        await call(b"", metadata=metadata, timeout=30)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def test_connections_are_bounded_and_their_places_come_back() -> None:
    async def main() -> None:
        async with answering(limits={"max_connections": 2}) as address:
            first, second = (grpc.aio.insecure_channel(address, OWN_POOL) for _ in range(2))
            assert [await outcome(each) for each in (first, second)] == ["OK", "OK"]
            async with grpc.aio.insecure_channel(address, OWN_POOL) as third:
                assert await outcome(third) == "UNAVAILABLE"
            assert await outcome(second) == "OK"
            await first.close()
            async with asyncio.timeout(30):
                while True:
                    async with grpc.aio.insecure_channel(address, OWN_POOL) as fourth:
                        if await outcome(fourth) == "OK":
                            break
            await second.close()

    run(main)


def test_headers_are_bounded() -> None:
    async def main() -> None:
        limits = {"max_metadata_bytes": 4096}
        async with answering(limits=limits) as address, grpc.aio.insecure_channel(address, OWN_POOL) as channel:
            assert await outcome(channel, [("x", "y" * 3000)]) == "OK"
            assert await outcome(channel, [("x", "y" * 5000)]) == "RESOURCE_EXHAUSTED"
            assert await outcome(channel, [(f"x{each}", "y" * 500) for each in range(10)]) == "RESOURCE_EXHAUSTED"
            assert await outcome(channel) == "OK"

    run(main)


PING = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)
GO_AWAY, ENHANCE_YOUR_CALM = 7, 11


def pinged_away(address: str, pings: int) -> int | None:
    """The error code of GOAWAY after so many pings; None if all were acknowledged."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) + PING * pings)
        received, acknowledged = connection.makefile("rb"), 0
        while acknowledged <= pings and (head := received.read(9)):
            payload = received.read(int.from_bytes(head[:3], "big"))
            acknowledged += head[3] == 6
            if head[3] == 6 and acknowledged == pings:
                connection.sendall(PING)  # whatever was said of the others has been said when this one is answered
            if head[3] == GO_AWAY:
                return int(struct.unpack(">II", payload[:8])[1])
    return None


def test_who_pings_too_often_is_told_to_calm_down() -> None:
    async def main() -> None:
        async with answering() as address:
            assert await asyncio.to_thread(pinged_away, address, 20) == ENHANCE_YOUR_CALM
        async with answering(keepalive={"http2_max_ping_strikes": 0}) as address:
            assert await asyncio.to_thread(pinged_away, address, 20) is None

    run(main)


def announced(address: str) -> dict[int, int]:
    """The server's first SETTINGS."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        received = connection.makefile("rb")
        head = received.read(9)
        assert head[3] == 4
        return dict(struct.iter_unpack(">HI", received.read(int.from_bytes(head[:3], "big"))))


def test_calls_per_connection_are_bounded_by_what_the_server_announces() -> None:
    most_streams = 3

    async def main() -> None:
        async with answering(limits={"max_concurrent_streams": 7}) as address:
            assert (await asyncio.to_thread(announced, address))[most_streams] == 7
        async with answering() as address:
            assert (await asyncio.to_thread(announced, address)).get(most_streams, 2**31) >= 2**31 - 1

    run(main)


def test_an_old_connection_is_told_to_go_and_the_next_one_serves() -> None:
    async def main() -> None:
        limits = {"max_connection_age_s": 0.2, "max_connection_age_grace_s": 1}
        async with answering(limits=limits) as address:
            assert await asyncio.to_thread(pinged_away_by_age, address) == 0
            async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
                assert await outcome(channel) == "OK"

    run(main)


def pinged_away_by_age(address: str) -> int:
    """The error code of the GOAWAY that comes by itself."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        received = connection.makefile("rb")
        while head := received.read(9):
            payload = received.read(int.from_bytes(head[:3], "big"))
            if head[3] == GO_AWAY:
                return int(struct.unpack(">II", payload[:8])[1])
    raise AssertionError("closed without a word")


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_responses_are_compressed_as_the_setting_says(compression: str) -> None:
    """Counted on the wire: ten thousand zeros take a few bytes, or all of them."""

    def received(address: str) -> int:
        host, _, port = address.rpartition(":")
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b":authority", b"x")]
        headers += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-accept-encoding", b"gzip,deflate")]
        block = b"".join(b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in headers)
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            connection.sendall(struct.pack(">I", len(block))[1:] + bytes((1, 4, 0, 0, 0, 1)) + block)
            connection.sendall(bytes((0, 0, 5, 0, 1, 0, 0, 0, 1)) + bytes(5))
            frames, size = connection.makefile("rb"), 0
            while head := frames.read(9):
                length = int.from_bytes(head[:3], "big")
                frames.read(length)
                if head[3] == 0:
                    size += length
                if head[3] in (0, 1) and head[4] & 1:
                    return size
        raise AssertionError("closed before the answer")

    async def main() -> None:
        async with answering(compression=compression) as address:
            size = await asyncio.to_thread(received, address)
            assert size > 10_000 if compression == "none" else size < 200
            async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
                call: Any = channel.unary_unary("/s/m")
                assert await call(b"", timeout=30) == bytes(10_000)

    run(main)
