"""Detectors: e-values that are ones, and alarms that are as rare as is said."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from server.statistics.detector import EMPTY, P_LEAST, P_MOST, SERIES_BELOW, e_value, family, step

LOGS = st.floats(-50, 700)


def formula(p: float) -> float:
    return (1 - p + p * math.log(p)) / (p * math.log(p) ** 2)


@pytest.mark.parametrize("p", [1e-300, 1e-100, 1e-9, 0.001, 0.05, 0.3, 0.6])
def test_it_is_the_calibrator(p: float) -> None:
    assert e_value(p) == pytest.approx(formula(p), rel=1e-11)


def test_near_1_it_is_a_half_and_no_rounding() -> None:
    assert e_value(1.0) == pytest.approx(0.5, rel=1e-9)
    assert e_value(1 - 1e-6) == pytest.approx(0.5 + 1e-6 / 6, rel=1e-12)
    around = math.exp(-SERIES_BELOW)
    assert e_value(around * (1 + 1e-13)) == pytest.approx(e_value(around * (1 - 1e-13)), rel=1e-12)


def test_the_least_and_the_largest_p_are_clipped() -> None:
    assert e_value(0.0) == e_value(P_LEAST) == e_value(1e-308)
    assert 1e290 < e_value(0.0) < math.inf
    assert e_value(1.0) == e_value(P_MOST)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p-value"):
        e_value(p)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_less_p_is_more_evidence(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert 0.5 <= e_value(high) <= e_value(low) < math.inf


def test_its_mean_over_uniform_p_is_at_most_1() -> None:
    # over L = -ln p, whose density is e^-L; what is left beyond 690 is 1/690 of a mean of exactly 1
    total = 0.0
    for low, high in ((1e-9, 1), (1, 10), (10, 100), (100, 690)):
        total += integrate.quad(lambda size: e_value(math.exp(-size)) * math.exp(-size), low, high, limit=200)[0]
    total += e_value(0.0) * math.exp(-690)
    assert 1 - 1 / 690 - 1e-6 <= total <= 1


@settings(deadline=None)
@given(LOGS, st.floats(0.001, 1e6))
def test_a_step_is_one_more_times_e(log_detector: float, e: float) -> None:
    assert step(log_detector, e) == pytest.approx(
        float(special.logsumexp([0, log_detector])) + math.log(e), rel=1e-12, abs=1e-12
    )


def test_a_detector_begins_with_the_first_e_and_never_overflows() -> None:
    assert step(EMPTY, 3.0) == math.log(3)
    assert step(math.log(3), 2.0) == pytest.approx(math.log(8))
    assert step(1e6, 1e299) == pytest.approx(1e6 + math.log(1e299))
    assert step(5.0, 0.0) == EMPTY
    for e in (-1.0, math.nan):
        with pytest.raises(ValueError, match="e-value"):
            step(0.0, e)


@settings(deadline=None)
@given(st.lists(LOGS | st.just(EMPTY), min_size=1, max_size=20))
def test_a_family_is_the_mean(logs: list[float]) -> None:
    expected = float(special.logsumexp(logs)) - math.log(len(logs))
    assert family(logs) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert family(np.array(logs)) == family(tuple(logs))


def test_a_family_of_none_has_seen_nothing() -> None:
    assert family([]) == family([EMPTY, EMPTY]) == EMPTY
    assert family([math.inf, 0.0]) == math.inf


def run_lengths(seed: int, times: int, streams: int, threshold: float, together: bool) -> list[int]:
    """Windows until the alarm of a family, under uniform p-values: of each stream its own, or one for all of them."""
    random = np.random.default_rng(seed)
    lengths = []
    for _ in range(times):
        logs, windows = [EMPTY] * streams, 0
        while family(logs) < math.log(threshold):
            p = np.repeat(random.random(), streams) if together else random.random(streams)
            logs = [step(log, e_value(float(each))) for log, each in zip(logs, p, strict=True)]
            windows += 1
        lengths.append(windows)
    return lengths


@pytest.mark.parametrize(("streams", "together"), [(1, True), (5, False), (5, True)])
def test_without_drift_an_alarm_is_as_late_as_is_said(streams: int, together: bool) -> None:
    lengths = run_lengths(3, 150, streams, 40.0, together)
    # the mean is at least 40; by how much it may seem less is three standard errors
    assert np.mean(lengths) + 3 * np.std(lengths) / math.sqrt(len(lengths)) >= 40
    assert min(lengths) >= 1


def test_drift_is_found_soon() -> None:
    log, windows = EMPTY, 0
    while log < math.log(672 * 100):
        log, windows = step(log, e_value(1e-4)), windows + 1
    assert windows == 3
