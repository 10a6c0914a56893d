"""Check and Watch say one thing, whoever else comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from server.transport.health import SERVICES, Health
from server.transport.malformed import Malformed
from tests.transport.calls import Aborted, Context

Reply = health_pb2.HealthCheckResponse


def asked(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def watching(health: Health, service: str = "") -> AsyncIterator[Any]:
    context: Any = Context()
    return health.Watch(asked(service), context)


async def check(health: Health, service: str = "") -> int:
    context: Any = Context()
    status: int = (await health.Check(asked(service), context)).status
    return status


async def following(watch: AsyncIterator[Any]) -> int:
    status: int = (await asyncio.wait_for(anext(watch), 30)).status
    return status


def test_nothing_serves_until_it_is_said() -> None:
    async def main() -> None:
        health = Health()
        for service in SERVICES:
            assert await check(health, service) == Reply.NOT_SERVING
        health.set_serving(True)
        for service in SERVICES:
            assert await check(health, service) == Reply.SERVING

    asyncio.run(main())


def test_an_unknown_service() -> None:
    async def main() -> None:
        health = Health()
        context: Any = Context()
        with pytest.raises(Aborted):
            await health.Check(asked("nobody"), context)
        assert context.ended == (grpc.StatusCode.NOT_FOUND, "unknown service 'nobody'")
        watch = watching(health, "nobody")
        assert await following(watch) == Reply.SERVICE_UNKNOWN
        health.set_serving(True)  # no news for this one
        health.close()
        with pytest.raises(StopAsyncIteration):
            await following(watch)

    asyncio.run(main())


def test_watchers_hear_every_change_and_nothing_twice() -> None:
    async def main() -> None:
        health = Health()
        first, second = watching(health), watching(health, SERVICES[1])
        assert [await following(first), await following(second)] == [Reply.NOT_SERVING] * 2
        for serving, status in ((True, Reply.SERVING), (False, Reply.NOT_SERVING)):
            waiting = [asyncio.ensure_future(following(watch)) for watch in (first, second)]
            await asyncio.sleep(0)
            health.set_serving(serving)
            health.set_serving(serving)
            assert await asyncio.gather(*waiting) == [status] * 2
        waiting = [asyncio.ensure_future(following(first))]
        await asyncio.sleep(0)
        health.set_serving(False)
        await asyncio.sleep(0)
        assert not waiting[0].done()
        health.set_serving(True)
        assert await waiting[0] == Reply.SERVING

    asyncio.run(main())


def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        health = Health()
        leaving, staying = watching(health), watching(health)
        await following(leaving)
        await following(staying)
        task = asyncio.ensure_future(following(leaving))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        health.set_serving(True)
        assert await following(staying) == Reply.SERVING

    asyncio.run(main())


def test_the_last_word_is_said_before_the_end() -> None:
    async def main() -> None:
        health = Health()
        health.set_serving(True)
        watch = watching(health)
        assert await following(watch) == Reply.SERVING
        health.set_serving(False)
        health.close()
        assert await following(watch) == Reply.NOT_SERVING
        with pytest.raises(StopAsyncIteration):
            await following(watch)

    asyncio.run(main())


def test_a_body_that_is_no_message() -> None:
    async def main() -> None:
        health, context = Health(), Context()
        call: Any = context
        with pytest.raises(Aborted):
            await health.Check(Malformed(), call)
        assert context.ended is not None
        assert context.ended[0] is grpc.StatusCode.INVALID_ARGUMENT
        context.ended = None
        with pytest.raises(Aborted):
            await anext(health.Watch(Malformed(), call))

    asyncio.run(main())
