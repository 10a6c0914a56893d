"""Every request is counted once, whoever sends it and whatever happens meanwhile, in bounded memory."""

import threading

import pytest

from server.core.requests import INVALID_CONSUMER, OTHER_CONSUMERS
from server.core.versions import VersionKey
from server.telemetry import consumers as limits
from server.telemetry.consumers import MAX_IDENTITIES, Consumers
from server.telemetry.usage import KEPT_IDLE_DAYS, read_usage

DAY_NS = 86_400 * 10**9
KEY = VersionKey("m", 3)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.ns = 20_000 * DAY_NS

    def __call__(self) -> int:
        return self.ns


def counted(consumers: Consumers) -> dict[tuple[VersionKey, str], int]:
    return {(reading.key, reading.consumer): reading.requests for reading in consumers.readings()}


def test_requests_are_counted_by_version_and_consumer() -> None:
    clock = Clock()
    consumers = Consumers(clock)
    for consumer in ("a", "a", "", INVALID_CONSUMER):
        clock.ns += 1000
        consumers.count(KEY, consumer)
    consumers.count(VersionKey("m", 4), "a")
    expected = {(KEY, ""): 1, (KEY, "a"): 2, (KEY, INVALID_CONSUMER): 1, (VersionKey("m", 4), "a"): 1}
    assert counted(consumers) == counted(consumers) == expected
    consumers.count(KEY, "a")
    (mine,) = [row for row in consumers.rows("m") if row.version == 3 and row.consumer == "a"]
    assert mine.requests == 3
    assert (mine.last - mine.first).microseconds == 3
    assert list(mine.days.values()) == [3]
    assert consumers.rows("other") == []


def test_a_day_ends_at_midnight_utc() -> None:
    clock = Clock()
    consumers = Consumers(clock)
    for number in (1, 2, 3):
        for _ in range(number):
            consumers.count(KEY, "a")
        consumers.fold()
        clock.ns += DAY_NS
    (row,) = consumers.rows()
    assert list(row.days.values()) == [1, 2, 3]
    assert (max(row.days) - min(row.days)).days == 2


def test_ten_thousand_identities_stay_bounded() -> None:
    consumers = Consumers(Clock())
    for number in range(10_000):
        consumers.count(KEY, f"c{number}")
        if number % 1000 == 0:
            consumers.fold()
    found = counted(consumers)
    assert len(found) == MAX_IDENTITIES + 1
    assert found[KEY, OTHER_CONSUMERS] == 10_000 - MAX_IDENTITIES
    assert found[KEY, "c0"] == 1
    consumers.count(KEY, "c0")
    consumers.count(VersionKey("m", 4), "c0")
    consumers.count(VersionKey("m", 4), "c9999")
    consumers.count(VersionKey("m", 4), "")
    found = counted(consumers)
    assert found[KEY, "c0"] == 2
    new = {consumer: count for (key, consumer), count in found.items() if key.version == 4}
    assert new == {"c0": 1, OTHER_CONSUMERS: 1, "": 1}


def test_rows_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ROWS", 5)
    consumers = Consumers(Clock())
    for version in range(1, 9):
        consumers.count(VersionKey("m", version), "a")
        consumers.count(VersionKey("m", version), "")
    found = counted(consumers)
    assert len([use for use in found if use[1] == "a"]) == 5
    assert len([use for use in found if use[1] == OTHER_CONSUMERS]) == 3
    assert len([use for use in found if use[1] == ""]) == 8


def test_identities_of_the_past_make_room() -> None:
    clock = Clock()
    consumers = Consumers(clock)
    for number in range(MAX_IDENTITIES):
        consumers.count(KEY, f"c{number}")
    consumers.fold()
    clock.ns += KEPT_IDLE_DAYS * DAY_NS
    consumers.count(KEY, "newcomer")
    consumers.fold()  # a new day: those who have not come for so long are forgotten
    consumers.count(KEY, "newcomer")
    assert [row.consumer for row in consumers.rows()] == ["newcomer", OTHER_CONSUMERS]
    assert counted(consumers) == {(KEY, "newcomer"): 1, (KEY, OTHER_CONSUMERS): 1}


def test_it_goes_on_from_what_a_file_says() -> None:
    clock = Clock()
    before = Consumers(clock)
    for number in range(MAX_IDENTITIES):
        before.count(KEY, f"c{number}")
    after = Consumers(clock)
    after.resume(read_usage(before.text("i"), "file"))
    assert after.text("i") == before.text("i")
    assert (after.readings(), after.changed()) == ([], False)
    after.count(KEY, "c7")
    after.count(KEY, "one too many")
    assert {row.consumer: row.requests for row in after.rows() if row.consumer in ("c7", OTHER_CONSUMERS)} == {
        "c7": 2,
        OTHER_CONSUMERS: 1,
    }
    assert counted(after) == {(KEY, "c7"): 1, (KEY, OTHER_CONSUMERS): 1}, "a counter begins with its process"


def test_whether_anything_changed() -> None:
    consumers = Consumers(Clock())
    assert not consumers.changed()
    for _ in range(2):
        consumers.count(KEY, "a")
        consumers.fold()
        assert [consumers.changed(), consumers.changed()] == [True, False]


def test_no_request_is_lost_between_threads() -> None:
    consumers = Consumers()
    started = threading.Barrier(5)

    def count() -> None:
        started.wait(30)
        for number in range(5_000):
            consumers.count(KEY, f"c{number % 7}")

    def read() -> None:
        started.wait(30)
        for _ in range(200):
            consumers.readings()
            consumers.text("i")

    threads = [threading.Thread(target=each) for each in (count, count, count, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(counted(consumers).values()) == 15_000
    rows = consumers.rows()
    assert sum(row.requests for row in rows) == 15_000 == sum(sum(row.days.values()) for row in rows)
