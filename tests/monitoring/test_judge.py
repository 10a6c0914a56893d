"""Verdicts: detectors step by step, alarms and what they name, how they end, and what is degraded."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from server.monitoring.baseline import Baseline
from server.monitoring.judge import Detectors, Reference, judge
from server.monitoring.streams import Category, Counts, Numeric
from server.monitoring.verdict import DriftState, Finding, WindowVerdict
from server.monitoring.windows import Closed
from server.statistics.detector import EMPTY, e_value
from tests.monitoring.monitored import HOUR_US, KEY, T0_US

NUMBER = Numeric("x", "input", (0.0,), -9.0, 9.0, (-9.0, 9.0), 0.0, 1.0)
TEXT = Category("c", "input", ("a", "b"))
A = 100


def counts(x: list[int], c: list[int], *, missing: int = 0) -> Counts:
    """Bins of x, categories of c; `missing` of x, which has so many fewer rows."""
    return np.array([*x, missing, 0, 0, 0, 0, 0, *c, 0, 0, 0], dtype=np.int64)


BASELINE = Baseline((NUMBER, TEXT), counts([20_000, 20_000], [20_000, 20_000]), 40_000, digest="d")
REFERENCE = Reference(BASELINE, 0.1, A)
CALM, SHIFTED = counts([500, 500], [500, 500]), counts([300, 700], [500, 500])


def window(of: Counts | None, *, rows: int = 1000, dropped: int = 0, start_us: int = T0_US) -> Closed:
    return Closed(start_us, start_us + HOUR_US, rows, rows + dropped, dropped, of)


def finding(verdict: WindowVerdict, name: str) -> Finding:
    [found] = [each for each in verdict.findings if f"{each.stream}:{each.check}" == name]
    return found


def test_a_calm_window() -> None:
    verdict, after = judge(KEY, "champion", window(CALM), REFERENCE, REFERENCE.fresh)
    assert (verdict.state, verdict.alarmed, verdict.rows, verdict.reference) == (DriftState.OK, (), 1000, "all")
    assert (verdict.baseline_digest, verdict.baseline_origin, verdict.edges_digest) == (
        "d",
        "registration",
        REFERENCE.edges_digest,
    )
    assert verdict.detectors == len(verdict.findings) == 7
    assert verdict.log_threshold == log(A)
    for each in verdict.findings:
        assert each.e == e_value(each.p)
        assert each.log_detector == pytest.approx(log(each.e))  # (1 + 0) e
        # of one stream of numbers and one of categories: two distributions, five rates
        weight = 0.8 / 2 if each.check == "distribution" else 0.2 / 5
        assert each.log_threshold == pytest.approx(log(A / weight))
        assert not each.alarm
    mean = sum(exp(verdict.log_threshold - each.log_threshold) * each.e for each in verdict.findings)
    assert verdict.log_family == pytest.approx(log(mean))
    assert after.logs == tuple(each.log_detector for each in verdict.findings)


def test_what_a_streams_windows_differ_by_is_tolerated() -> None:
    varying = Reference(replace(BASELINE, variation=(0.3, 0.0)), 0.1, A)
    verdict, _ = judge(KEY, "champion", window(SHIFTED), varying, varying.fresh)
    assert (verdict.state, finding(verdict, "x:distribution").tolerated) == (DriftState.OK, 0.3)
    assert finding(verdict, "c:distribution").tolerated < 0.01


def test_what_a_rate_differs_by_from_window_to_window_is_tolerated() -> None:
    known = counts([18_000, 18_000], [20_000, 20_000], missing=4000)
    gaps = window(counts([400, 400], [500, 500], missing=200))
    steady = Reference(replace(BASELINE, counts=known), 0.1, A)
    verdict, _ = judge(KEY, "champion", gaps, steady, steady.fresh)
    assert finding(verdict, "x:missing").p < 1e-3
    varying = Reference(replace(BASELINE, counts=known, rate_variation={"x:missing": 0.5}), 0.1, A)
    verdict, _ = judge(KEY, "champion", gaps, varying, varying.fresh)
    assert finding(verdict, "x:missing").p > 0.5
    assert finding(verdict, "x:missing").tolerated == pytest.approx(0.5 * 0.3)  # of a rate of 0.1


def test_without_distributions_rates_have_all_the_weight() -> None:
    constant = Reference(Baseline((replace(NUMBER, edges=()),), np.array([9, 0, 0, 0, 0, 0], dtype=np.int64), 9), 0.1, A)
    assert constant.weights == (1 / 3,) * 3


def test_a_detector_steps_by_what_the_window_says() -> None:
    before = Detectors((log(3.0), *[EMPTY] * 6))
    verdict, _ = judge(KEY, "champion", window(CALM), REFERENCE, before)
    [first, *_] = verdict.findings
    assert exp(first.log_detector) == pytest.approx(4 * first.e)


def test_an_alarm_names_what_it_is_about_and_begins_that_anew() -> None:
    verdict, after = judge(KEY, "champion", window(SHIFTED), REFERENCE, REFERENCE.fresh)
    assert (verdict.state, verdict.alarmed) == (DriftState.ALARM, ("x:distribution",))
    assert verdict.log_family >= log(A)
    assert finding(verdict, "x:distribution").alarm
    assert (after.logs[0], after.lasting) == (EMPTY, (0,))
    assert after.logs[1:] == tuple(each.log_detector for each in verdict.findings[1:])


def test_several_detectors_together_alarm_and_are_named_until_the_rest_is_calm() -> None:
    """None is where it would alarm by itself, at 60 / 0.4 and 60 / 0.04, but the mean is, and without the largest it is not."""
    high = Detectors((log(149.0), log(239.0), log(229.0), *[EMPTY] * 4))
    few = counts([2, 2], [2, 2])  # nothing can be said of distributions by four rows, so those detectors stay
    verdict, after = judge(KEY, "champion", window(few, rows=50), replace(REFERENCE, alarm_every_windows=60), high)
    assert finding(verdict, "x:distribution").log_detector == log(149.0)
    assert finding(verdict, "x:missing").log_detector == pytest.approx(log(240 * 0.5), abs=1e-8)
    assert verdict.log_family == pytest.approx(log(0.4 * 149 + 0.04 * (120 + 115 + 3 * 0.5)), abs=1e-6)
    assert verdict.alarmed == ("x:distribution",)
    assert not finding(verdict, "x:distribution").alarm
    assert after.logs[0] == EMPTY


def test_where_every_detector_is_high_all_are_named() -> None:
    verdict, after = judge(KEY, "champion", window(CALM), REFERENCE, Detectors((100.0,) * 7))
    assert len(verdict.alarmed) == 7
    assert set(after.logs) == {EMPTY}


def test_an_alarm_lasts_while_what_it_named_is_suspicious() -> None:
    _, after = judge(KEY, "champion", window(SHIFTED), REFERENCE, REFERENCE.fresh)
    slight = counts([430, 570], [500, 500])
    verdict, after = judge(KEY, "champion", window(slight), REFERENCE, after)
    assert finding(verdict, "x:distribution").e > 1
    assert (verdict.state, verdict.alarmed, after.lasting) == (DriftState.ALARM, (), (0,))
    assert verdict.log_family < log(A)
    verdict, after = judge(KEY, "champion", window(None, rows=0), REFERENCE, after)
    assert (verdict.state, after.lasting) == (DriftState.NO_DATA, (0,))
    verdict, after = judge(KEY, "champion", window(CALM), REFERENCE, after)
    assert (verdict.state, after.lasting) == (DriftState.OK, ())
    verdict, after = judge(KEY, "champion", window(slight), REFERENCE, after)
    assert verdict.state == DriftState.OK


def test_a_window_without_rows_leaves_detectors_as_they_are() -> None:
    before = Detectors((1.0, 2.0, EMPTY, 0.5, 0.0, 1.5, 0.1))
    verdict, after = judge(KEY, "challenger", window(None, rows=0, dropped=9), REFERENCE, before)
    assert after is before
    assert (verdict.state, verdict.findings, verdict.arm) == (DriftState.NO_DATA, (), "challenger")
    assert (verdict.offered, verdict.dropped) == (9, 9)


def test_what_cannot_be_tested_stays_as_it_is() -> None:
    """Fed with e = 1 a detector would grow by one a window, and raise an alarm about nothing after A of them."""
    few, detectors = counts([2, 2], [2, 2]), REFERENCE.fresh
    for _ in range(3 * A):
        verdict, detectors = judge(KEY, "champion", window(few, rows=50), REFERENCE, detectors)
        assert verdict.state == DriftState.OK
    untested = finding(verdict, "x:distribution")
    assert (untested.p, untested.e, untested.df, untested.log_detector) == (1, 1, 0, EMPTY)


@pytest.mark.parametrize(("dropped", "state"), [(10, DriftState.OK), (11, DriftState.DEGRADED)])
def test_a_window_of_which_more_than_a_hundredth_was_lost_is_degraded(dropped: int, state: DriftState) -> None:
    verdict, _ = judge(KEY, "champion", window(CALM, rows=1000, dropped=dropped), REFERENCE, REFERENCE.fresh)
    assert verdict.state == state
    assert len(verdict.findings) == 7


def test_a_degraded_window_that_alarms_is_an_alarm() -> None:
    verdict, _ = judge(KEY, "champion", window(SHIFTED, dropped=500), REFERENCE, REFERENCE.fresh)
    assert verdict.state == DriftState.ALARM
    assert (verdict.offered, verdict.dropped) == (1500, 500)


def test_all_rows_missing_is_found_by_the_rate_alone() -> None:
    verdict, _ = judge(KEY, "champion", window(counts([0, 0], [500, 500], missing=1000)), REFERENCE, REFERENCE.fresh)
    assert verdict.alarmed == ("x:missing",)
    assert finding(verdict, "x:distribution").e == 1


def test_an_hour_is_compared_with_the_same_hour_of_the_week() -> None:
    """Where the baseline has it: at that hour the shift is what is usual, and its own rows say what is tolerated."""
    hour = (T0_US // HOUR_US + 72) % 168
    baseline = replace(BASELINE, hourly={hour: counts([300, 700], [500, 500])})
    verdict, _ = judge(KEY, "champion", window(SHIFTED), Reference(baseline, 0.1, A), REFERENCE.fresh)
    assert (verdict.state, verdict.reference) == (DriftState.OK, "hours_of_week")
    found = finding(verdict, "x:distribution")
    assert found.n == 1000
    assert found.tolerated == pytest.approx(0.009587, abs=1e-6)
    later, _ = judge(KEY, "champion", window(SHIFTED, start_us=T0_US + HOUR_US), Reference(baseline, 0.1, A), REFERENCE.fresh)
    assert (later.state, later.reference) == (DriftState.ALARM, "all")
