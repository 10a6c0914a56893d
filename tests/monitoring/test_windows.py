"""Windows by the rows' time: when they are complete, what merges, what is late, and what nobody may do to them."""

import numpy as np
import pytest

from server.core.monitoring_settings import ModelMonitoring
from server.monitoring.reading import KEPT_WINDOWS
from server.monitoring.windows import MAX_OPEN, MOST_OPEN, Closed, Windows

S = 1_000_000
FAR = 10**6 * S
"""A clock that is later than every row here."""


def windows(*, by_rows: bool = False, min_rows: int = 10, grace_s: float = 5, window_s: float = 60) -> Windows:
    return Windows.of(
        ModelMonitoring(window_s=window_s, grace_s=grace_s, min_rows=min_rows, time_input="at" if by_rows else "")
    )


def feed(made: Windows, *rows: tuple[float, int], now_us: int = FAR) -> None:
    """Some rows at each of these seconds; one cell that counts them."""
    times = np.repeat(np.array([round(at * S) for at, _ in rows], dtype=np.int64), [count for _, count in rows])
    for start, places in made.places(times, now_us):
        own = times[places]
        made.add(start, len(own), int(own.max()), np.array([len(own)]))
    made.settle(now_us)


def told(closed: list[Closed]) -> list[tuple[float, float, int]]:
    return [(each.start_us / S, each.end_us / S, each.rows) for each in closed]


def test_a_window_is_complete_once_its_end_and_the_grace_are_past() -> None:
    made = windows()
    feed(made, (61, 20), (119, 3), (120, 11))
    assert told(made.close(124_999_999)) == []
    assert made.open_rows == 34
    [closed] = made.close(125 * S)
    assert (closed.start_us, closed.end_us, closed.rows, closed.offered, closed.dropped) == (60 * S, 120 * S, 23, 23, 0)
    assert closed.counts is not None
    assert closed.counts.tolist() == [23]
    assert made.open_rows == 11


def test_rows_within_the_grace_count_and_later_ones_are_late() -> None:
    made = windows()
    feed(made, (61, 20))
    made.close(124 * S)
    feed(made, (62, 5))
    assert told(made.close(125 * S)) == [(60, 120, 25)]
    feed(made, (119, 7), (120, 1))
    assert (made.late_rows, made.open_rows) == (7, 1)


def test_time_does_not_run_backwards() -> None:
    made = windows()
    feed(made, (61, 20))
    made.close(125 * S)
    assert made.close(10 * S) == []
    feed(made, (61, 1))
    assert made.late_rows == 1


def test_small_windows_wait_for_the_next_with_rows_and_empty_ones_are_told_at_once() -> None:
    made = windows()
    feed(made, (0, 4), (120, 5), (180, 3))
    assert told(made.close(185 * S)) == [(60, 120, 0)]
    assert made.waiting is not None
    assert (made.waiting.rows, made.open_rows) == (9, 12)
    assert told(made.close(245 * S)) == [(0, 240, 12)]
    assert made.waiting is None


def test_silence_is_told_from_the_first_tick_on_and_for_no_longer_than_is_remembered() -> None:
    made = windows()
    assert made.close(130 * S) == []
    assert told(made.close(245 * S)) == [(120, 180, 0), (180, 240, 0)]
    long = made.close(245 * S + 60 * S * 10**6)
    assert len(long) == KEPT_WINDOWS
    assert long[-1].end_us == 240 * S + 60 * S * 10**6


def test_rows_of_the_future_and_from_before_1970_are_misdated() -> None:
    made = windows()
    feed(made, (100, 5), (161, 2), (-1, 3), now_us=100 * S)
    assert (made.misdated_rows, made.open_rows) == (5, 5)
    limits = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    assert list(made.places(limits, 100 * S)) == []
    assert made.misdated_rows == 7


