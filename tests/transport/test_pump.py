"""The native door's event loop side, driven by events that tests make: what no client can bring about when it wants to."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from server.core.door_settings import TlsSettings
from server.transport.native.interface import GONE, HALF_CLOSED, MESSAGE, STARTED, WRITABLE
from server.transport.native.server import NativeServer
from server.transport.tls import Certificates
from tests.server.certificates import Authority
from tests.transport.doors import handlers_of


class FakeCall(SimpleNamespace):
    """A call that remembers what it was told."""

    def __init__(self, path: str, deadline_ns: int | None = None) -> None:
        auth = {"x509_common_name": [b"me"]}
        super().__init__(path=path, metadata=[], arrival_ns=0, deadline_ns=deadline_ns, peer="unix:", auth=lambda: auth)
        self.told: list[tuple[Any, ...]] = []
        for name in ("start", "send", "finish", "answer", "taken", "want_writable"):
            setattr(self, name, lambda *arguments, name=name: self.told.append((name, *arguments)))

    def ends(self) -> list[tuple[Any, ...]]:
        return [each for each in self.told if each[0] in ("finish", "answer")]


class FakeNative:
    """A server whose events are a test's."""

    def __init__(self) -> None:
        self.event_fd, self._write_fd = os.pipe()
        self.events: list[tuple[int, int, Any]] = []
        self.tls: list[tuple[bytes, ...]] = []
        self.bad: str = ""
        self.check: Callable[[], None] | None = None
        self.said: list[Any] = []

    def put(self, *events: tuple[int, int, Any]) -> None:
        self.events.extend(events)
        os.write(self._write_fd, b"x")

    def take_events(self) -> list[tuple[int, int, Any]]:
        if self.events:
            os.read(self.event_fd, 1000)
        taken, self.events = self.events, []
        return taken

    def listen(self, fd: int, tls: bool) -> None:
        os.close(fd)
        self.said.append(tls)

    def set_tls(self, *pem: bytes) -> None:
        if self.bad:
            raise RuntimeError(self.bad)
        self.tls.append(pem)

    def on_handshake(self, check: Callable[[], None]) -> None:
        self.check = check

    def start(self) -> None: ...

    def drain(self) -> None: ...

    def wait_drained(self, timeout_s: float) -> bool:
        return True

    def stop(self) -> None: ...

    def counters(self) -> dict[str, int]:
        return {"streams_open": 0}

    def close(self) -> None:
        os.close(self.event_fd)
        os.close(self._write_fd)


@asynccontextmanager
async def pumped(**behaviours: Any) -> AsyncIterator[tuple[NativeServer, FakeNative]]:
    native = FakeNative()
    server = NativeServer(native)
    server.add_generic_rpc_handlers((handlers_of(**behaviours),))
    await server.start()
    try:
        yield server, native
    finally:
        await server.stop(None)
        native.close()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0.001)


async def echo(request: Any, context: Any) -> Any:
    return request


def test_events_of_calls_that_are_over_are_dropped() -> None:
    async def main() -> None:
        async with pumped(unary_echo=echo) as (_, native):
            call = FakeCall("/s/unary_echo")
            native.put((STARTED, 1, call), (MESSAGE, 1, b"a"), (HALF_CLOSED, 1, None))
            await turns()
            assert call.told == [("taken", 1), ("answer", b"a", "", ())]
            native.put((MESSAGE, 1, b"late"), (HALF_CLOSED, 1, None), (GONE, 1, None), (WRITABLE, 1, None))
            await turns()
            assert len(call.told) == 2

    asyncio.run(main())


def test_a_call_that_goes_before_its_message_leaves_nothing() -> None:
    async def main() -> None:
        async with pumped(unary_echo=echo) as (server, native):
            gone, empty = FakeCall("/s/unary_echo"), FakeCall("/s/unary_echo")
            native.put((STARTED, 1, gone), (GONE, 1, None), (STARTED, 2, empty), (HALF_CLOSED, 2, None))
            await turns()
            assert gone.told == []
            assert empty.told == [("finish", 3, "the call ended before its message", ())]
            assert not server._calls
            assert server.counters() == {"streams_open": 0}

    asyncio.run(main())


def test_a_look_up_that_fails_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            raise LookupError(handler_call_details.method)

    async def main() -> None:
        async with pumped(unary_echo=echo) as (server, native):
            server.add_generic_rpc_handlers((Faulty(),))
            faulty, well = FakeCall("/s/other"), FakeCall("/s/unary_echo")
            native.put((STARTED, 1, faulty), (STARTED, 2, well), (MESSAGE, 2, b"w"))
            await turns()
            assert faulty.told == [("finish", 2, "Unexpected <class 'LookupError'>: /s/other", ())]
            assert well.ends() == [("answer", b"w", "", ())]

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(main())


