"""What a scrape tells of monitoring: every state, the worst streams first, and totals that never fall."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from prometheus_client.core import Metric

from server.core.versions import VersionKey
from server.monitoring.reading import MonitoringReading
from server.monitoring.verdict import DriftState, Finding
from server.telemetry.monitoring_families import (
    STATES,
    STREAM_SERIES,
    MonitoringFamilies,
    Totals,
    invalid_family,
    worst_streams,
)
from server.telemetry.monitoring_readings import Objective
from tests import verdicts

VERSION = {"model": "ranker", "version": "3", "arm": "champion"}


class Scrape:
    """One or several scrapes of the same process."""

    def __init__(self) -> None:
        self._families = MonitoringFamilies()
        self._told: Sequence[Metric] = ()

    def of(self, reading: MonitoringReading, objectives: Mapping[VersionKey, Objective] | None = None) -> "Scrape":
        self._told = self._families.render(reading, objectives or {})
        return self

    def values(self, name: str, **labels: str) -> list[float]:
        samples = [sample for family in self._told for sample in family.samples]
        return [sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value


@pytest.mark.parametrize("state", DriftState)
def test_one_state_is_1_and_all_are_told(state: DriftState) -> None:
    scrape = Scrape().of(verdicts.reading(verdicts.version(verdicts.verdict(0), state=state)))
    assert {each: scrape.value("podium_drift_state", **VERSION, state=each) for each in STATES} == {
        each: float(each == state) for each in DriftState
    }


def test_the_last_window_is_told() -> None:
    newest = verdicts.alarming(1)
    scrape = Scrape().of(verdicts.reading(verdicts.version(newest, verdicts.verdict(0))))
    assert scrape.value("podium_drift_window_rows", **VERSION) == 1002
    assert scrape.value("podium_drift_window_seconds", **VERSION) == 3600
    assert scrape.value("podium_drift_window_end_seconds", **VERSION) == newest.end_us / 1e6
    assert scrape.value("podium_drift_family_log", **VERSION) == newest.log_family
    assert scrape.value("podium_drift_threshold_log", **VERSION) == pytest.approx(math.log(672))
    assert scrape.value("podium_drift_open_rows", **VERSION) == 17
    moved, missing = newest.findings[0], newest.findings[2]
    assert scrape.value("podium_drift_psi_debiased", **VERSION, stream="distance") == moved.effect
    assert scrape.value("podium_drift_p_log10", stream="distance", check="distribution") == pytest.approx(math.log10(moved.p))
    assert scrape.value("podium_drift_detector_log", stream="distance", check="missing") == missing.log_detector
    assert scrape.value("podium_stream_missing_ratio", **VERSION, stream="distance") == 1 / 1002
    assert scrape.value("podium_drift_streams_left_out", **VERSION) == 0


def test_a_p_of_zero_has_a_logarithm_and_no_values_have_no_ratio() -> None:
    certain = replace(verdicts.alarming(0).findings[0], p=0.0)
    nothing = replace(verdicts.rate("distance", 0, 10), window=(0, 0), m=0)
    scrape = Scrape().of(verdicts.reading(verdicts.version(verdicts.verdict(0, findings=(certain, nothing)))))
    assert scrape.value("podium_drift_p_log10", check="distribution") == -300
    assert scrape.values("podium_stream_missing_ratio") == []


def test_a_version_without_windows_has_a_state_only() -> None:
    scrape = Scrape().of(verdicts.reading(replace(verdicts.version(), quality=None)))
    assert scrape.value("podium_drift_state", **VERSION, state="no_data") == 1
    assert scrape.values("podium_drift_window_rows") == []
    assert scrape.values("podium_label_coverage_ratio") == []
    assert scrape.values("podium_drift_learned_ratio") == []


def test_learning_tells_how_far_it_is() -> None:
    learning = replace(verdicts.version(state=DriftState.LEARNING), learned_rows=5000)
    assert Scrape().of(verdicts.reading(learning)).value("podium_drift_learned_ratio", **VERSION) == 0.25


def many(streams: int) -> tuple[Finding, ...]:
    """Streams s0, s1, … of which the later ones have more evidence, each with two checks."""
    first = verdicts.rate("s", 1, 1000)
    return tuple(
        replace(first, stream=f"s{number}", check=check, log_detector=float(number if check == "missing" else -1))
        for number in range(streams)
        for check in ("missing", "non_finite")
    )


def test_series_of_streams_are_bounded_the_worst_first() -> None:
    window = verdicts.verdict(0, findings=many(STREAM_SERIES + 6))
    scrape = Scrape().of(verdicts.reading(verdicts.version(window)))
    assert scrape.value("podium_drift_streams_left_out", **VERSION) == 6
    assert len(scrape.values("podium_drift_detector_log")) == 2 * STREAM_SERIES
    assert len(scrape.values("podium_stream_missing_ratio")) == STREAM_SERIES
    assert scrape.values("podium_drift_detector_log", stream="s5") == []
    assert scrape.value("podium_drift_detector_log", stream="s6", check="missing") == 6


def test_equals_are_chosen_by_the_alphabet() -> None:
    alike = [replace(each, log_detector=-math.inf) for each in many(STREAM_SERIES + 1)]
    assert worst_streams(alike) == {each.stream for each in alike} - {"s9"}


def test_alarms_are_counted_for_good() -> None:
    def alarms(count: int) -> float:
        version = replace(verdicts.version(), alarms=count, misdated_rows=10 * count)
        told = scrape.of(verdicts.reading(version)).value("podium_drift_alarms_total", **VERSION)
        assert scrape.value("podium_drift_misdated_rows_total", **VERSION) == 10 * told
        return told

    scrape = Scrape()
    assert [alarms(count) for count in (0, 1, 1, 3)] == [0, 1, 1, 3]
    # a monitor that had lost its state
    assert [alarms(count) for count in (0, 2)] == [3, 5]


def test_totals_never_fall() -> None:
    scrape = Scrape()
    read = [verdicts.reading(offered=rows) for rows in (1000, 1500, 200, 300)]
    told = [scrape.of(each).value("podium_sampled_rows_total", **VERSION) for each in read]
    assert told == [1000, 1500, 1700, 1800]
    totals = Totals()
    assert [totals("a", 2), totals("b", 5), totals("a", 1)] == [2, 5, 3]


def test_sampling_is_told() -> None:
    scrape = Scrape().of(verdicts.reading())
    assert scrape.value("podium_sample_inclusion_probability", **VERSION) == 0.05
    assert scrape.value("podium_sample_dropped_total", sink="process", reason="full") == 8
    assert scrape.value("podium_sample_written_total", sink="process") == 1002
    assert scrape.value("podium_sample_waiting_rows", sink="process") == 3
    assert scrape.value("podium_monitor_lag_seconds") == 1.5
    assert scrape.value("podium_retrain_events_total", model="ranker", reason="drift", result="delivered") == 2
    assert scrape.value("podium_drift_late_rows_total", **VERSION) == 5


def test_a_process_that_only_judges_has_nothing_to_tell_of_sampling() -> None:
    scrape = Scrape().of(replace(verdicts.reading(), sampling=None))
    assert scrape.values("podium_sampled_rows_total") == []
    assert scrape.value("podium_drift_state", **VERSION, state="alarm") == 1


def test_quality_is_told_with_its_bounds() -> None:
    scrape = Scrape().of(verdicts.reading(), {verdicts.KEY: Objective("auc", "at_least", 0.75)})
    bounds = {bound: scrape.value("podium_realised_quality", metric="auc", bound=bound) for bound in ("value", "low", "high")}
    assert bounds == {"value": 0.79, "low": 0.71, "high": 0.86}
    assert scrape.value("podium_recent_quality", metric="auc", bound="value") == 0.77
    assert scrape.value("podium_estimated_quality", metric="auc", bound="value") == 0.8
    assert scrape.value("podium_label_coverage_ratio", **VERSION) == 0.5
    assert scrape.value("podium_outcomes_total", **VERSION, status="accepted") == 400
    assert scrape.value("podium_risk_alarm", **VERSION) == 0
    assert scrape.value("podium_risk_detector_log", **VERSION) == 1.25
    assert scrape.value("podium_quality_objective", model="ranker", version="3", metric="auc", bound="at_least") == 0.75


def test_nothing_served_covers_nothing_and_no_risk_is_watched() -> None:
    unknown = replace(verdicts.version(), quality=replace(verdicts.quality(), served=0, labelled=0, risk=None))
    scrape = Scrape().of(verdicts.reading(unknown))
    assert scrape.values("podium_label_coverage_ratio") == []
    assert scrape.values("podium_risk_alarm") == []


def test_invalid_rows_are_told() -> None:
    family = invalid_family([(verdicts.KEY, {("age", "at_least", "reject"): 7})])
    (sample,) = family.samples
    assert (sample.name, sample.value) == ("podium_invalid_inputs_total", 7)
    assert sample.labels == {"model": "ranker", "version": "3", "input": "age", "constraint": "at_least", "action": "reject"}