def test_where_rows_bring_their_time_the_latest_row_moves_it() -> None:
    made = windows(by_rows=True)
    assert made.close(FAR) == []
    feed(made, (1, 9))
    assert told(made.close(FAR)) == []
    feed(made, (2, 1))
    assert made.reached_us == 2 * S
    feed(made, (64, 1))
    assert told(made.close(0)) == []
    feed(made, (65, 1))
    assert told(made.close(0)) == [(0, 60, 10)]
    feed(made, (59, 3))
    assert made.late_rows == 3


def test_one_row_far_ahead_closes_nothing_and_a_gap_costs_no_row() -> None:
    made = windows(by_rows=True)
    feed(made, (1, 20), (100_000, 1))
    assert made.reached_us == 1 * S
    feed(made, (61, 20))
    assert made.reached_us == 61 * S
    assert told(made.close(0)) == []
    # a real gap: ten rows are there or beyond
    feed(made, (6001, 8))
    assert made.reached_us == 61 * S
    feed(made, (6002, 1))
    assert made.reached_us == 6002 * S
    closed = made.close(0)
    assert told([each for each in closed if each.rows]) == [(0, 60, 20), (60, 120, 20)]
    assert len(closed) == 99
    assert (made.late_rows, made.misdated_rows, made.open_rows) == (0, 0, 10)


def test_what_callers_may_open_is_bounded() -> None:
    made = windows(by_rows=True, window_s=1)
    feed(made, *((at, 1) for at in range(MOST_OPEN + 7)))
    assert len(made.open) == MOST_OPEN
    assert made.misdated_rows == 7
    made.close(0)
    assert len(made.open) < 10


def test_a_grace_of_many_windows_closes_the_oldest_early() -> None:
    made = windows(grace_s=10**5, window_s=1)
    feed(made, *((at, 10) for at in range(MAX_OPEN + 3)))
    assert told(made.close((MAX_OPEN + 10) * S)) == [(0, 1, 10), (1, 2, 10), (2, 3, 10)]
    assert len(made.open) == MAX_OPEN


def test_what_was_lost_counts_in_its_window_or_in_the_next() -> None:
    made = windows()
    made.count(8, 8, 70 * S, FAR)
    feed(made, (61, 12))
    [closed] = made.close(125 * S)
    assert (closed.rows, closed.offered, closed.dropped) == (12, 20, 8)
    made.count(3, 2, 70 * S, FAR)
    [closed] = made.close(185 * S)
    assert (closed.rows, closed.offered, closed.dropped, closed.counts) == (0, 3, 2, None)


def test_what_was_lost_waits_for_the_time_that_rows_bring() -> None:
    made = windows(by_rows=True)
    made.count(6, 6, FAR, FAR)
    feed(made, (61, 9))
    assert made.unplaced == (6, 6)
    feed(made, (62, 1))
    made.count(1, 1, FAR, FAR)
    feed(made, (125, 1))
    [closed] = made.close(FAR)
    assert (closed.start_us, closed.rows, closed.offered, closed.dropped) == (60 * S, 10, 17, 7)


def test_merged_windows_add_what_was_lost() -> None:
    made = windows()
    made.count(2, 2, 1 * S, FAR)
    feed(made, (0, 4), (60, 6))
    [closed] = made.close(125 * S)
    assert (closed.start_us, closed.rows, closed.offered, closed.dropped) == (0, 10, 12, 2)
    assert closed.counts is not None
    assert closed.counts.tolist() == [10]


@pytest.mark.parametrize("window_s", [1, 3600, 604_800])
def test_windows_begin_at_multiples_of_their_length(window_s: float) -> None:
    made = windows(window_s=window_s, grace_s=0)
    feed(made, (10**5 + 0.5, 10), now_us=10**13)
    [closed] = made.close(round((10**5 + window_s + 1) * S) + round(window_s) * S)[:1]
    assert closed.start_us % round(window_s * S) == 0
    assert closed.start_us <= 10**5 * S + S // 2 < closed.end_us
