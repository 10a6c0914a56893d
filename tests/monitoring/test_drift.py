"""Monitors over many windows: silent where nothing harmful happens, quick where it does, and not moved by one outlier.

A window's counts are drawn as rows would give them: multinomial over the frozen bins, by each bin's true probability. Larger
simulations, of more rates and of neighbours' tools, are measurements and no tests.
"""

from itertools import pairwise
from math import pi, sin

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from server.monitoring.baseline import Baseline
from server.monitoring.judge import Reference, judge
from server.monitoring.monitor import Monitor
from server.monitoring.streams import Counts, Numeric
from server.monitoring.windows import Closed
from server.statistics.evidence import tolerated_psi
from tests.monitoring.monitored import HOUR_US, KEY, T0_US, answered, normal_baseline, normal_rows, settings

STREAMS = 100
BASELINE = normal_baseline(20_000, STREAMS, seed=4)
REFERENCE = Reference.of(BASELINE, settings().monitoring)


def shares(stream: Numeric, shift: float) -> NDArray[np.float64]:
    """How many of its values are in each bin when the mean has moved."""
    return np.array([ndtr(high - shift) - ndtr(low - shift) for low, high in pairwise((-np.inf, *stream.edges, np.inf))])


def drawn(
    baseline: Baseline, generator: np.random.Generator, rows: int, shifts: dict[int, float], wobble: float = 0.0
) -> Closed:
    counts: Counts = baseline.layout.empty()
    for index, stream in baseline.layout:
        assert isinstance(stream, Numeric)
        own = counts[baseline.layout.slices[index]]
        own[: stream.bins] = generator.multinomial(rows, shares(stream, shifts.get(index, wobble)))
    return Closed(T0_US, T0_US + HOUR_US, rows, rows, 0, counts)


def test_a_harmless_wobble_of_a_hundred_streams_alarms_nobody() -> None:
    """Half of what is tolerated, once around each day of a week."""
    generator, detectors = np.random.default_rng(20), REFERENCE.fresh
    for number in range(168):
        window = drawn(BASELINE, generator, 1000, {}, wobble=0.05 * sin(2 * pi * number / 24))
        verdict, detectors = judge(KEY, "champion", window, REFERENCE, detectors)
        assert not verdict.alarmed, number
        assert verdict.log_family < verdict.log_threshold


@pytest.mark.parametrize(("rows", "within", "usually"), [(1000, 2, 0.95), (200, 12, 0.8), (200, 8, 0.5)])
def test_a_shift_of_one_stream_in_a_hundred_is_found(rows: int, within: int, usually: float) -> None:
    """0.3 standard deviations, after a quiet day: of 20 as many as the binomial law gives but for once in a thousand."""
    generator, calm = np.random.default_rng(8), REFERENCE.fresh
    for _ in range(24):
        verdict, calm = judge(KEY, "champion", drawn(BASELINE, generator, rows, {}), REFERENCE, calm)
        assert not verdict.alarmed
    found = 0
    for _ in range(20):
        detectors = calm
        for _ in range(within):
            verdict, detectors = judge(KEY, "champion", drawn(BASELINE, generator, rows, {61: 0.3}), REFERENCE, detectors)
            if verdict.alarmed:
                assert verdict.alarmed == ("x[61]:distribution",)
                found += 1
                break
    assert found >= binom.ppf(0.001, 20, usually)


def test_one_outlier_hides_nothing() -> None:
    """Bins that followed the window would have nearly all of it in one, once a single value is far away."""
    made = []
    rows = normal_rows(T0_US, 10_000, 1, seed=1, shift=0.3)
    for values in (rows.inputs["x"], np.append(rows.inputs["x"], [[np.float32(1e4)]], axis=0)):
        monitor = Monitor(KEY, "champion", settings())
        monitor.compare_with(normal_baseline(20_000, 1))
        monitor.add(answered(np.full(len(values), T0_US), {"x": values}), T0_US)
        [verdict] = monitor.tick(T0_US + 2 * HOUR_US - 1)
        made.append(verdict.findings[0])
    without, outlier = made
    assert outlier.effect == pytest.approx(without.effect, rel=0.01)
    assert outlier.effects["wasserstein"] == pytest.approx(without.effects["wasserstein"], rel=0.01)
    assert without.effect > 0.05


def test_a_small_baseline_alarms_nobody_by_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 rows, and half of the tolerated shift for two days of large windows, and what would be without the rule."""
    small = normal_baseline(1000, STREAMS, seed=6)
    reference = Reference.of(small, settings().monitoring)

    def alarms() -> int:
        generator, detectors, raised = np.random.default_rng(7), reference.fresh, 0
        for _ in range(48):
            window = drawn(small, generator, 10_000, {}, wobble=0.05)
            verdict, detectors = judge(KEY, "champion", window, reference, detectors)
            raised += bool(verdict.alarmed)
        return raised

    assert alarms() == 0
    monkeypatch.setattr("server.monitoring.checks.supported_psi", lambda sd, df, n: tolerated_psi(sd))
    assert alarms() > 0
