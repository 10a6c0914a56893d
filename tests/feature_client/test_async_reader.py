"""Reading from asyncio against real servers: as the reader of threads does, whatever the store does, and without storms."""

import asyncio
import gc
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from feature_client.aggregation import last
from feature_client.async_reader import AsyncReader
from feature_client.breaker import Breaker
from feature_client.cache import RowCache
from feature_client.errors import DefinitionError, StoreError
from feature_client.keys import row_keys
from feature_client.reader import Reader, Wanted
from feature_client.redis_store import RedisStore
from feature_client.row import pack, tombstone
from feature_client.schema import DEFAULTED, Array, Entity, EventLog, Feature, Status
from feature_client.view import View
from tests.feature_client.proxy import Proxy
from tests.feature_client.servers import Server, cluster, guarded_server, talker, tcp_server, tls_front

LONG_S = 30.0
STAMP = 77
LOG = EventLog("log", {"id": "int64", "event_us": "int64", "x": "float64"})


def view_of(name: str, features: tuple[Feature, ...]) -> View:
    return View(name, 1, "stored", {"x": last("x")}, features, lambda x: {}, Entity("e", {"id": "int64"}), LOG)


NUMBERS = view_of("numbers", (Feature("number", "int64", -1), Feature("half", "float32", -1.0, (2,))))
TEXTS = view_of("texts", (Feature("text", "bytes", b"?"),))


def rows_of(view: View, ids: Array) -> list[bytes]:
    texts = np.empty(len(ids), object)
    texts[:] = [b"text %d" % each for each in ids.tolist()]
    half = np.stack([ids / 2, -ids / 2], axis=1).astype(np.float32)
    values = {"text": texts} if view is TEXTS else {"number": ids, "half": half}
    nulls = np.zeros((len(ids), len(view.features)), np.bool_)
    return pack(view, STAMP, values, nulls, ids + 1, ids + 2)


def wanted(view: View, *ids: int, stamp: int = STAMP) -> Wanted:
    return Wanted(view, stamp, row_keys("p", view, {"id": np.array(ids)}))


def fill(put: Callable[[bytes, bytes], object], count: int = 100) -> None:
    for view in (NUMBERS, TEXTS):
        ids = np.arange(count)
        for key, row in zip(row_keys("p", view, {"id": ids}), rows_of(view, ids), strict=True):
            put(key, row)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("server")) as running:
        fill(running.admin.set)
        yield running


def run(scene: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 100))


def test_it_finds_what_the_reader_of_threads_finds(server: Server) -> None:
    numbers = [wanted(NUMBERS, 3, 1_000, 3, 99), wanted(TEXTS, 5), wanted(NUMBERS, *range(60)), wanted(NUMBERS, 3, stamp=1)]
    key = wanted(NUMBERS, 2_000).keys[0]
    server.admin.set(key, tombstone(NUMBERS, STAMP, 1, 2))
    numbers += [wanted(NUMBERS, 2_000), wanted(TEXTS)]
    store = RedisStore(server.url)
    theirs = Reader(store).read(numbers, LONG_S)
    store.close()

    async def scene() -> None:
        async with AsyncReader(server.url) as reader:
            # one call for all, and a call for each, at once
            ours = await reader.read(numbers, LONG_S)
            apart = await asyncio.gather(*(reader.read([each], LONG_S) for each in numbers))
            for found in (ours, [found for (found,) in apart]):
                for one, other in zip(found, theirs, strict=True):
                    assert one.row_status.tolist() == other.row_status.tolist()
                    assert one.nulls.tolist() == other.nulls.tolist()
                    assert one.event_us.tolist() == other.event_us.tolist()
                    assert one.available_us.tolist() == other.available_us.tolist()
                    here = one.row_status == Status.PRESENT
                    for name, column in one.values.items():
                        assert column[here].tolist() == other.values[name][here].tolist()
            assert {each.ref: dict(each.rows) for each in reader.readings()} == {
                "numbers@1": {"PRESENT": 126, "NOT_FOUND": 4, "FP_MISMATCH": 2},
                "texts@1": {"PRESENT": 2},
            }
            told = reader.store_reading()
            # both times in one request: what was asked in one turn
            assert (told.calls, told.breaker, told.store) == (2, "closed", store.name)
            assert reader.connected == 1

    run(scene())


