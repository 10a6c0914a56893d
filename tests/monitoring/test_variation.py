"""How much windows of a baseline differ: nothing where rows are independent, and enough where whole windows move."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from server.core.monitoring_settings import ModelMonitoring
from server.core.settings import ModelSettings
from server.monitoring.build import build
from server.monitoring.streams import Category, Layout, Numeric
from server.monitoring.variation import CHANCE, LEAST_WINDOWS, MARGIN, rate_variation, variation
from server.statistics.distances import psi, psi_bias
from tests.monitoring.plain_rows import HOUR_US, rows_of

BINS = 10
NUMBERS = Numeric("x", "input", tuple(float(edge) for edge in range(1, BINS)), 0.0, 9.0, (0.0, 9.0), 5.0, 1.0)


def counted(layout: Layout, rows: Any) -> Any:
    made = layout.empty()
    made[:BINS] = np.bincount(rows, minlength=BINS)
    return made


def windows_of(generator: np.random.Generator, shifts: Any, rows: int = 300) -> tuple[Layout, Any, list[Any]]:
    """Windows of numbers of ten bins, of which each is shifted by so much."""
    layout = Layout((NUMBERS,))
    made = [counted(layout, np.clip(generator.normal(4.5 + shift, 2.0, rows).astype(int), 0, BINS - 1)) for shift in shifts]
    return layout, np.sum(made, axis=0), made


def test_independent_rows_have_no_variation() -> None:
    generator, runs = np.random.default_rng(5), 300
    found = [variation(*windows_of(generator, [0.0] * 12))[0] for _ in range(runs)]
    assert sum(each > 0 for each in found) <= binom.isf(1e-4, runs, 5 * CHANCE)


def test_windows_that_move_have_as_much_as_the_furthest() -> None:
    generator = np.random.default_rng(6)
    layout, whole, windows = windows_of(generator, [0.0, 0.6, -0.6, 0.0, 1.2, -1.2])
    furthest = windows[4]
    n, m = int(whole[:BINS].sum()), 300
    expected = psi(whole[:BINS], furthest[:BINS]) - (BINS - 1) * (1 / m - 1 / n)
    (found,) = variation(layout, whole, windows)
    # bins with few rows are put together
    assert found == pytest.approx(MARGIN * expected, rel=0.15)


def test_the_law_that_it_is_judged_by() -> None:
    """A part of the rows has a PSI of (B - 1) (1 / m - 1 / n) on average, less than a sample of its own would have."""
    generator, n, m = np.random.default_rng(7), 2000, 400
    found = []
    for _ in range(2000):
        rows = generator.integers(0, BINS, n)
        found.append(psi(np.bincount(rows, minlength=BINS), np.bincount(rows[:m], minlength=BINS)))
    assert np.mean(found) == pytest.approx((BINS - 1) * (1 / m - 1 / n), rel=0.05)
    assert np.mean(found) < 0.8 * psi_bias(BINS, n, m)


def test_few_windows_say_nothing_and_empty_ones_are_left_out() -> None:
    generator = np.random.default_rng(8)
    layout, whole, windows = windows_of(generator, [-3.0, 3.0, 0.0])
    assert len(windows) < LEAST_WINDOWS
    assert variation(layout, whole, windows) == (0.0,)
    empty = layout.empty()
    assert variation(layout, whole, [empty] * 9) == (0.0,)
    assert variation(layout, whole, [whole] * 9) == (0.0,)
    layout, whole, windows = windows_of(generator, [-3.0, 3.0, 0.0, 0.0])
    assert variation(layout, whole, [*windows, empty]) == variation(layout, whole, windows) > (0.0,)


def test_categories_vary_too() -> None:
    layout = Layout((Category("c", "input", ("a", "b")),))
    windows = []
    for a, b in ((50, 150), (150, 50), (100, 100), (20, 180)):
        made = layout.empty()
        made[:2] = a, b
        windows.append(made)
    (found,) = variation(layout, np.sum(windows, axis=0), windows)
    assert found > 0.5


def gaps_of(missing: Any, rows: int = 1000) -> tuple[Layout, Any, list[Any]]:
    """Windows in which so many values are missing."""
    layout, made = Layout((NUMBERS,)), []
    for count in missing:
        counts = layout.empty()
        counts[0], counts[BINS] = rows - count, count
        made.append(counts)
    return layout, np.sum(made, axis=0), made


def test_rates_of_independent_rows_have_no_variation() -> None:
    generator, runs = np.random.default_rng(10), 500
    found = [rate_variation(*gaps_of(generator.binomial(1000, 0.02, 12))) for _ in range(runs)]
    # the chi-square law is an approximation of these counts
    assert sum(map(len, found)) <= binom.isf(1e-4, runs, 5 * CHANCE)


def test_a_rate_that_differs_from_window_to_window() -> None:
    layout, whole, windows = gaps_of([10, 10, 200, 20])
    rate = 240 / 4000
    assert rate_variation(layout, whole, windows) == {
        "x:missing": pytest.approx(MARGIN * (0.2 - rate) / (rate * (1 - rate)) ** 0.5)
    }
    # a few rows, all of them, and too few windows say nothing
    for missing in ([0, 0, 15, 0], [1000] * 4, [10, 10, 200]):
        assert rate_variation(*gaps_of(missing)) == {}
    assert rate_variation(layout, whole, [*windows, layout.empty()]) == rate_variation(layout, whole, windows)
    assert rate_variation(layout, whole, [whole] * 4) == {}


@pytest.mark.parametrize(("window_s", "varies"), [(24 * 3600.0, True), (3600.0, False)])
def test_a_baseline_knows_what_its_own_windows_differ_by(window_s: float, varies: bool) -> None:
    """Days with a weather of their own; hours have too few rows to be windows."""
    generator = np.random.default_rng(9)
    days, rows = 8, 24 * 20
    time_us = np.arange(days * rows) * (HOUR_US // 20)
    weather = np.repeat(generator.normal(0, 2, days), rows)
    columns = {"steady": generator.normal(size=days * rows), "weather": weather + generator.normal(size=days * rows)}
    samples = rows_of(columns, time_us=time_us)
    baseline = build(samples, ModelSettings(monitoring=ModelMonitoring(window_s=window_s)))
    found = dict(zip([stream.name for stream in baseline.streams], baseline.variation, strict=True))
    assert found["steady"] == 0
    assert (found["weather"] > 0.5) == varies
    assert build(samples, ModelSettings(), timed=False).variation == ()
