"""Calls of all kinds through both doors: the same handlers, the same callers, and nobody can tell which door it was."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.planes import PLANES
from tests.transport.doors import serving

pytestmark = pytest.mark.parametrize("kind", PLANES)


async def echo(request: Any, context: Any) -> Any:
    return request


async def echoes(request: Any, context: Any) -> AsyncIterator[Any]:
    for each in request.split(b","):
        yield each


async def echo_all(requests: Any, context: Any) -> bytes:
    return b",".join([each async for each in requests])


async def echo_each(requests: Any, context: Any) -> AsyncIterator[Any]:
    async for each in requests:
        yield each


async def write_echoes(request: Any, context: Any) -> None:
    for each in request.split(b","):
        await context.write(each)


async def read_all(requests: Any, context: Any) -> bytes:
    found = []
    while (message := await context.read()) is not grpc.aio.EOF:
        found.append(message)
    assert await context.read() is grpc.aio.EOF
    return b",".join(found)


async def read_and_write(requests: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


def test_every_kind_of_handler_answers(kind: str) -> None:
    messages = [b"one", b"", b"three", bytes(70_000), b""]
    joined = b",".join(messages)

    async def main() -> None:
        both = {"both_iterated": echo_each, "both_read": read_and_write}
        up = {"up_iterated": echo_all, "up_read": read_all}
        down = {"down_yielded": echoes, "down_written": write_echoes}
        async with serving(kind, unary_echo=echo, **both, **up, **down) as toy:
            assert await toy.outcome("unary_echo", joined) == (joined, "OK", "")
            assert await toy.outcome("unary_echo", b"") == (b"", "OK", "")
            for method in down:
                assert [each async for each in toy.call(method)(joined, timeout=30)] == messages
            for method in up:
                assert await toy.call(method)(iter(messages), timeout=30) == joined
                assert await toy.call(method)(iter(()), timeout=30) == b""
            for method in both:
                assert [each async for each in toy.call(method)(iter(messages), timeout=30)] == messages
                assert [each async for each in toy.call(method)(iter(()), timeout=30)] == []

    asyncio.run(main())


def test_a_stream_is_a_conversation(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, both_echo=echo_each) as toy:
            call = toy.call("both_echo")(timeout=30)
            for each in (b"a", b"b", bytes(300_000)):
                await call.write(each)
                assert await call.read() == each
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    asyncio.run(main())


def test_a_unary_handler_does_not_wait_for_more_than_its_message(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, unary_echo=echo) as toy:
            call = toy.call("unary_echo", "both")(timeout=30)
            await call.write(b"one")
            assert await call.read() == b"one"
            assert await call.code() is grpc.StatusCode.OK

            async def two() -> AsyncIterator[bytes]:
                yield b"first"
                yield b"second"

            assert [each async for each in toy.call("unary_echo", "both")(two(), timeout=30)] == [b"first"]

    asyncio.run(main())


def test_metadata_goes_both_ways(kind: str) -> None:
    sent = [("x", "1"), ("x", "two words"), ("y-bin", b"\x00\xff"), ("podium-consumer", "me")]
    seen: list[Any] = []

    async def tell(request: bytes, context: Any) -> bytes:
        seen.extend(context.invocation_metadata())
        await context.send_initial_metadata((("begin", "ä".encode().hex()), ("begin-bin", b"\x01\x02\x03")))
        with pytest.raises(grpc.aio.UsageError, match="already sent"):
            await context.send_initial_metadata((("again", "x"),))
        context.set_trailing_metadata((("end", "1"), ("end-bin", bytes(range(256)))))
        assert context.trailing_metadata() == (("end", "1"), ("end-bin", bytes(range(256))))
        return b"told"

    async def main() -> None:
        async with serving(kind, unary_tell=tell) as toy:
            call = toy.call("unary_tell")(b"", metadata=sent, timeout=30)
            assert list(await call.initial_metadata()) == [("begin", "c3a4"), ("begin-bin", b"\x01\x02\x03")]
            assert await call == b"told"
            assert list(await call.trailing_metadata()) == [("end", "1"), ("end-bin", bytes(range(256)))]

    asyncio.run(main())
    assert {each.key for each in seen} == {"user-agent", "x", "y-bin", "podium-consumer"}
    assert [(key, value) for key, value in seen if key != "user-agent"] == sent


def test_a_handler_knows_its_call(kind: str) -> None:
    seen: list[Any] = []

    async def look(request: bytes, context: Any) -> bytes:
        seen.append(context)
        assert context.peer().startswith("ipv4:127.0.0.1:")
        assert context.peer_identities() is None
        assert context.peer_identity_key() is None
        assert "x509_common_name" not in context.auth_context()
        assert (context.code(), context.details(), context.trailing_metadata()) == (None, "", ())
        assert not context.done()
        assert not context.cancelled()
        left = context.time_remaining()
        if request == b"soon":
            assert 0 < left <= 4000
            assert context.time_remaining() <= left
        else:
            assert left is None
        return b"seen"

    async def main() -> None:
        async with serving(kind, unary_look=look) as toy:
            assert await toy.outcome("unary_look", b"soon", timeout=3600) == (b"seen", "OK", "")
            assert await toy.call("unary_look")(b"never") == b"seen"
            assert [each.done() for each in seen] == [True, True]

    asyncio.run(main())


def test_big_messages(kind: str) -> None:
    async def main() -> None:
        limits = {"max_message_bytes": 20_000_000}
        async with serving(kind, unary_echo=echo, door_settings=limits) as toy:
            big = bytes(range(256)) * 70_000
            assert await toy.call("unary_echo")(big, timeout=60) == big
            code = (await toy.outcome("unary_echo", bytes(20_000_001), timeout=60))[1]
            assert code == "RESOURCE_EXHAUSTED"
            assert await toy.outcome("unary_echo", b"small") == (b"small", "OK", "")

    asyncio.run(main())


def test_many_calls_at_once_get_their_own_answers(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, unary_echo=echo) as toy:
            bodies = [str(each).encode() * (each % 50) for each in range(400)]
            answers = await asyncio.gather(*(toy.call("unary_echo")(each, timeout=60) for each in bodies))
            assert answers == bodies

    asyncio.run(main())


def test_a_call_without_a_message(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, unary_echo=echo) as toy:
            call = toy.call("unary_echo", "both")(iter(()), timeout=2 if kind == "python" else 60)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
            # grpc.aio leaves its caller waiting, which is not worth being copied
            expected = "DEADLINE_EXCEEDED" if kind == "python" else "INVALID_ARGUMENT"
            assert ended.value.code().name == expected

    asyncio.run(main())