def test_a_writer_waits_for_the_socket_and_ends_with_its_caller() -> None:
    told: list[Any] = []

    async def flood(request: Any, context: Any) -> None:
        await context.write(bytes(70_000))
        told.append("went on")
        try:
            await context.write(bytes(70_000))
        except asyncio.CancelledError:
            told.append("cancelled")
            with pytest.raises(grpc.aio.InternalError, match="the caller has gone"):
                await context.write(b"more")
            assert await context.read() is grpc.aio.EOF
            raise

    async def main() -> None:
        async with pumped(down_flood=flood) as (_, native):
            call = FakeCall("/s/down_flood")
            native.put((STARTED, 1, call), (MESSAGE, 1, b""))
            await turns()
            assert told == []
            assert call.told[-1] == ("want_writable",)
            native.put((WRITABLE, 1, None))
            await turns()
            assert told == ["went on"]
            native.put((GONE, 1, None))
            await turns()
            assert told == ["went on", "cancelled"]

    asyncio.run(main())


def test_what_cannot_be_sent_is_refused_where_it_is_said() -> None:
    async def say(request: Any, context: Any) -> Any:
        for bad, why in [
            ((["a", "b"],), TypeError),
            ((("A", "b"),), ValueError),
            ((("a b", "b"),), ValueError),
            ((("a", "b\n"),), ValueError),
            ((("a", "ä"),), ValueError),
            ((("a", b"b"),), TypeError),
            ((("a-bin", "b"),), TypeError),
            ((("a",),), ValueError),
        ]:
            with pytest.raises(why):
                context.set_trailing_metadata(bad)
        context.set_compression(grpc.Compression.Gzip)
        context.disable_next_message_compression()
        await context.send_initial_metadata(())
        with pytest.raises(RuntimeError, match="before sending initial metadata"):
            context.set_compression(grpc.Compression.Gzip)
        assert list(context.peer_identities()) == [b"me"]
        assert context.peer_identity_key() == "x509_common_name"
        assert context.auth_context() == {"x509_common_name": [b"me"]}
        assert context.time_remaining() == 0
        context.add_done_callback(lambda context: 1 / 0)  # told of in the log, and no more
        return b"said"

    async def main() -> None:
        async with pumped(unary_say=say) as (_, native):
            call = FakeCall("/s/unary_say", deadline_ns=1)
            native.put((STARTED, 1, call), (MESSAGE, 1, b""))
            await turns()
            assert call.told[1:] == [("start", ()), ("answer", b"said", "", ())]

    asyncio.run(main())


def test_one_reader_at_a_time_and_a_read_given_up_loses_nothing() -> None:
    found: list[Any] = []

    async def read(requests: Any, context: Any) -> Any:
        first = asyncio.ensure_future(context.read())
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.UsageError, match="another read"):
            await context.read()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        found.extend([await context.read(), await context.read()])
        return b""

    async def main() -> None:
        async with pumped(up_read=read) as (_, native):
            call = FakeCall("/s/up_read")
            native.put((STARTED, 1, call))
            await turns()
            native.put((MESSAGE, 1, b"one"), (HALF_CLOSED, 1, None))
            await turns()
            assert found == [b"one", grpc.aio.EOF]
            assert call.ends() == [("answer", b"", "", ())]

    asyncio.run(main())


def test_a_changed_certificate_is_used_from_the_next_handshake_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = Authority(tmp_path).issue("server", "localhost")
    root = tmp_path / "ca.pem"

    async def main() -> None:
        native = FakeNative()
        tls = TlsSettings(cert_file=str(cert), key_file=str(key), client_ca_file=str(root))
        server = NativeServer(native, Certificates(tls))
        server.bind("127.0.0.1:0")
        assert native.said == [True]
        assert native.tls == [(cert.read_bytes(), key.read_bytes(), root.read_bytes())]
        assert native.check is not None
        native.check()
        assert len(native.tls) == 1
        Authority(tmp_path, "other").issue("server", "localhost")
        native.bad = "no such cipher"
        native.check()
        (warned,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert "no such cipher" in vars(warned)["reason"]
        native.bad = ""
        native.check()
        assert len(native.tls) == 2
        server.bind(f"unix:{tmp_path}/s")
        assert native.said == [True, False]
        await server.stop(None)
        assert not (tmp_path / "s").exists()
        native.close()

    asyncio.run(main())


def test_a_certificate_that_openssl_refuses_is_told_at_the_start(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("server", "localhost")

    async def main() -> None:
        native = FakeNative()
        native.bad = "ee key too small"
        server = NativeServer(native, Certificates(TlsSettings(cert_file=str(cert), key_file=str(key))))
        with pytest.raises(OSError, match="the certificate cannot be used: ee key too small"):
            server.bind("127.0.0.1:0")
        native.close()

    asyncio.run(main())
