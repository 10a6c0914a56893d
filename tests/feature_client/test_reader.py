"""Reading for serving: one call to the store, and a status for everything that the store can do wrong."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_client.aggregation import count
from feature_client.breaker import Breaker
from feature_client.cache import RowCache
from feature_client.errors import StoreError, StorePartial, StoreTimeout
from feature_client.keys import row_keys
from feature_client.memory_store import MemoryStore
from feature_client.reader import Reader, ViewReading, Wanted
from feature_client.redis_store import RedisStore
from feature_client.row import pack, tombstone
from feature_client.schema import Entity, EventLog, Feature, Status, days, hours
from feature_client.served import Found, serve
from feature_client.view import View
from tests.feature_client.servers import tcp_server

LOG = EventLog("log", {"id": "int64", "event_us": "int64"})
STAMP = 7
Answer = Callable[[Sequence[bytes]], Any]


def view_of(name: str, max_age_us: int = 0) -> View:
    features = (Feature("total", "float32", -1.0), Feature("text", "bytes", b"none"))
    entity = Entity("user", {"id": "int64"})
    return View(name, 1, "stored", {"n": count(hours(1))}, features, dict, entity, LOG, max_age_us=max_age_us)


TRIPS, BILLS = view_of("trips"), view_of("bills")


def keys_of(*ids: int, view: View = TRIPS) -> list[bytes]:
    return row_keys("p", view, {"id": np.array(ids, np.int64)})


def row_of(number: int, view: View = TRIPS, stamp: int = STAMP, event_us: int = 1) -> bytes:
    text = np.empty(1, object)
    text[0] = b"%d" % number
    values = {"total": np.array([number], np.float32), "text": text}
    times = np.array([event_us])
    return pack(view, stamp, values, np.zeros((1, 2), np.bool_), times, times)[0]


def wanted(*ids: int, view: View = TRIPS, stamp: int = STAMP) -> Wanted:
    return Wanted(view, stamp, keys_of(*ids, view=view))


class StoreDouble(MemoryStore):
    """Rows in a dict, and whatever a test wants to go wrong when they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "double"
        self.rows: dict[bytes, bytes] = {}
        self.asked: list[list[bytes]] = []
        self.budgets: list[float] = []
        self.answer: Answer = lambda keys: [self.rows.get(key) for key in keys]

    def read(self, keys: Sequence[bytes], budget_s: float) -> list[bytes | None]:
        self.asked.append(list(keys))
        self.budgets.append(budget_s)
        answers: list[bytes | None] = self.answer(keys)
        return answers

    def has(self, *ids: int, view: View = TRIPS, stamp: int = STAMP) -> "StoreDouble":
        self.rows |= {key: row_of(number, view, stamp) for key, number in zip(keys_of(*ids, view=view), ids, strict=True)}
        return self

    def fails(self, error: Exception) -> None:
        def fail(keys: Sequence[bytes]) -> None:
            raise error

        self.answer = fail

    def works(self) -> None:
        self.answer = lambda keys: [self.rows.get(key) for key in keys]


