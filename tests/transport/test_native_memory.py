"""What a call had in memory goes at once when it is over. grpc.aio keeps the error that ends a call, and what it leads to."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import grpc
import pytest

from tests.transport.doors import serving


class Parsed:
    """A message, and all there is to know whether anybody still has it."""

    alive: ClassVar["weakref.WeakSet[Parsed]"] = weakref.WeakSet()

    def __init__(self, data: bytes) -> None:
        self.data = data
        Parsed.alive.add(self)


@pytest.mark.parametrize("how", ["answers", "aborts", "fails", "is cancelled", "streams", "streams and aborts"])
def test_a_call_that_is_over_leaves_nothing_for_a_collection(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        began, over = asyncio.Event(), asyncio.Event()

        async def behave(request: Parsed, context: Any) -> bytes:
            context.add_done_callback(lambda context: over.set())
            if how == "aborts":
                await context.abort(grpc.StatusCode.ABORTED, "x")
            if how == "fails":
                raise ValueError("x")
            if how == "is cancelled":
                began.set()
                await asyncio.Event().wait()
            return request.data

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            context.add_done_callback(lambda context: over.set())
            async for each in requests:
                yield each.data
                if how == "streams and aborts":
                    await context.abort(grpc.StatusCode.ABORTED, "x")

        handlers: dict[str, Any] = {
            "unary_behave": grpc.unary_unary_rpc_method_handler(behave, request_deserializer=Parsed),
            "both_stream": grpc.stream_stream_rpc_method_handler(stream, request_deserializer=Parsed),
        }
        async with serving("native", **handlers) as toy:
            if how.startswith("streams"):
                call = toy.call("both_stream")(timeout=30)
                await call.write(b"x")
                assert await call.read() == b"x"
                await call.done_writing()
                await call.code()
            elif how == "is cancelled":
                call = toy.call("unary_behave")(b"x", timeout=30)
                await began.wait()
                assert len(Parsed.alive) == 1
                call.cancel()
            else:
                await toy.outcome("unary_behave", b"x")
            await asyncio.wait_for(over.wait(), 30)
            await asyncio.sleep(0)
            caplog.clear()  # a record of an error has its traceback
            assert not Parsed.alive

    gc.collect()
    gc.disable()
    try:
        with caplog.at_level(logging.CRITICAL):
            asyncio.run(main())
    finally:
        gc.enable()
