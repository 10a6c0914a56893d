"""A real server in trouble, seen by every reader there is: from threads, from asyncio, of rows that Feast wrote.

Calls keep to their budgets, statuses are right, no value is another's, connections are few, and what is back is found at once.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from feature_client.aggregation import last
from feature_client.async_reader import AsyncReader
from feature_client.feast import FeastReader
from feature_client.feast_view import feast_keys, feast_view
from feature_client.keys import row_keys
from feature_client.reader import Reader, Wanted
from feature_client.redis_store import RedisStore
from feature_client.row import pack
from feature_client.schema import Array, Entity, EventLog, Feature, Status
from feature_client.served import Found
from feature_client.view import View
from tests.feature_client.heart import SLACK_S, budget
from tests.feature_client.proxy import Proxy
from tests.feature_client.servers import Server, tcp_server

BUDGET_S = 0.02
BACK_S = 1.0
"""Within which a server that is back must be noticed."""
IDS = 40
STAMP = 7
NUMBER = Feature("number", "int64", -1)
VIEW = View(
    "v", 1, "stored", {"x": last("x")}, (NUMBER,), lambda x: {}, Entity("e", {"id": "int64"}),
    EventLog("log", {"id": "int64", "event_us": "int64", "x": "float64"}),
)  # fmt: skip
FEAST = feast_view("f", entity="e", keys={"id": "int64"}, features=[NUMBER])
Read = Callable[[Array, float], Found]


def ours(server: Server, ids: Array, stamp: int = STAMP, part: int | None = None) -> None:
    rows = pack(VIEW, stamp, {"number": ids}, np.zeros((len(ids), 1), np.bool_), ids, ids)
    keys = row_keys("p", VIEW, {"id": ids})
    server.admin.mset({key: row[:part] for key, row in zip(keys, rows, strict=True)})


def feasts(server: Server, ids: Array, stamp: int = STAMP, part: int | None = None) -> None:
    tag = b"\x20" if stamp == STAMP else b"\x18"  # an int64, or an int32 where one was declared
    with server.admin.pipeline(transaction=False) as pipeline:
        for at, key in zip(ids.tolist(), feast_keys("p", FEAST, {"id": ids}), strict=True):
            pipeline.hset(key, mapping={FEAST.fields[0]: (tag + bytes((at,)))[:part], FEAST.fields[1]: b"\x08\x01"})
        pipeline.execute()


class Subject:
    """One of the readers. `read`: from any thread; `fill(server, ids, stamp, part)`: writes rows, also foreign or cut ones."""

    def __init__(self, read: Read, fill: Callable[..., None]) -> None:
        self.read, self.fill = read, fill

    def status(self, at: int, budget_s: float = BUDGET_S) -> Status:
        """Read one row within the budget, never another's."""
        with budget(budget_s):
            found = self.read(np.array([at]), budget_s)
        status = Status(found.row_status[0])
        assert status is not Status.PRESENT or found.values["number"].tolist() == [at]
        return status

    def await_present(self, within_s: float = BACK_S) -> None:
        """It is well again soon."""
        until_s = time.monotonic() + within_s + SLACK_S
        while self.status(3, 0.2) is not Status.PRESENT:
            assert time.monotonic() < until_s, "the server is back, and nobody notices"
            time.sleep(0.005)

    def crowd(self, seconds: float, threads: int = 8) -> list[Status]:
        """What many threads find at once, over some time."""
        until_s = time.monotonic() + seconds

        def work(first: int) -> list[Status]:
            found = []
            at = first
            while time.monotonic() < until_s:
                found.append(self.status(at % IDS))
                at += 3
            return found

        with ThreadPoolExecutor(threads) as pool:
            return [status for found in pool.map(work, range(threads)) for status in found]


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """Nothing that other tests have left behind is walked while budgets are measured: that takes half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["threads", "asyncio", "feast"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Subject]]:
    with ExitStack() as stack:

        def by_threads(url: str) -> Subject:
            store = RedisStore(url)
            stack.callback(store.close)
            reader = Reader(store)

            def read(ids: Array, budget_s: float) -> Found:
                return reader.read([Wanted(VIEW, STAMP, row_keys("p", VIEW, {"id": ids}))], budget_s)[0]

            return Subject(read, ours)

        def by_asyncio(url: str) -> Subject:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever)
            thread.start()
            stack.callback(loop.close)
            stack.callback(thread.join)
            stack.callback(loop.call_soon_threadsafe, loop.stop)
            reader = AsyncReader(url)
            stack.callback(lambda: asyncio.run_coroutine_threadsafe(reader.close(), loop).result(30))

            def read(ids: Array, budget_s: float) -> Found:
                wanted = Wanted(VIEW, STAMP, row_keys("p", VIEW, {"id": ids}))
                return asyncio.run_coroutine_threadsafe(reader.read([wanted], budget_s), loop).result(30)[0]

            return Subject(read, ours)

        def of_feasts(url: str) -> Subject:
            reader = FeastReader(url, "p")
            stack.callback(reader.close)
            return Subject(lambda ids, budget_s: reader.read(FEAST, {"id": ids}, budget_s), feasts)

        yield {"threads": by_threads, "asyncio": by_asyncio, "feast": of_feasts}[request.param]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with tcp_server(tmp_path) as running:
        yield running


@pytest.fixture
def subject(server: Server, opened: Callable[[str], Subject]) -> Subject:
    made = opened(server.url)
    made.fill(server, np.arange(IDS))
    made.await_present(20)
    return made


def test_a_frozen_server_costs_budgets_and_is_noticed_when_it_goes_on(server: Server, subject: Subject) -> None:
    before = server.connections()
    for seconds in (0.3, 1.3):
        server.freeze()
        try:
            assert set(subject.crowd(seconds)) == {Status.TIMEOUT}
        finally:
            server.thaw()
        subject.await_present()
    assert server.connections() - before <= 10, "two a second at most, of whoever gives up what hangs"


def test_a_closed_port_is_noticed_when_it_opens(server: Server, subject: Subject) -> None:
    server.kill()
    assert set(subject.crowd(0.6)) == {Status.TIMEOUT}
    server.start()
    subject.fill(server, np.arange(IDS))
    subject.await_present()
    assert server.connections() <= 10


def test_a_reply_in_five_that_is_late_is_nobody_elses(server: Server, opened: Callable[[str], Subject]) -> None:
    with Proxy(server.port) as proxy:
        subject = opened(f"redis://127.0.0.1:{proxy.port}")
        subject.fill(server, np.arange(IDS))
        subject.await_present(20)
        proxy.delay_s = lambda piece: 0.05 if piece % 5 == 0 else 0.0
        found = subject.crowd(0.8)
        assert set(found) == {Status.PRESENT, Status.TIMEOUT}
        proxy.delay_s = lambda piece: 0.0
        subject.await_present()
        assert proxy.accepted <= 5


def test_a_store_that_is_emptied_and_filled_while_it_is_read(server: Server, subject: Subject) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            server.admin.flushall()
            time.sleep(0.01)
            subject.fill(server, np.arange(IDS))
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = subject.crowd(0.6)
    finally:
        stop.set()
        thread.join()
    assert {Status.PRESENT, Status.NOT_FOUND} <= set(found) <= {Status.PRESENT, Status.NOT_FOUND, Status.TIMEOUT}
    assert subject.status(3, 5.0) is Status.PRESENT


def test_cut_and_foreign_rows_harm_no_neighbour(server: Server, subject: Subject) -> None:
    subject.fill(server, np.array([1]), part=1)
    subject.fill(server, np.array([3]), stamp=STAMP + 1)
    subject.fill(server, np.array([5]), part=-1)
    found = subject.read(np.arange(8), 10.0)
    wrong = [Status(each) for each in found.row_status]
    assert [at for at, status in enumerate(wrong) if status is Status.FP_MISMATCH] == [1, 3, 5]
    here = found.row_status == Status.PRESENT
    assert found.values["number"][here].tolist() == [0, 2, 4, 6, 7]
    subject.fill(server, np.arange(8))
    assert subject.read(np.arange(8), 10.0).values["number"].tolist() == list(range(8))