class Clock:
    """Seconds as a test says."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def statuses(found: Found) -> list[Status]:
    return [Status(status) for status in found.row_status.tolist()]


def remembering(store: StoreDouble) -> tuple[Reader, Clock]:
    clock = Clock()
    return Reader(store, RowCache(2**20), clock=clock), clock


def test_all_views_and_keys_in_one_call_each_key_once() -> None:
    store = StoreDouble().has(1, 2).has(2, view=BILLS)
    reader = Reader(store)
    trips, bills, again = reader.read([wanted(1, 2, 3, 1), wanted(3, 2, view=BILLS), wanted(2)], 0.01)
    assert statuses(trips) == [Status.PRESENT, Status.PRESENT, Status.NOT_FOUND, Status.PRESENT]
    assert trips.values["total"][[0, 1, 3]].tolist() == [1.0, 2.0, 1.0]
    assert trips.values["text"].tolist() == [b"1", b"2", None, b"1"]
    assert statuses(bills) == [Status.NOT_FOUND, Status.PRESENT]
    assert again.values["total"].tolist() == [2.0]
    assert store.asked == [[*keys_of(1, 2, 3), *keys_of(3, 2, view=BILLS)]]
    assert store.budgets == [0.01]


def test_nothing_to_read_asks_nothing() -> None:
    store = StoreDouble()
    assert Reader(store).read([], 0.01) == []
    (found,) = Reader(store).read([wanted()], 0.01)
    assert statuses(found) == []
    assert store.asked == []


def test_what_the_rows_say_of_themselves() -> None:
    store = StoreDouble().has(1, stamp=STAMP + 1)
    (buried,), (damaged,) = keys_of(2), keys_of(3)
    store.rows |= {buried: tombstone(TRIPS, STAMP, 1, 1), damaged: row_of(3)[:-1]}
    (found,) = Reader(store).read([wanted(1, 2, 3)], 0.01)
    assert statuses(found) == [Status.FP_MISMATCH, Status.NOT_FOUND, Status.FP_MISMATCH]


def test_a_fresh_row_is_not_asked_for_again_and_a_write_is_seen_in_time() -> None:
    store = StoreDouble().has(1)
    reader, clock = remembering(store)
    reader.read([wanted(1)], 0.01)
    store.rows[keys_of(1)[0]] = row_of(5)
    clock.now_s += 0.99
    (before,) = reader.read([wanted(1)], 0.01)
    clock.now_s += 0.01
    (after,) = reader.read([wanted(1)], 0.01)
    assert (before.values["total"].tolist(), after.values["total"].tolist()) == ([1.0], [5.0])
    assert len(store.asked) == 2
    assert reader.store_reading().keys_fresh == 1


def test_only_what_is_unknown_is_asked_for() -> None:
    store = StoreDouble().has(1, 2, 3)
    reader, _ = remembering(store)
    reader.read([wanted(2)], 0.01)
    (found,) = reader.read([wanted(3, 2, 1, 9)], 0.01)
    assert statuses(found) == [Status.PRESENT] * 3 + [Status.NOT_FOUND]
    assert found.values["total"].tolist() == [3.0, 2.0, 1.0, 0.0]
    assert store.asked[1] == keys_of(3, 1, 9)


def test_that_there_is_no_row_is_known_for_a_quarter_of_a_second() -> None:
    store = StoreDouble()
    reader, clock = remembering(store)
    found = []
    for passed_s in (0.0, 0.2, 0.06):
        clock.now_s += passed_s
        found += [statuses(reader.read([wanted(1)], 0.01)[0])]
        store.has(1)
    assert found == [[Status.NOT_FOUND], [Status.NOT_FOUND], [Status.PRESENT]]
    assert len(store.asked) == 2


def test_a_row_is_not_remembered_for_longer_than_a_twentieth_of_its_age() -> None:
    view = view_of("quick", max_age_us=2_000_000)
    store = StoreDouble().has(1, view=view)
    reader, clock = remembering(store)
    for passed_s in (0.0, 0.09, 0.02):
        clock.now_s += passed_s
        reader.read([wanted(1, view=view)], 0.01)
    assert len(store.asked) == 2


def test_rows_are_gone_soon_after_the_store_was_emptied() -> None:
    store = StoreDouble().has(1, 2)
    reader, clock = remembering(store)
    reader.read([wanted(1, 2)], 0.01)
    store.rows.clear()
    assert statuses(reader.read([wanted(1, 2)], 0.01)[0]) == [Status.PRESENT] * 2
    clock.now_s += 1.0
    assert statuses(reader.read([wanted(1, 2)], 0.01)[0]) == [Status.NOT_FOUND] * 2
    store.fails(StoreTimeout("too late"))
    clock.now_s += 1.0
    assert statuses(reader.read([wanted(1, 2)], 0.01)[0]) == [Status.TIMEOUT] * 2, "that there was none says nothing now"


def test_rows_of_another_stamp_and_damaged_ones_are_not_remembered() -> None:
    store = StoreDouble().has(1, stamp=STAMP + 1).has(2)
    store.rows[keys_of(3)[0]] = b"junk"
    reader, _ = remembering(store)
    assert statuses(reader.read([wanted(1, 2, 3)], 0.01)[0]) == [Status.FP_MISMATCH, Status.PRESENT, Status.FP_MISMATCH]
    store.has(1, 3)
    assert statuses(reader.read([wanted(1, 2, 3)], 0.01)[0]) == [Status.PRESENT] * 3
    assert store.asked[1] == keys_of(1, 3)


def test_a_call_with_an_instant_of_its_own_neither_takes_from_memory_nor_fills_it() -> None:
    store = StoreDouble().has(1)
    reader, _ = remembering(store)
    reader.read([wanted(1)], 0.01, remembered=False)
    reader.read([wanted(1)], 0.01)
    reader.read([wanted(1)], 0.01, remembered=False)
    assert len(store.asked) == 3
    store.fails(StoreError("refused"))
    assert statuses(reader.read([wanted(1)], 0.01, remembered=False)[0]) == [Status.TIMEOUT]
    assert statuses(reader.read([wanted(1)], 0.01)[0]) == [Status.PRESENT]


@pytest.mark.parametrize("error", [StoreTimeout("too late"), StoreError("refused"), RuntimeError("a bug")])
def test_old_rows_stand_in_when_the_store_fails(error: Exception) -> None:
    store = StoreDouble().has(1, 2)
    reader, clock = remembering(store)
    reader.read([wanted(1)], 0.01)
    clock.now_s += 59.9
    reader.read([wanted(4)], 0.01)
    store.fails(error)
    (found,) = reader.read([wanted(1, 2, 4, 1)], 0.01)
    assert statuses(found) == [Status.PRESENT, Status.TIMEOUT, Status.NOT_FOUND, Status.PRESENT]
    assert found.values["total"].tolist() == [1.0, 0.0, 0.0, 1.0]
    clock.now_s += 0.2
    assert statuses(reader.read([wanted(1, 4)], 0.01)[0]) == [Status.TIMEOUT, Status.NOT_FOUND]
    assert reader.store_reading().keys_stale == 1


def test_an_old_row_that_stands_in_is_still_judged_by_its_age() -> None:
    view = view_of("aged", max_age_us=days(1))
    store = StoreDouble().has(1, view=view)
    reader, clock = remembering(store)
    reader.read([wanted(1, view=view)], 0.01)
    store.fails(StoreTimeout("too late"))
    clock.now_s += 30
    (found,) = reader.read([wanted(1, view=view)], 0.01)
    assert serve(view, found, days(1)).statuses.tolist() == [[Status.PRESENT] * 2]
    assert serve(view, found, days(1) + 2).values["total"].tolist() == [-1.0]


def test_a_part_of_the_store_is_better_than_nothing() -> None:
    store = StoreDouble().has(1, 2, 3)
    reader, clock = remembering(store)
    reader.read([wanted(3)], 0.01)
    clock.now_s += 5.0
    store.answer = lambda keys: partly([store.rows.get(key) if key not in keys_of(2, 3) else None for key in keys], [1, 2])
    for _ in range(6):
        (found,) = reader.read([wanted(1, 2, 3, 4)], 0.01)
        assert statuses(found) == [Status.PRESENT, Status.TIMEOUT, Status.PRESENT, Status.NOT_FOUND]
        assert found.values["total"].tolist() == [1.0, 0.0, 3.0, 0.0]
        clock.now_s += 1.0
    reading = reader.store_reading()
    assert (reading.breaker, reading.failures["partial"], reading.keys_stale) == ("closed", 6, 6)
    store.works()
    assert statuses(reader.read([wanted(1, 2, 3)], 0.01)[0]) == [Status.PRESENT] * 3, "what nobody answered was not remembered"


def partly(rows: list[bytes | None], unanswered: list[int]) -> None:
    raise StorePartial("one node is gone", rows, unanswered)


WRONG: list[Answer] = [
    lambda keys: [],
    lambda keys: [None] * (len(keys) + 1),
    lambda keys: None,
    lambda keys: ["text"] * len(keys),
    lambda keys: [bytearray(8)] * len(keys),
    lambda keys: 1 / 0,
    lambda keys: partly([], [0]),
    lambda keys: partly([None] * len(keys), [len(keys)]),
]


@pytest.mark.parametrize("answer", WRONG)
def test_a_store_that_breaks_its_contract_costs_statuses_and_a_log_line(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    store = StoreDouble().has(1)
    store.answer = answer
    reader, _ = remembering(store)
    assert statuses(reader.read([wanted(1, 2)], 0.01)[0]) == [Status.TIMEOUT] * 2
    assert "the store double has a bug" in caplog.text
    assert reader.store_reading().failures["error"] == 1
    store.works()
    assert statuses(reader.read([wanted(1, 2)], 0.01)[0]) == [Status.PRESENT, Status.NOT_FOUND]


def test_a_store_that_keeps_failing_is_left_alone_and_tried_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = StoreDouble().has(1)
    clock = Clock()
    reader = Reader(store, clock=clock)
    store.fails(StoreTimeout("too late"))
    for _ in range(20):
        assert statuses(reader.read([wanted(1)], 0.01)[0]) == [Status.TIMEOUT]
    assert len(store.asked) == 5
    assert reader.store_reading().breaker == "open"
    clock.now_s += 0.25
    for _ in range(3):
        reader.read([wanted(1)], 0.01)
    assert len(store.asked) == 6
    store.works()
    clock.now_s += 0.25
    assert statuses(reader.read([wanted(1)], 0.01)[0]) == [Status.PRESENT]
    reading = reader.store_reading()
    assert (reading.breaker, reading.calls) == ("closed", 7)
    assert reading.failures == {"timeout": 6, "error": 0, "partial": 0, "refused_by_breaker": 17, "no_budget": 0}
    assert [record.message for record in caplog.records] == [
        "the store double keeps failing and is left alone but for probes: too late",
        "the store double answers again",
    ]


def test_a_call_without_budget_is_not_the_stores_failure() -> None:
    store = StoreDouble().has(1)
    reader, clock = remembering(store)
    for _ in range(10):
        assert statuses(reader.read([wanted(1)], 0.0)[0]) == [Status.TIMEOUT]
    assert store.asked == []
    reader.read([wanted(1)], 0.01)
    clock.now_s += 5.0
    assert statuses(reader.read([wanted(1)], -1.0)[0]) == [Status.PRESENT]
    assert reader.store_reading().failures["no_budget"] == 11


def test_one_impatient_caller_does_not_take_the_store_away_from_others() -> None:
    store = StoreDouble().has(1)
    reader = Reader(store, clock=Clock())
    store.fails(StoreTimeout("too late"))
    for _ in range(50):
        reader.read([wanted(1)], 0.0001)
    store.works()
    assert statuses(reader.read([wanted(1)], 0.01)[0]) == [Status.PRESENT]
    assert reader.store_reading().failures["timeout"] == 50


def test_what_is_counted() -> None:
    store = StoreDouble().has(1, 2)
    reader, clock = remembering(store)

    def slowly(keys: Sequence[bytes]) -> list[bytes | None]:
        clock.now_s += 0.125
        return [store.rows.get(key) for key in keys]

    store.answer = slowly
    reader.read([wanted(1, 2, 3), wanted(1, view=BILLS)], 1.0)
    reader.read([wanted(1, 1)], 1.0)
    assert list(reader.readings()) == [
        ViewReading("trips@1", {"PRESENT": 4, "NOT_FOUND": 1}),
        ViewReading("bills@1", {"NOT_FOUND": 1}),
    ]
    reading = reader.store_reading()
    assert (reading.store, reading.calls, reading.seconds) == ("double", 1, 0.125)
    assert (reading.keys_asked, reading.keys_fresh, reading.remembered_rows) == (4, 1, 4)
    assert reading.remembered_bytes > 4 * 24
    assert (Reader(store).readings(), Reader(store).store_reading().remembered_rows) == ([], 0)


def test_threads_do_not_wait_for_each_others_store() -> None:
    store = StoreDouble().has(1, 2)
    slow, entered, release = keys_of(1), threading.Event(), threading.Event()

    def answer(keys: Sequence[bytes]) -> list[bytes | None]:
        if list(keys) == slow:
            entered.set()
            assert release.wait(30)
        return [store.rows.get(key) for key in keys]

    store.answer = answer
    reader = Reader(store, RowCache(2**20))
    results: list[Found] = []
    thread = threading.Thread(target=lambda: results.extend(reader.read([wanted(1)], 1.0)))
    thread.start()
    assert entered.wait(30)
    assert reader.read([wanted(2)], 1.0)[0].values["total"].tolist() == [2.0]
    release.set()
    thread.join(30)
    assert results[0].values["total"].tolist() == [1.0]


def test_many_threads_through_outages() -> None:
    """Whatever the store does meanwhile: each row is its own, counts add up, and memory keeps to its bound."""
    store = StoreDouble().has(*range(50))
    cache = RowCache(8_000, ttl_s=0.0005)
    reader = Reader(store, cache, Breaker(probe_every_s=0.001))
    stop = threading.Event()
    rows_read = [0, 0, 0, 0]
    wrong: list[str] = []

    def read(worker: int) -> None:
        generator = np.random.default_rng(worker)
        while not stop.is_set():
            ids = generator.integers(0, 60, 8)
            (found,) = reader.read([wanted(*ids.tolist())], 1.0, remembered=bool(generator.integers(0, 4)))
            rows_read[worker] += len(ids)
            here = found.row_status == Status.PRESENT
            if (found.values["total"][here] != ids[here]).any() or (here & (ids >= 50)).any():
                wrong.append(str(ids))

    threads = [threading.Thread(target=read, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        store.fails(StoreTimeout("too late"))
        time.sleep(0.01)
        store.works()
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert sum(sum(each.rows.values()) for each in reader.readings()) == sum(rows_read) > 0
    assert cache.bytes <= 8_000
    deadline_s = time.monotonic() + 30
    while statuses(reader.read([wanted(1)], 1.0)[0]) != [Status.PRESENT]:
        assert time.monotonic() < deadline_s, "the store has been well for long"
        time.sleep(0.001)
    assert reader.store_reading().breaker == "closed"


def test_a_real_server_that_is_emptied_frozen_killed_and_started_again(tmp_path: Path) -> None:
    with tcp_server(tmp_path) as server:
        store = RedisStore(server.url)
        clock = Clock()
        reader = Reader(store, RowCache(2**20), Breaker(consecutive=2), clock=clock)

        def read(*ids: int, budget_s: float = 10.0) -> list[Status]:
            clock.now_s += 1.0
            (found,) = reader.read([wanted(*ids)], budget_s)
            here = found.row_status == Status.PRESENT
            assert found.values["total"][here].tolist() == np.array(ids)[here].tolist()
            return statuses(found)

        def write(*ids: int) -> None:
            assert store.write([(key, row_of(each)) for key, each in zip(keys_of(*ids), ids, strict=True)], 600) == len(ids)

        write(1, 2)
        assert read(1, 2, 3) == [Status.PRESENT, Status.PRESENT, Status.NOT_FOUND]
        server.admin.flushall()
        assert read(1, 2) == [Status.NOT_FOUND, Status.NOT_FOUND]
        write(1)
        assert read(1) == [Status.PRESENT]
        server.freeze()
        started_s = time.monotonic()
        assert read(1, 2, budget_s=0.05) == [Status.PRESENT, Status.TIMEOUT], "remembered; and that there was none is not"
        assert time.monotonic() - started_s < 5.0
        assert read(1, 2, budget_s=0.05) == [Status.PRESENT, Status.TIMEOUT]
        assert reader.store_reading().breaker == "open"
        server.thaw()
        assert read(1, 2) == [Status.PRESENT, Status.NOT_FOUND]
        assert reader.store_reading().breaker == "closed"
        server.kill()
        assert read(1, 2, budget_s=0.5) == [Status.PRESENT, Status.TIMEOUT]
        server.start()
        until_s = time.monotonic() + 30
        while (found := read(1, 2)) != [Status.NOT_FOUND, Status.NOT_FOUND]:
            assert time.monotonic() < until_s, found
        store.close()
