"""The side port, asked by a real client over loopback."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from pydantic import BaseModel

from server.telemetry.metrics import Metrics
from server.telemetry.readings import DeviceReading
from server.transport.http import split_address, start_http

_UUIDS = ("GPU-00000000-0000-0000-0000-000000000000", "GPU-00000000-0000-0000-0000-000000000001")


@asynccontextmanager
async def _listening(
    metrics: Callable[[], bytes] = bytes, ready: Callable[[], list[str]] = list, address: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[ClientSession, web.AppRunner]]:
    runner = await start_http(address, metrics, ready)
    try:
        host, port = runner.addresses[0][:2]
        async with ClientSession(f"http://{f'[{host}]' if ':' in host else host}:{port}") as client:
            yield client, runner
    finally:
        await runner.cleanup()


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_metrics_are_text_of_version_0_0_4() -> None:
    async def scenario() -> None:
        async with _listening("a 1\nµ 2\n".encode) as (client, _), client.get("/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert await answer.text() == "a 1\nµ 2\n"

    _run(scenario)


def test_many_slow_scrapes_leave_the_threads_of_others_alone() -> None:
    release, lock, at_once, most = threading.Event(), threading.Lock(), 0, 0

    def metrics() -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        assert release.wait(30)
        with lock:
            at_once -= 1
        return b"slow 1\n"

    async def scenario() -> None:
        async with _listening(metrics) as (client, _):

            async def scrape() -> bytes:
                async with client.get("/metrics") as answer:
                    return await answer.read()

            scrapes = [asyncio.create_task(scrape()) for _ in range(50)]
            while not most:  # noqa: ASYNC110 - what is waited for happens on a thread
                await asyncio.sleep(0.005)
            async with client.get("/healthz") as alive:  # by then the others have come in as well
                assert alive.status == 200
            try:
                assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
            finally:
                release.set()
            assert set(await asyncio.gather(*scrapes)) == {b"slow 1\n"}

    _run(scenario)
    assert most <= 2


def test_a_slow_scrape_does_not_hold_up_the_loop() -> None:
    """The scrape ends only after the loop has answered something else meanwhile."""
    started, release = threading.Event(), threading.Event()

    def metrics() -> bytes:
        started.set()
        assert release.wait(30)
        return b"slow 1\n"

    async def scenario() -> None:
        async with _listening(metrics) as (client, _):
            scrape = asyncio.create_task(client.get("/metrics"))
            await asyncio.to_thread(started.wait, 30)
            try:
                async with client.get("/healthz") as alive:
                    assert alive.status == 200
            finally:
                release.set()
            async with await scrape as answer:
                assert await answer.read() == b"slow 1\n"

    _run(scenario)


def test_consumers_of_one_model_or_of_all() -> None:
    class Row(BaseModel):
        model: str | None

    async def scenario() -> None:
        runner = await start_http("127.0.0.1:0", bytes, list, lambda model: [Row(model=model), Row(model="é")])
        try:
            host, port = runner.addresses[0][:2]
            async with ClientSession(f"http://{host}:{port}") as client:
                for query, named in (("?model=m%201", "m 1"), ("", None)):
                    async with client.get(f"/consumers{query}") as answer:
                        assert (answer.status, answer.content_type) == (200, "application/json")
                        assert await answer.json() == {"uses": [{"model": named}, {"model": "é"}]}
        finally:
            await runner.cleanup()

    _run(scenario)


def test_alive_says_nothing_about_ready() -> None:
    async def scenario() -> None:
        async with _listening(ready=lambda: ["draining"]) as (client, _), client.get("/healthz") as answer:
            assert (answer.status, await answer.json()) == (200, {"alive": True})

    _run(scenario)


def test_ready_follows_the_reasons_against_it() -> None:
    reasons = ["loading: ranker:3", "draining"]

    async def scenario() -> None:
        async with _listening(ready=lambda: list(reasons)) as (client, _):
            async with client.get("/readyz") as answer:
                assert answer.status == 503
                assert await answer.json() == {"ready": False, "reasons": ["loading: ranker:3", "draining"]}
            reasons.clear()
            async with client.get("/readyz") as answer:
                assert (answer.status, await answer.json()) == (200, {"ready": True, "reasons": []})

    _run(scenario)


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_head_works_and_other_methods_do_not(path: str) -> None:
    async def scenario() -> None:
        async with _listening(lambda: b"a 1\n") as (client, _):
            async with client.head(path) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
            async with client.post(path) as answer:
                assert answer.status == 405
                assert answer.headers["Allow"] == "GET,HEAD"

    _run(scenario)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/v2/health/ready", "/healthz/../etc"])
def test_other_paths_are_not_found(path: str) -> None:
    async def scenario() -> None:
        async with _listening() as (client, _), client.get(path) as answer:
            assert answer.status == 404

    _run(scenario)


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_an_exception_is_answered_and_the_port_lives_on(path: str) -> None:
    def broken() -> list[str]:
        raise RuntimeError("broken")

    async def scenario() -> None:
        async with _listening(lambda: bytes(broken()), broken) as (client, _):  # type: ignore[arg-type] # never converted
            async with client.get(path) as answer:
                assert answer.status == 500
            async with client.get("/healthz") as answer:
                assert answer.status == 200

    _run(scenario)


def test_cleanup_closes_the_port_and_a_taken_port_is_an_error() -> None:
    async def scenario() -> None:
        async with _listening() as (_, runner):
            port = runner.addresses[0][1]
            with pytest.raises(OSError, match="address already in use"):
                await start_http(f"127.0.0.1:{port}", bytes, list)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        async with _listening(address=f"127.0.0.1:{port}") as (_, again):
            assert again.addresses[0][1] == port

    _run(scenario)


@pytest.mark.parametrize("address", ["", "8002", ":8002", "localhost", "localhost:", "localhost:x", "h:65536", "h:-1", "h:²"])
def test_what_is_not_an_address_is_told(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address: HOST:PORT is wanted") as told:
        split_address(address)
    assert f"'{address}'" in str(told.value)


def test_ipv6_hosts_are_written_in_brackets() -> None:
    assert split_address("[::1]:8002") == ("::1", 8002)
    with pytest.raises(ValueError, match="brackets"):
        split_address("::1:8002")


def test_perf_analyzer_reads_the_gpu_lines() -> None:
    """Its own pattern, and its own conversion: what stands in the second group is what it stores."""
    gpus = [
        DeviceReading(_UUIDS[0], 0.41, 75.5, 700.0, 12.25, 150_754_820_096, 8_589_934_592),
        DeviceReading(_UUIDS[1], 1.0, 699.125, 700.0, 0.0, 85_899_345_920, 3),
    ]
    metrics = Metrics(build="0", queues=lambda key: None, devices=lambda: gpus)

    async def scenario() -> None:
        async with _listening(metrics.render) as (client, _), client.get("/metrics") as answer:
            text = await answer.text()
        stored = {
            name: {uuid: float(value) for uuid, value in re.findall(rf'\n{name}\{{gpu_uuid\="([^"]+)"\}} (\d+\.?\d*)', text)}
            for name in ("nv_gpu_utilization", "nv_gpu_power_usage", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")
        }
        assert stored == {
            "nv_gpu_utilization": {_UUIDS[0]: 0.41, _UUIDS[1]: 1.0},
            "nv_gpu_power_usage": {_UUIDS[0]: 75.5, _UUIDS[1]: 699.125},
            "nv_gpu_memory_used_bytes": {_UUIDS[0]: 8_589_934_592, _UUIDS[1]: 3},
            "nv_gpu_memory_total_bytes": {_UUIDS[0]: 150_754_820_096, _UUIDS[1]: 85_899_345_920},
        }

    _run(scenario)


def test_alive_is_who_need_not_be_replaced() -> None:
    reasons: list[str] = []

    async def scenario() -> None:
        runner = await start_http("127.0.0.1:0", bytes, list, fatal=lambda: reasons)
        try:
            host, port = runner.addresses[0][:2]
            async with ClientSession(f"http://{host}:{port}") as client:
                async with client.get("/healthz") as answer:
                    assert (answer.status, await answer.json()) == (200, {"alive": True})
                reasons.append("device 'cuda:0' is lost")
                async with client.get("/healthz") as answer:
                    assert (answer.status, await answer.json()) == (503, {"alive": False, "reasons": reasons})
        finally:
            await runner.cleanup()

    _run(scenario)
