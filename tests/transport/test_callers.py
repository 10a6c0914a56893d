"""One caller's open requests are bounded, on every path, and nobody else's are."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import ref

import grpc
import pytest

from server.core.door_settings import AccessSettings
from server.core.errors import NotFound, Overloaded
from server.core.settings import ServerSettings
from server.transport.access import Access
from server.transport.callers import CallerLimit, caller_of, machine_of, refusals
from server.transport.ending import abort
from server.transport.listen import bind, open_server
from tests.server.certificates import OWN_POOL

METHOD = "inference.GRPCInferenceService/ModelInfer"


class Held:
    """A ModelInfer that waits until it is let go, behind a limit."""

    def __init__(self, most: int) -> None:
        self.limit = CallerLimit(most)
        self.go = asyncio.Event()
        self.open = 0
        self.callers: list[str] = []

    async def infer(self, request: bytes, context: Any) -> bytes:
        self.callers.append(caller_of(context))
        self.open += 1
        try:
            await self.go.wait()
            if request == b"fail":
                await abort(context, NotFound("no such model"))
            return b""
        finally:
            self.open -= 1

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():  # noqa: ASYNC110 - what is waited for is another task's count
                await asyncio.sleep(0.005)


@asynccontextmanager
async def holding(most: int) -> AsyncIterator[tuple[Held, grpc.aio.Channel]]:
    server, held = open_server(ServerSettings(repository="r")), Held(most)
    handler = held.limit.limit(METHOD, grpc.unary_unary_rpc_method_handler(held.infer))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
        yield held, channel
    await server.stop(None)


def call(channel: grpc.aio.Channel, body: bytes = b"", consumer: str = "") -> Any:
    made: Any = channel.unary_unary("/s/m")
    return made(body, metadata=[("podium-consumer", consumer)] if consumer else [], timeout=60)


async def refused(channel: grpc.aio.Channel, consumer: str = "") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await call(channel, consumer=consumer)
    return told.value.code().name, str(told.value.details())


def test_every_way_to_end_frees_a_place() -> None:
    async def main() -> None:
        async with holding(2) as (held, channel):
            answered, failed = call(channel, b"ok"), call(channel, b"fail")
            await held.until(lambda: held.open == 2)
            assert await refused(channel) == ("UNAVAILABLE", "exceeds the 2 requests that one caller may have open")
            assert held.limit.refused == 1
            held.go.set()
            assert await answered == b""
            with pytest.raises(grpc.aio.AioRpcError, match="no such model"):
                await failed
            await held.until(lambda: len(held.limit) == 0)
            held.go.clear()
            cancelled = [call(channel), call(channel)]
            await held.until(lambda: held.open == 2)
            for each in cancelled:
                each.cancel()
            await held.until(lambda: len(held.limit) == 0)
            held.go.set()
            assert await call(channel) == b""
            await held.until(lambda: len(held.limit) == 0)

    asyncio.run(main())


def test_what_is_refused_is_let_go_at_once_not_when_garbage_is_next_collected() -> None:
    held: list[ref[Any]] = []

    class Request:
        def __init__(self, data: bytes) -> None:
            held.append(ref(self))

    async def never(request: Any, context: Any) -> Any:
        raise AssertionError("refused before")

    async def main() -> None:
        server, limit = open_server(ServerSettings(repository="r")), CallerLimit(1)
        limit.enter("ipv4:127.0.0.1")
        handler = limit.limit(METHOD, grpc.unary_unary_rpc_method_handler(never, request_deserializer=Request))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
        address = bind(server, "127.0.0.1:0")
        await server.start()
        gc.disable()
        try:
            async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
                assert (await refused(channel))[0] == "UNAVAILABLE"
            await server.stop(None)
            assert [each() for each in held] == [None]
        finally:
            gc.enable()

    asyncio.run(main())


def test_one_caller_s_requests_are_not_another_s() -> None:
    async def main() -> None:
        async with holding(1) as (held, channel):
            calls = [call(channel, consumer=name) for name in ("", "a", "b")]
            await held.until(lambda: held.open == 3)
            for name in ("", "a", "b"):
                assert (await refused(channel, name))[0] == "UNAVAILABLE"
            assert sorted(held.callers) == ["consumer:a", "consumer:b", "ipv4:127.0.0.1"]
            held.go.set()
            await asyncio.gather(*calls)
            await held.until(lambda: len(held.limit) == 0)

    asyncio.run(main())


def test_without_a_limit_nothing_is_wrapped() -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: None)
    assert CallerLimit(0).limit(METHOD, handler) is handler
    assert CallerLimit(1).limit("inference.GRPCInferenceService/ServerLive", handler) is handler
    assert CallerLimit(1).limit(METHOD, handler) is not handler


def test_a_refusal_counts_nothing_in() -> None:
    limit = CallerLimit(1)
    limit.enter("a")
    with pytest.raises(Overloaded):
        limit.enter("a")
    limit.leave("a")
    assert len(limit) == 0
    limit.enter("a")


def test_machines() -> None:
    assert machine_of("ipv6:%5Bfe80::1%25eth0%5D:1") == "ipv6:%5Bfe80::1%25eth0%5D"
    assert machine_of("unix:") == "unix:"


def test_what_was_refused_is_told_by_group_and_reason() -> None:
    access, limit = Access(AccessSettings()), CallerLimit(1)
    access.refused["management", "token"] = 2
    limit.refused = 3
    assert refusals(access, limit) == [("management", "token", 2), ("inference", "caller_limit", 3)]


def test_a_certificate_s_name_goes_before_what_a_caller_says_of_itself() -> None:
    class Call:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {"x509_common_name": [b"web"]}

        def invocation_metadata(self) -> list[tuple[str, str]]:
            return [("podium-consumer", "somebody else")]

    call: Any = Call()
    assert caller_of(call) == "cn:web"


@pytest.mark.parametrize(
    ("metadata", "caller"),
    [
        ([("podium-consumer", " a ")], "consumer:a"),
        ([("podium-consumer", "a"), ("podium-consumer", "b")], "consumer:b"),
        ([("podium-consumer", "x" * 129)], "ipv4:10.0.0.7"),
        ([("podium-consumer", " ")], "ipv4:10.0.0.7"),
        (None, "ipv4:10.0.0.7"),
    ],
)
def test_who_is_limited_is_who_is_counted(metadata: Any, caller: str) -> None:
    class Call:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {}

        def invocation_metadata(self) -> Any:
            return metadata

        def peer(self) -> str:
            return "ipv4:10.0.0.7:4000"

    call: Any = Call()
    assert caller_of(call) == caller