def test_what_is_served_is_judged_together(server: Server) -> None:
    async def scene() -> None:
        async with AsyncReader(server.url) as reader:
            calls = [reader.serve([wanted(NUMBERS, at)], LONG_S) for at in (1, 2, 5_000)]
            one, two, none = (served for (served,) in await asyncio.gather(*calls))
            assert (one.values["number"].tolist(), two.values["number"].tolist()) == ([1], [2])
            assert one.values["half"].tolist() == [[0.5, -0.5]]
            assert none.values["number"].tolist() == [-1]
            assert none.statuses.tolist() == [[Status.NOT_FOUND | DEFAULTED] * 2]

    run(scene())


def test_users_tls_sockets_and_clients(tmp_path: Path, server: Server) -> None:
    async def reads(source: str | Redis) -> None:
        async with AsyncReader(source) as reader:
            (found,) = await reader.read([wanted(NUMBERS, 7)], LONG_S)
            assert found.values["number"].tolist() == [7]
            assert "s3cret" not in reader.name
            assert (await reader.read([wanted(NUMBERS, 7)], math.inf))[0].row_status.tolist() == [Status.PRESENT]

    run(reads(server.url))
    run(reads(Redis.from_url(server.url)))
    with guarded_server(tmp_path / "guarded") as guarded:
        fill(guarded.admin.set, 8)
        run(reads(guarded.url))
    with tls_front(server, tmp_path) as (url, proxy):
        run(reads(url))
        assert proxy.accepted == 1
    socket = tmp_path / "s"
    with tcp_server(tmp_path / "unix", "--unixsocket", str(socket)) as local:
        fill(local.admin.set, 8)
        run(reads(f"unix://{socket}"))


