"""How calls end, on both doors: by handlers and their faults, by callers who leave, by time and by the server's end."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.planes import PLANES
from tests.transport.doors import Toy, serving

pytestmark = pytest.mark.parametrize("kind", PLANES)
ODD = "kein Platz – 満員, 100 %\n"


async def echo(request: Any, context: Any) -> Any:
    return request


async def ended(call: Any) -> tuple[str, str, dict[str, Any]]:
    """Code, text and trailing metadata of a call whose outcome is not asked for otherwise."""
    return (await call.code()).name, await call.details(), dict(await call.trailing_metadata())


def test_a_handler_aborts(kind: str) -> None:
    raised: list[str] = []

    async def abort(request: bytes, context: Any) -> bytes:
        if request == b"after":
            context.set_trailing_metadata((("kept", "1"),))
            context.set_details("kept")
            await context.abort(grpc.StatusCode.ABORTED)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, ODD, (("why", "full"), ("why-bin", b"\x00\xfe")))
        return b"never"

    async def abort_with_status(request: bytes, context: Any) -> bytes:
        await context.abort_with_status(_Status())
        return b"never"

    async def suppress(request: bytes, context: Any) -> bytes:
        for action in (lambda: context.abort(grpc.StatusCode.ABORTED, "one"), lambda: context.write(b"x"), context.read):
            try:
                await action()
            except (grpc.aio.AbortError, grpc.aio.UsageError) as error:
                raised.append(type(error).__name__)
        with pytest.raises(grpc.aio.UsageError, match="Abort already called"):
            await context.abort(grpc.StatusCode.ABORTED, "two")
        return b"never"

    async def abort_late(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        await context.abort(grpc.StatusCode.DATA_LOSS, "later")

    async def main() -> None:
        handlers = {
            "unary_abort": abort,
            "unary_suppress": suppress,
            "unary_status": abort_with_status,
            "down_late": abort_late,
        }
        async with serving(kind, **handlers) as toy:
            full = {"why": "full", "why-bin": b"\x00\xfe"}
            assert await ended(toy.call("unary_abort")(b"", timeout=30)) == ("RESOURCE_EXHAUSTED", ODD, full)
            assert await ended(toy.call("unary_abort")(b"after", timeout=30)) == ("ABORTED", "kept", {"kept": "1"})
            assert await ended(toy.call("unary_status")(b"", timeout=30)) == ("NOT_FOUND", "gone", {"a": "b"})
            assert await toy.outcome("unary_suppress") == (None, "ABORTED", "one")
            late = toy.call("down_late")(b"", timeout=30)
            assert await late.read() == b"one"
            assert await ended(late) == ("DATA_LOSS", "later", {})

    asyncio.run(main())
    assert raised == ["AbortError"] * 3


class _Status:
    code, details, trailing_metadata = grpc.StatusCode.NOT_FOUND, "gone", (("a", "b"),)


def test_a_handler_sets_how_its_call_ends(kind: str) -> None:
    async def fails(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(ODD)
        assert (context.code(), context.details()) == (grpc.StatusCode.NOT_FOUND, ODD)
        return b"dropped"

    async def is_cancelled(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.CANCELLED)
        assert context.cancelled()
        return b""

    async def unknown(request: bytes, context: Any) -> bytes:
        context.set_code(99)
        return b""

    async def well(request: bytes, context: Any) -> bytes:
        context.set_details("all well")
        return b"kept"

    async def fails_late(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("no more")

    async def main() -> None:
        handlers = {"unary_fails": fails, "unary_well": well, "unary_gone": is_cancelled, "unary_unknown": unknown}
        async with serving(kind, down_late=fails_late, **handlers) as toy:
            assert await toy.outcome("unary_fails") == (None, "NOT_FOUND", ODD)
            assert await toy.outcome("unary_well") == (b"kept", "OK", "")  # gRPC's callers see no text beside OK
            assert (await toy.outcome("unary_unknown"))[1] == "UNKNOWN"
            call = toy.call("unary_gone")(b"", timeout=30)
            assert await call.code() is grpc.StatusCode.CANCELLED
            late = toy.call("down_late")(b"", timeout=30)
            assert await late.read() == b"one"
            assert await ended(late) == ("OUT_OF_RANGE", "no more", {})

    asyncio.run(main())


def test_a_faulty_handler_is_told_of_and_hurts_nobody_else(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(data: bytes) -> Any:
        raise ValueError(f"no {len(data)} bytes")

    async def fails(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("a", "b"),))
        if request == b"code":
            context.set_code(grpc.StatusCode.DATA_LOSS)
        raise KeyError("oops")

    async def fails_late(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield each
            raise RuntimeError("late")

    async def foreign(request: bytes, context: Any) -> bytes:
        raise grpc.aio.AbortError("of nobody")

    parsing: Any = grpc.unary_unary_rpc_method_handler(echo, request_deserializer=refuse)
    writing: Any = grpc.unary_unary_rpc_method_handler(echo, response_serializer=refuse)

    async def main() -> None:
        unary = {"unary_fails": fails, "unary_parses": parsing, "unary_writes": writing, "unary_echo": echo}
        async with serving(kind, both_late=fails_late, **unary) as toy:
            text = "Unexpected <class 'KeyError'>: 'oops'"
            assert await ended(toy.call("unary_fails")(b"", timeout=30)) == ("UNKNOWN", text, {"a": "b"})
            assert await ended(toy.call("unary_fails")(b"code", timeout=30)) == ("DATA_LOSS", text, {"a": "b"})
            text = "Unexpected <class 'ValueError'>: no 3 bytes"
            assert await toy.outcome("unary_parses", b"abc") == (None, "UNKNOWN", text)
            assert await toy.outcome("unary_writes", b"abc") == (None, "UNKNOWN", text)
            late = toy.call("both_late")(timeout=30)
            await late.write(b"one")
            assert await late.read() == b"one"
            assert (await ended(late))[:2] == ("UNKNOWN", "Unexpected <class 'RuntimeError'>: late")
            assert await toy.outcome("unary_echo") == (b"q", "OK", "")

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert len([each for each in caplog.records if each.exc_info]) == 5


def test_a_method_that_is_not_there(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, unary_echo=echo) as toy:
            assert await toy.outcome("unary_nothing") == (None, "UNIMPLEMENTED", "Method not found!")
            call: Any = toy.channel.unary_unary("/nobody/unary_echo")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"q", timeout=30)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            stream = toy.call("both_nothing")(timeout=30)
            assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


class Held:
    """Handlers that wait, and tell when they began and how they ended."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.how: list[str] = []
        self.go_on = asyncio.Event()

    async def wait(self, request: Any, context: Any) -> Any:
        context.add_done_callback(lambda context: self.how.append("called back"))
        try:
            self.began.set()
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.how.append("cancelled")
            raise
        finally:
            self.ended.set()
        return request

    async def read(self, requests: Any, context: Any) -> None:
        self.began.set()
        try:
            while await context.read() is not grpc.aio.EOF:
                pass
            await self.go_on.wait()
        finally:
            self.ended.set()

    async def flood(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            for _ in range(10_000):
                yield bytes(100_000)
                self.began.set()
        finally:
            self.ended.set()


@pytest.mark.parametrize("method", ["unary_wait", "up_wait", "both_read", "down_flood"])
def test_a_handler_whose_caller_leaves_is_cancelled(kind: str, method: str) -> None:
    async def main() -> None:
        held = Held()
        handlers = {"unary_wait": held.wait, "up_wait": held.wait, "both_read": held.read, "down_flood": held.flood}
        async with serving(kind, unary_echo=echo, **handlers) as toy:
            call = toy.call(method)(timeout=60) if method[0] in "b" else toy.call(method)(_first(method), timeout=60)
            await asyncio.wait_for(held.began.wait(), 30)
            call.cancel()
            await asyncio.wait_for(held.ended.wait(), 30)
            assert await toy.outcome("unary_echo") == (b"q", "OK", "")
        assert held.how == (["cancelled", "called back"] if method.endswith("wait") else [])

    asyncio.run(main())


def _first(method: str) -> Any:
    return iter([b"x"]) if method.startswith("up") else b"x"


def test_a_handler_whose_connection_is_lost_is_cancelled(kind: str) -> None:
    async def main() -> None:
        held = Held()
        async with serving(kind, unary_wait=held.wait) as toy:
            async with grpc.aio.insecure_channel(toy.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
                call: Any = other.unary_unary("/s/unary_wait")
                waiting = asyncio.ensure_future(call(b""))
                await asyncio.wait_for(held.began.wait(), 30)
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.wait_for(held.ended.wait(), 30)

    asyncio.run(main())


def test_a_handler_whose_time_is_over_is_cancelled(kind: str) -> None:
    async def main() -> None:
        held = Held()
        async with serving(kind, unary_wait=held.wait) as toy:
            assert (await toy.outcome("unary_wait", timeout=0.3))[1] == "DEADLINE_EXCEEDED"
            await asyncio.wait_for(held.ended.wait(), 30)
            assert held.how[0] == "cancelled"

    asyncio.run(main())


async def _began(toy: Toy, held: Held) -> "asyncio.Task[tuple[Any, ...]]":
    waiting = asyncio.create_task(toy.outcome("unary_wait", b"last"))
    await asyncio.wait_for(held.began.wait(), 30)
    return waiting


def test_stopping_lets_open_calls_end_and_refuses_new_ones(kind: str) -> None:
    async def main() -> None:
        held = Held()
        async with serving(kind, unary_wait=held.wait, unary_echo=echo) as toy:
            waiting = await _began(toy, held)
            stopping = asyncio.create_task(toy.door.stop(60))
            async with asyncio.timeout(30):
                while (await toy.outcome("unary_echo"))[1] != "UNAVAILABLE":
                    pass
            assert not stopping.done()
            held.go_on.set()
            assert await waiting == (b"last", "OK", "")
            await asyncio.wait_for(stopping, 30)
            await toy.door.stop(None)

    asyncio.run(main())


@pytest.mark.parametrize("grace", [None, 0, 0.05])
def test_stopping_ends_calls_that_go_on(kind: str, grace: float | None) -> None:
    async def main() -> None:
        held = Held()
        async with serving(kind, unary_wait=held.wait) as toy:
            waiting = await _began(toy, held)
            await toy.door.stop(grace)
            assert (await waiting)[1] == "UNAVAILABLE"
            await asyncio.wait_for(held.ended.wait(), 30)
            assert held.how[0] == "cancelled"

    asyncio.run(main())


def test_a_later_stop_with_less_time_ends_it_sooner(kind: str) -> None:
    async def main() -> None:
        held = Held()
        async with serving(kind, unary_wait=held.wait) as toy:
            waiting = await _began(toy, held)
            patient = asyncio.create_task(toy.door.stop(3600))
            await asyncio.sleep(0)
            await toy.door.stop(None)
            assert (await waiting)[1] == "UNAVAILABLE"
            await asyncio.wait_for(patient, 30)

    asyncio.run(main())
