"""Confidence sequences hold at all instants at once, harm is found and nothing else, and state is state."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from server.statistics.bounded_mean import GRID, BoundedMean, HarmDetector

Values = NDArray[np.float64]


def by_the_book(values: Values, alpha: float) -> tuple[float, float]:
    """Theorem 2 of Waudby-Smith and Ramdas, term by term."""
    total, deviations, weights, weighted, spent = 0.0, 0.0, 0.0, 0.0, 0.0
    guess, variance = 0.5, 0.25
    for turn, x in enumerate(values.tolist(), 1):
        bet = min(math.sqrt(2 * math.log(2 / alpha) / (variance * turn * math.log(1 + turn))), 0.5)
        weights, weighted = weights + bet, weighted + bet * x
        spent += 4 * (x - guess) ** 2 * (-math.log(1 - bet) - bet) / 4
        total += x
        guess = (0.5 + total) / (turn + 1)
        deviations += (x - guess) ** 2
        variance = (0.25 + deviations) / (turn + 1)
    reach = (math.log(2 / alpha) + spent) / weights
    return max(weighted / weights - reach, 0), min(weighted / weights + reach, 1)


@pytest.mark.parametrize("rows", [1, 2, 30, 2_000])
def test_it_is_the_theorem(rows: int) -> None:
    values = np.random.default_rng(rows).beta(2, 5, rows)
    for alpha in (0.05, 0.005):
        assert BoundedMean(alpha).add(values).interval(alpha) == pytest.approx(by_the_book(values, alpha), rel=1e-12)


def cut(seed: int, size: int) -> list[slice]:
    places = np.random.default_rng(seed).integers(0, size + 1, 12)
    edges = [0, *sorted(places.tolist()), size]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_it_does_not_matter_how_values_are_cut(seed: int) -> None:
    values = np.random.default_rng(seed).random(97)
    mean, harm = BoundedMean(), HarmDetector(0.4)
    for piece in cut(seed, values.size):
        mean, harm = mean.add(values[piece]), harm.add(values[piece])
    assert mean == BoundedMean().add(values)
    assert harm == HarmDetector(0.4).add(values)
    one_by_one, alone = BoundedMean(), HarmDetector(0.4)
    for value in values:
        one_by_one, alone = one_by_one.add([value]), alone.add([value])
    assert one_by_one == mean
    assert alone == harm


def intervals(values: Values, alpha: float) -> NDArray[np.float64]:
    """`[N, 2]` after each value."""
    found, state = [], BoundedMean(alpha)
    for value in values:
        state = state.add([value])
        found.append(state.interval(alpha))
    return np.array(found)


@pytest.mark.parametrize("law", ["fair", "rare", "narrow"])
def test_it_holds_at_all_instants_at_once(law: str) -> None:
    alpha, times, missed = 0.1, 80, 0
    truth = {"fair": 0.5, "rare": 0.05, "narrow": 0.3}[law]
    for seed in range(times):
        random = np.random.default_rng(seed)
        values = (
            random.normal(truth, 0.02, 400).clip(0.2, 0.4) if law == "narrow" else random.binomial(1, truth, 400).astype(float)
        )
        found = intervals(values, alpha)
        missed += bool(((found[:, 0] > truth) | (found[:, 1] < truth)).any())
        assert (found[:, 0] <= found[:, 1]).all()
    assert missed <= stats.binom.ppf(1 - 1e-4, times, alpha)


def test_it_narrows_and_more_so_where_values_vary_little() -> None:
    random = np.random.default_rng(1)
    widths = []
    for values in (random.binomial(1, 0.5, 20_000), random.normal(0.5, 0.02, 20_000).clip(0, 1)):
        low, high = BoundedMean().add(values).interval(0.05)
        assert low < 0.5 < high
        widths.append(high - low)
    # a fixed sample's interval is 0.0139 wide, one for all instants at once about twice that
    assert widths[0] < 0.04
    assert widths[1] < 0.004


def test_other_levels_hold_as_well() -> None:
    state = BoundedMean(0.05).add(np.random.default_rng(2).random(500))
    wide, narrow = state.interval(0.001), state.interval(0.2)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_before_the_first_value_the_mean_may_be_anything() -> None:
    assert BoundedMean().interval(0.05) == (0.0, 1.0)
    assert BoundedMean().mean == 0.5
    assert BoundedMean().add([]) == BoundedMean()
    assert BoundedMean().add([1.0]).interval(0.05) == (0.0, 1.0)
    assert BoundedMean().add([0.25, 0.5]).mean == 0.375


def test_values_outside_the_interval_are_refused() -> None:
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            BoundedMean().add([0.5, value])
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            HarmDetector(0.5).add([0.5, value])
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="alpha"):
            BoundedMean().interval(alpha)
        with pytest.raises(ValueError, match="alpha"):
            BoundedMean(alpha)
    for bound in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bound"):
            HarmDetector(bound)


def test_the_detector_is_the_mean_of_recursions() -> None:
    values, bound = np.random.default_rng(4).random(200), 0.45
    detectors = np.zeros(len(GRID))
    state, peak = HarmDetector(bound), -math.inf
    for value in values:
        detectors = (1 + detectors) * (1 + np.array(GRID) / bound * (value - bound))
        state, peak = state.add([value]), max(peak, math.log(detectors.mean()))
        assert state.log_detector == pytest.approx(math.log(detectors.mean()), rel=1e-9)
        assert state.log_peak == pytest.approx(peak, rel=1e-9)
    assert state.rows == 200


def test_before_the_first_value_there_is_no_harm() -> None:
    assert HarmDetector(0.3).log_detector == HarmDetector(0.3).log_peak == -math.inf
    assert HarmDetector(0.3).add([]) == HarmDetector(0.3)
    # every factor is positive at the least value there is
    assert math.isfinite(HarmDetector(0.3).add(np.zeros(1000)).log_detector)
    assert HarmDetector(1.5).add(np.ones(1000)).log_detector < math.log(1000)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_without_harm_an_alarm_is_as_late_as_is_said(rate: float) -> None:
    """At the bound exactly, where it is least late: A values on average, to three standard errors."""
    threshold, times, most = 50.0, 120, 5_000
    lengths = []
    for seed in range(times):
        values = np.random.default_rng(seed).binomial(1, rate, most).astype(float)
        state, rows = HarmDetector(rate), 0
        while rows < most and state.log_detector < math.log(threshold):
            state, rows = state.add(values[rows : rows + 1]), rows + 1
        lengths.append(rows)
    assert np.mean(lengths) + 3 * np.std(lengths) / math.sqrt(times) >= threshold


def test_a_late_change_is_found_and_what_came_before_does_not_matter() -> None:
    random = np.random.default_rng(5)
    harm = random.binomial(1, 0.3, 5_000).astype(float)
    delays = []
    for before in (0, 200_000):
        state = HarmDetector(0.22).add(random.binomial(1, 0.2, before).astype(float))
        assert state.log_peak < math.log(1e6)
        rows = 0
        while state.log_detector < math.log(1e6):
            state, rows = state.add(harm[rows : rows + 1]), rows + 1
        delays.append(rows)
    assert max(delays) < 2_500
    assert delays[1] <= delays[0]


def test_better_than_the_bound_is_no_harm() -> None:
    # the smallest bet loses 0.26 % a value at a mean of 0.1, so that its recursion hovers about 1 / 0.0026
    state = HarmDetector(0.3).add(np.random.default_rng(6).binomial(1, 0.1, 100_000).astype(float))
    assert state.log_peak < math.log(1000)


def test_state_is_plain_numbers() -> None:
    values = np.random.default_rng(7).random(50)
    for mean in (BoundedMean(), BoundedMean(0.01).add(values)):
        assert BoundedMean.from_document(json.loads(json.dumps(mean.document(), allow_nan=False))) == mean
    for harm in (HarmDetector(0.2), HarmDetector(0.2).add(values)):
        assert HarmDetector.from_document(json.loads(json.dumps(harm.document(), allow_nan=False))) == harm
    for wrong in ([], [1.0] * 6, [0.5, 3, 1], [math.nan] * 7, [math.inf] * 7, [0.5, math.nan], [math.inf] * 19):
        with pytest.raises(ValueError, match="numbers"):
            BoundedMean.from_document(wrong)
        with pytest.raises(ValueError, match="numbers"):
            HarmDetector.from_document(wrong)


def test_a_state_has_as_much_as_before_after_a_million_values() -> None:
    values = np.random.default_rng(8).random(1_000_000)
    mean, harm = BoundedMean().add(values), HarmDetector(0.5).add(values)
    assert len(mean.document()) == len(BoundedMean().document())
    assert len(harm.document()) == len(harm.add([0.5]).document())
    assert mean.interval(0.05) == pytest.approx((0.5, 0.5), abs=0.002)
