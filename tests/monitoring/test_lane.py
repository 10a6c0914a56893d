"""A sink that hangs or fails is felt by nobody, and every row is accounted for."""

import threading
import time

import pytest

from server.monitoring.lane import Lane
from server.monitoring.sink import Lost
from tests.monitoring.sampled import KEY, Gathering, samples_of


def until(what: object, timeout_s: float = 10.0) -> None:
    assert callable(what)
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_everything_comes_in_order_and_is_counted() -> None:
    sink = Gathering()
    lane = Lane(sink, 10_000, 2**30)
    for first in range(0, 1000, 10):
        lane.offer(samples_of(10, first), 10, 100)
    lane.close()
    assert sink.rows == list(range(1000))
    assert lane.counts() == (1000, 0, {})
    assert sink.closed == 1
    assert sink.losses == []


def test_what_does_not_fit_is_dropped_and_counted_exactly() -> None:
    sink = Gathering()
    sink.open.clear()
    lane = Lane(sink, 100, 2**30)
    lane.offer(samples_of(60), 60, 1)
    until(sink.writing.is_set)
    offered = 60
    for first in range(60, 1060, 10):
        lane.offer(samples_of(10, first), 10, 1)  # returns, although the sink hangs
        offered += 10
    written, waiting, dropped = lane.counts()
    assert (written, waiting, dropped) == (0, 100, {"buffer_full": offered - 100})
    assert lane.lag_s() > 0
    sink.open.set()
    lane.close()
    assert sink.rows == list(range(100))
    assert lane.counts() == (100, 0, {"buffer_full": offered - 100})
    assert sum(rows for _, _, rows, _ in sink.losses) == offered - 100
    assert {(key, arm, time_us) for key, arm, _, time_us in sink.losses} == {(KEY, "champion", 0)}
    assert lane.lag_s() == 0.0


def test_bytes_are_bounded_too() -> None:
    sink = Gathering()
    sink.open.clear()
    lane = Lane(sink, 10**6, 1000)
    lane.offer(samples_of(1), 1, 900)
    until(sink.writing.is_set)
    lane.offer(samples_of(1), 1, 101)
    lane.offer(samples_of(1), 1, 100)
    assert lane.counts() == (0, 2, {"buffer_full": 1})
    sink.open.set()
    lane.close()


def test_a_sink_that_fails_costs_its_rows_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    sink = Gathering()
    sink.failures = 2
    lane = Lane(sink, 10_000, 2**30)
    for first in (0, 10, 20):
        lane.offer(samples_of(10, first), 10, 1)
        written = first // 10 - 1
        until(lambda: sum((lane.counts()[0], sum(lane.counts()[2].values()))) == first + 10)  # noqa: B023 - called at once
    lane.close()
    assert written == 1
    assert sink.rows == list(range(20, 30))
    assert lane.counts() == (10, 0, {"sink_failed": 20})
    assert sum(rows for _, _, rows, _ in sink.losses) == 20
    # said once, not for every piece
    assert [record.message for record in caplog.records] == ["a sink of samples fails"]


def test_what_a_sink_loses_of_what_it_had_taken_is_written_no_more() -> None:
    class Forgetful(Gathering):
        def idle(self) -> None:
            if len(self.got) == 1:
                self.got.append(samples_of(1))
                raise Lost([(KEY, "champion", 3, 0)], "the file is gone")

    sink = Forgetful()
    lane = Lane(sink, 100, 2**30)
    lane.offer(samples_of(10), 10, 1)
    lane.close()
    assert lane.counts() == (7, 0, {"sink_failed": 3})


def test_what_is_lost_before_is_told_by_the_minute_and_arm() -> None:
    sink = Gathering()
    lane = Lane(sink, 10, 2**30)
    lane.lose(KEY, "champion", 3, 61_000_000, "budget")
    lane.lose(KEY, "champion", 4, 119_000_000, "budget")
    lane.lose(KEY, "challenger", 5, 61_000_000, "budget")
    lane.close()
    assert sorted(sink.losses) == [(KEY, "challenger", 5, 60_000_000), (KEY, "champion", 7, 60_000_000)]
    assert lane.counts() == (0, 0, {"budget": 12})


def test_losses_of_hostile_instants_stay_bounded_and_whole() -> None:
    sink = Gathering()
    lane = Lane(sink, 10, 2**30)
    sink.open.clear()
    lane.offer(samples_of(1), 1, 1)
    until(sink.writing.is_set)
    for minute in range(10_000):
        lane.lose(KEY, "champion", 1, minute * 60_000_000, "budget")
    sink.open.set()
    lane.close()
    assert len(sink.losses) == 4096
    assert sum(rows for _, _, rows, _ in sink.losses) == 10_000


def test_a_sink_that_cannot_hear_of_losses_hears_again() -> None:
    class Deaf(Gathering):
        deaf = 1

        def lost(self, *said: object) -> None:
            if self.deaf:
                self.deaf -= 1
                raise OSError("away")
            super().lost(*said)  # type: ignore[arg-type]

    sink = Deaf()
    lane = Lane(sink, 10, 2**30)
    lane.lose(KEY, "champion", 3, 0, "budget")
    until(lambda: sink.losses)
    lane.close()
    assert sink.losses == [(KEY, "champion", 3, 0)]


def test_time_passes_for_a_sink_without_samples() -> None:
    sink = Gathering()
    lane = Lane(sink, 10, 10)
    assert sink.idled.wait(10)
    lane.close()


def test_what_comes_after_the_end_is_counted() -> None:
    sink = Gathering()
    lane = Lane(sink, 10, 10)
    lane.close()
    lane.close()
    lane.offer(samples_of(2), 2, 2)
    assert lane.counts() == (0, 0, {"closed": 2})
    assert sink.closed == 1


def test_many_threads_lose_no_count() -> None:
    sink = Gathering()
    lane = Lane(sink, 500, 2**30)

    def offer() -> None:
        for _ in range(500):
            lane.offer(samples_of(3), 3, 1)

    threads = [threading.Thread(target=offer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lane.close()
    written, waiting, dropped = lane.counts()
    assert waiting == 0
    assert written + sum(dropped.values()) == 4 * 500 * 3
    assert len(sink.rows) == written
