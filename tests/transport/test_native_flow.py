"""Nobody makes a door hold more than it should: writers wait for readers, both ways."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.planes import PLANES
from tests.transport.doors import Toy, serving

pytestmark = pytest.mark.parametrize("kind", PLANES)
MESSAGE = bytes(256 * 1024)
MANY = 400
"""A hundred MiB: far more than sockets and windows hold."""


async def echo(request: Any, context: Any) -> Any:
    return request


async def settled(toy: Toy, count: list[int]) -> int:
    """A count that goes up no more while other calls are answered."""
    while True:
        before = count[0]
        for _ in range(100):
            assert await toy.outcome("unary_echo") == (b"q", "OK", "")
        if count[0] == before:
            return before


@pytest.mark.parametrize("method", ["down_yield", "down_write"])
def test_a_handler_waits_for_a_caller_that_does_not_read(kind: str, method: str) -> None:
    written = [0]

    async def yields(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(MANY):
            yield MESSAGE
            written[0] += 1

    async def writes(request: bytes, context: Any) -> None:
        for _ in range(MANY):
            await context.write(MESSAGE)
            written[0] += 1

    async def main() -> None:
        async with serving(kind, unary_echo=echo, down_yield=yields, down_write=writes) as toy:
            call = toy.call(method)(b"", timeout=100)
            assert await call.read() == MESSAGE
            assert await settled(toy, written) < MANY / 2
            read = 1
            while await call.read() is not grpc.aio.EOF:
                read += 1
            assert read == written[0] == MANY

    asyncio.run(main())


def test_a_caller_waits_for_a_handler_that_does_not_read(kind: str) -> None:
    sent = [0]

    async def main() -> None:
        may_read = asyncio.Event()

        async def late(requests: Any, context: Any) -> bytes:
            assert await context.read() == MESSAGE
            await may_read.wait()
            count = 1
            while await context.read() is not grpc.aio.EOF:
                count += 1
            return str(count).encode()

        async with serving(kind, unary_echo=echo, up_late=late) as toy:
            call = toy.call("up_late")(timeout=100)

            async def send() -> None:
                for _ in range(MANY):
                    await call.write(MESSAGE)
                    sent[0] += 1
                await call.done_writing()

            sending = asyncio.create_task(send())
            assert await settled(toy, sent) < MANY / 2
            assert not sending.done()
            may_read.set()
            assert await call == str(MANY).encode()
            await sending

    asyncio.run(main())


def test_a_stream_of_many_small_messages_is_never_stuck(kind: str) -> None:
    """More than may wait at once, again and again, in both directions."""
    bodies = [str(each).encode() for each in range(3000)]

    async def slow(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            if len(each) > 3 and each.endswith(b"99"):
                await asyncio.sleep(0.001)
            yield each

    async def main() -> None:
        async with serving(kind, both_slow=slow) as toy:
            assert [each async for each in toy.call("both_slow")(iter(bodies), timeout=100)] == bodies

    asyncio.run(main())