def test_rows_are_remembered_and_stand_in(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        async with AsyncReader(server.url, RowCache(1 << 20, ttl_s=0.05)) as reader:
            await reader.read([wanted(NUMBERS, 1)], LONG_S)
            assert (await reader.read([wanted(NUMBERS, 1)], LONG_S))[0].values["number"].tolist() == [1]
            # within its time it is not asked for again; a call that states its own instant asks for itself
            fresh = reader.store_reading()
            assert fresh.calls + fresh.keys_fresh == 2
            await reader.read([wanted(NUMBERS, 1)], LONG_S, remembered=False)
            assert reader.store_reading().calls == fresh.calls + 1
            # what is damaged is asked for again
            server.admin.set(wanted(NUMBERS, 6).keys[0], b"damaged")
            assert (await reader.read([wanted(NUMBERS, 6)], LONG_S))[0].row_status.tolist() == [Status.FP_MISMATCH]
            server.admin.set(wanted(NUMBERS, 6).keys[0], rows_of(NUMBERS, np.array([6]))[0])
            assert (await reader.read([wanted(NUMBERS, 6)], LONG_S))[0].row_status.tolist() == [Status.PRESENT]
            await asyncio.sleep(0.06)
            server.freeze()
            (found,) = await reader.read([wanted(NUMBERS, 1, 2)], 0.02)
            assert found.row_status.tolist() == [Status.PRESENT, Status.TIMEOUT]
            assert found.values["number"][0] == 1
            (found,) = await reader.read([wanted(NUMBERS, 1)], 0.02, remembered=False)
            assert found.row_status.tolist() == [Status.TIMEOUT]
            server.thaw()
            # the answer that came too late for it is there for the next
            until = time.monotonic() + LONG_S
            while reader.store_reading().remembered_rows < 3:
                assert time.monotonic() < until
                await asyncio.sleep(0.005)
            assert reader.store_reading().keys_stale == 1

    with tcp_server(tmp_path) as server:
        fill(server.admin.set, 10)
        run(scene(server))


def test_a_frozen_server_costs_budgets_and_no_storm_of_connections(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        async with AsyncReader(server.url) as reader:
            await reader.read([wanted(NUMBERS, 1)], LONG_S)
            server.freeze()
            begun_s = time.monotonic()
            answered: list[int] = []

            async def caller(at: int) -> None:
                while time.monotonic() - begun_s < 2.5:
                    (found,) = await reader.read([wanted(NUMBERS, at)], 0.01)
                    answered.append(int(found.row_status[0]))

            await asyncio.gather(*(caller(at) for at in range(20)))
            # each call ends with its budget, so many were made; nobody heard anything
            assert len(answered) > 100
            assert set(answered) == {Status.TIMEOUT}
            # hung connections are replaced about once a second
            assert reader.connected <= 8
            failures = reader.store_reading().failures
            assert failures["timeout"] > 0
            assert failures["refused_by_breaker"] > 0
            server.thaw()
            until = time.monotonic() + LONG_S
            while (await reader.read([wanted(NUMBERS, 1)], 0.5))[0].row_status[0] != Status.PRESENT:
                assert time.monotonic() < until
            assert reader.store_reading().breaker == "closed"

    with tcp_server(tmp_path) as server:
        fill(server.admin.set, 30)
        run(scene(server))


def test_a_closed_port_is_tried_at_the_breakers_pace(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        async with AsyncReader(server.url) as reader:
            assert (await reader.read([wanted(NUMBERS, 1)], LONG_S))[0].row_status.tolist() == [Status.PRESENT]
            server.kill()
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 1.0:
                (found,) = await reader.read([wanted(NUMBERS, 1)], 0.1)
                assert found.row_status.tolist() == [Status.TIMEOUT]
            # five that open it, and four probes a second
            assert reader.connected <= 14
            assert reader.store_reading().failures["error"] >= 5
            server.start()
            fill(server.admin.set, 5)
            until = time.monotonic() + LONG_S
            while (await reader.read([wanted(NUMBERS, 1)], 0.5))[0].row_status[0] != Status.PRESENT:
                assert time.monotonic() < until

    with tcp_server(tmp_path) as server:
        fill(server.admin.set, 5)
        run(scene(server))


def test_replies_that_are_late_now_and_then_cost_no_connections(server: Server) -> None:
    async def scene(proxy: Proxy) -> None:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        async with AsyncReader(url, breaker=lambda: Breaker(consecutive=10_000, part=2.0)) as reader:
            await reader.read([wanted(NUMBERS, 1)], LONG_S)
            proxy.delay_s = lambda piece: 0.05 if piece % 5 == 0 else 0.0
            wrong: list[int] = []
            found: list[int] = []

            async def caller(first: int) -> None:
                for at in range(first, first + 50):
                    (row,) = await reader.read([wanted(NUMBERS, at % 100)], 0.02)
                    found.append(int(row.row_status[0]))
                    if row.row_status[0] == Status.PRESENT and row.values["number"][0] != at % 100:
                        wrong.append(at)

            await asyncio.gather(*(caller(first) for first in range(0, 400, 50)))
            assert wrong == []
            assert set(found) <= {Status.PRESENT, Status.TIMEOUT}
            assert Status.PRESENT in found
            assert reader.connected <= 2
        assert proxy.accepted <= 2

    with Proxy(server.port) as proxy:
        run(scene(proxy))


def test_callers_who_are_cancelled_harm_nobody(server: Server) -> None:
    async def scene() -> None:
        async with AsyncReader(server.url) as reader:
            for _ in range(20):
                leaving = [asyncio.create_task(reader.read([wanted(NUMBERS, at)], LONG_S)) for at in range(10)]
                staying = [asyncio.create_task(reader.read([wanted(NUMBERS, at)], LONG_S)) for at in range(20)]
                for turn in range(10):
                    leaving[turn].cancel()
                    await asyncio.sleep(0)
                found = [each for (each,) in await asyncio.gather(*staying)]
                assert [int(each.values["number"][0]) for each in found] == list(range(20))
                await asyncio.gather(*leaving, return_exceptions=True)
            assert reader.connected == 1

    run(scene())


def test_a_cluster_has_its_nodes_asked_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as nodes:
        fill(lambda key, row: nodes.owner(key).admin.set(key, row), 40)

        async def scene() -> None:
            async with AsyncReader(nodes.url) as reader:
                calls = [reader.read([wanted(NUMBERS, at), wanted(TEXTS, at)], LONG_S) for at in range(40)]
                for at, (number, text) in enumerate(await asyncio.gather(*calls)):
                    assert number.values["number"].tolist() == [at]
                    assert text.values["text"].tolist() == [b"text %d" % at]
                assert reader.connected == 3
                # a slot that has moved is found where it is, a moment later
                (key,) = wanted(NUMBERS, 0).keys
                moved_to = next(each for each in nodes.servers if each is not nodes.owner(key))
                nodes.move(key_slot(key), moved_to)
                until = time.monotonic() + LONG_S
                while (await reader.read([wanted(NUMBERS, 0)], 0.5))[0].row_status[0] != Status.PRESENT:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.01)
                # a node that is gone costs its own keys
                moved_to.kill()
                (found,) = await reader.read([wanted(NUMBERS, *range(40))], 0.5)
                assert {int(each) for each in found.row_status} == {Status.PRESENT, Status.TIMEOUT}
                for server in nodes.servers:
                    server.kill()
                (found,) = await reader.read([wanted(NUMBERS, *range(40))], 0.5)
                assert {int(each) for each in found.row_status} == {Status.TIMEOUT}
            async with AsyncReader(nodes.url) as reader:
                (found,) = await reader.read([wanted(NUMBERS, 1)], 5.0)
                assert found.row_status.tolist() == [Status.TIMEOUT]

        run(scene())


def test_closing_answers_everybody_and_a_reader_has_one_loop(tmp_path: Path) -> None:
    async def scene(server: Server) -> AsyncReader:
        reader = AsyncReader(server.url)
        await reader.read([wanted(NUMBERS, 1)], LONG_S)
        server.freeze()
        callers = [asyncio.create_task(reader.read([wanted(NUMBERS, at)], LONG_S)) for at in range(5)]
        await asyncio.sleep(0.01)
        await reader.close()
        await reader.close()
        for caller in callers:
            assert (await caller)[0].row_status.tolist() == [Status.TIMEOUT]
        assert (await reader.read([wanted(NUMBERS, 1)], LONG_S))[0].row_status.tolist() == [Status.TIMEOUT]
        assert (await reader.read([wanted(NUMBERS, 1)], 0.0))[0].row_status.tolist() == [Status.TIMEOUT]
        server.thaw()
        return AsyncReader(server.url)

    with tcp_server(tmp_path) as server:
        fill(server.admin.set, 10)
        reader = asyncio.run(scene(server))
        asyncio.run(reader.close())
        shared = AsyncReader(server.url)

        async def once() -> None:
            await shared.rows([b"k"], LONG_S)
            await shared._nodes.close()  # type: ignore[union-attr]  # connections end with their loop

        asyncio.run(once())
        with pytest.raises(StoreError, match="event loop"):
            asyncio.run(shared.rows([b"k"], LONG_S))


def test_a_server_that_refuses_is_an_error_and_not_a_value(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        async with AsyncReader(server.url.replace("redis://", "redis://nobody:wrong@")) as reader:
            (asked,) = await reader.rows([b"k"], LONG_S)
            assert asked.failed is not None
            assert not asked.answered
        async with AsyncReader(server.url) as reader:
            server.command("CLIENT", "PAUSE", 1, "ALL")
            server.command("ACL", "SETUSER", "default", "-mget")
            (asked,) = await reader.rows([b"k"], LONG_S)
            assert "NOPERM" in str(asked.failed) or "no permissions" in str(asked.failed).lower()

    with tcp_server(tmp_path) as server:
        run(scene(server))


def test_a_view_that_cannot_be_unpacked_is_told_to_everybody(server: Server) -> None:
    huge = view_of("huge", (Feature("x", "float64", 0.0, (1_000_000,)),))

    async def scene() -> None:
        async with AsyncReader(server.url) as reader:
            calls = [reader.read([wanted(huge, at)], LONG_S) for at in range(3)]
            for told in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(told, DefinitionError)

    run(scene())


def test_what_nobody_asked_for_is_nobodys_answer() -> None:
    async def scene(url: str, pause_s: float) -> None:
        async with AsyncReader(url) as reader:
            for _ in range(3):
                (asked,) = await reader.rows([b"k"], LONG_S)
                assert asked.row == b"a", asked.failed
                await asyncio.sleep(pause_s)

    with talker(b"+OK\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n*1\r\n$5\r\nother\r\n", b"") as url:
        for pause_s in (0.0, 0.05):
            run(scene(url, pause_s))


def test_a_connection_that_was_closed_meanwhile_costs_nobody_an_answer(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        async with AsyncReader(server.url) as reader:
            await reader.read([wanted(NUMBERS, 1)], LONG_S)
            server.kill()
            server.start()
            await asyncio.sleep(0.05)
            (found,) = await reader.read([wanted(NUMBERS, 1)], LONG_S)
            assert found.row_status.tolist() == [Status.NOT_FOUND]
            assert reader.connected == 2

    with tcp_server(tmp_path) as server:
        run(scene(server))


def test_a_loop_may_end_with_reads_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(server: Server) -> None:
        reader = AsyncReader(server.url)
        await reader.read([wanted(NUMBERS, 1)], LONG_S)
        server.freeze()
        callers = []
        for at in range(5):
            callers.append(asyncio.create_task(reader.read([wanted(NUMBERS, at)], LONG_S)))
            await asyncio.sleep(0.01)
        assert not any(caller.done() for caller in callers)

    with tcp_server(tmp_path) as server:
        run(scene(server))
        server.thaw()
    gc.collect()
    assert caplog.text == ""
