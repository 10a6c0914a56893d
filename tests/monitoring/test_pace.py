"""The rate follows the traffic, the floor and the budget."""

import pytest

from server.core.clock import NS_PER_S
from server.core.monitoring_settings import ModelMonitoring
from server.monitoring.pace import Pace

HOUR = 3600


def run(pace: Pace, rows_per_s: int, seconds: int, start_s: int = 0) -> int:
    """Rows a second in ten batches; how many would be sampled."""
    sampled = 0.0
    for tenth in range(seconds * 10):
        now_ns = int((start_s + tenth / 10) * NS_PER_S)
        sampled += rows_per_s / 10 * pace.served(rows_per_s // 10, now_ns)
    return int(sampled)


def test_a_window_gets_about_its_target() -> None:
    pace = Pace(ModelMonitoring(target_rows=10_000), 0)
    sampled = run(pace, 1000, HOUR)
    assert pace.rate == pytest.approx(10_000 / (1000 * HOUR), rel=1e-6)
    # and the floor at once: nothing is known in the first second
    assert 10_000 <= sampled <= 12_000


def test_no_more_than_the_largest_rate_of_little_traffic_but_for_the_floor() -> None:
    pace = Pace(ModelMonitoring(target_rows=10_000, max_rate=0.05, floor_rows=500), 0)
    run(pace, 10, 100)
    assert pace.rate == 0.05
    quiet = Pace(ModelMonitoring(window_s=60, floor_rows=500), 0)
    run(quiet, 10, 100)
    assert quiet.rate == pytest.approx(500 / 600, rel=0.01)
    alone = Pace(ModelMonitoring(window_s=60, floor_rows=500), 0)
    run(alone, 0, 100)
    assert alone.rate == 1.0


def test_a_stated_rate_stays_but_for_the_floor() -> None:
    pace = Pace(ModelMonitoring(rate=0.01, floor_rows=0), 0)
    assert pace.rate == 0.01
    run(pace, 1000, 100)
    assert pace.rate == 0.01
    unknown = Pace(ModelMonitoring(floor_rows=0), 0)
    assert unknown.rate == ModelMonitoring().max_rate


def test_the_floor_is_reached_before_anything_is_known() -> None:
    pace = Pace(ModelMonitoring(floor_rows=500, target_rows=10_000), 0)
    assert pace.served(400, 1) == 1.0
    # 800 rows in less than a second: as if that went on
    assert pace.served(400, 2) == 10_000 / (800 * HOUR)


def test_the_rate_follows_a_day_that_becomes_busy() -> None:
    pace = Pace(ModelMonitoring(target_rows=10_000), 0)
    run(pace, 100, 600)
    before = pace.rate
    run(pace, 10_000, 600, start_s=600)
    assert pace.rate == pytest.approx(before / 100, rel=0.01)


def test_the_highest_rate_is_known_for_some_minutes() -> None:
    pace = Pace(ModelMonitoring(target_rows=10_000), 0)
    run(pace, 100, 400)
    assert pace.peak == 1.0  # the floor, at the beginning
    run(pace, 100, 300, start_s=400)
    before = pace.peak
    assert before == pytest.approx(10_000 / (100 * HOUR), rel=0.01)
    run(pace, 10_000, 100, start_s=700)
    assert pace.rate < before / 50
    assert pace.peak == pytest.approx(before, rel=0.01)
    run(pace, 10_000, 600, start_s=800)
    assert pace.peak < before / 50


def test_the_budget_is_rows_a_second_whatever_the_batches() -> None:
    pace = Pace(ModelMonitoring(max_rows_per_s=1000), 0)
    assert [pace.take(600, 0), pace.take(600, 0), pace.take(600, 0)] == [600, 400, 0]
    assert pace.take(600, NS_PER_S // 2) == 500
    assert pace.take(2000, 10 * NS_PER_S) == 1000
    assert pace.offered == 600 * 4 + 2000
