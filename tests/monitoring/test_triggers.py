"""Whether a model should ask to be trained again: for which reasons, how often, and with which rows."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.monitoring_settings import ModelMonitoring, QualitySettings, RetrainSettings
from server.core.versions import VersionKey
from server.monitoring.events import Event
from server.monitoring.triggers import Rise, Watch, asked, due, noted, without
from server.monitoring.verdict import DriftState, Metric, QualityReading, WindowVerdict
from tests.verdicts import HOUR_US, KEY, START_US, alarming, quality, verdict

S = 1_000_000
NOW_US = START_US + 10 * HOUR_US


def settings(*on: Any, quality: QualitySettings | None = None, **retrain: Any) -> ModelMonitoring:
    return ModelMonitoring(quality=quality, retrain=RetrainSettings(on=on or ("drift", "quality"), **retrain))


def asks(
    watch: Watch,
    how: ModelMonitoring,
    verdicts: tuple[WindowVerdict, ...] = (),
    qualities: tuple[QualityReading, ...] = (),
    now_us: int = NOW_US,
    is_open: bool = False,
) -> Event | None:
    return due(noted(watch, verdicts, qualities), how, KEY, verdicts, qualities, now_us, is_open=is_open)


def data_of(event: Event | None) -> Any:
    assert event is not None
    return json.loads(event.body)["data"]


def test_without_a_reason_nothing_is_asked_for() -> None:
    assert asks(Watch(START_US), settings(), (verdict(0),), (quality(),)) is None


def test_an_alarm_asks_with_everything_it_was_raised_by() -> None:
    moved = alarming(3)
    data = data_of(asks(Watch(START_US), settings(), (moved,)))
    assert (data["model"], data["version"], data["arm"], data["reason"]) == ("ranker", 3, "champion", "drift")
    assert data["said"] == "drift alarm of distance:distribution"
    assert (data["window"]["from_us"], data["window"]["until_us"]) == (moved.start_us, moved.end_us)
    (feature,) = data["features"]
    finding = moved.findings[0]
    assert feature == {
        "name": "distance",
        "check": "distribution",
        "effect": finding.effect,
        "tolerated": finding.tolerated,
        "e": finding.e,
        "p": finding.p,
        "n": 20_000,
        "m": 1000,
        "log_detector": finding.log_detector,
        "log_threshold": finding.log_threshold,
        "baseline": [5000] * 4,
        "window": [100, 200, 300, 400],
        "since_us": moved.start_us,
    }
    assert data["baseline"] == {"digest": "b" * 64, "origin": "registration", "reference": "all"}
    assert (data["features_named"], data["rows"], data["detectors"]) == (1, 1002, 3)


def test_the_rows_to_train_with_begin_where_the_drift_began() -> None:
    """Evidence that added up to the alarm began in hour 2; what came before had been forgotten by then."""

    def hour(number: int, e: float, state: DriftState = DriftState.OK) -> WindowVerdict:
        base = alarming(number) if state is DriftState.ALARM else verdict(number)
        return replace(base, findings=(replace(base.findings[0], e=e),))

    history = [hour(0, 3.0), hour(1, 0.1), hour(2, 5.0), hour(3, 0.5), hour(4, 30.0), hour(5, 1e6, DriftState.ALARM)]
    watch = Watch(START_US)
    for each in history[:-1]:
        watch = noted(watch, [each], ())
    data = data_of(asks(watch, settings(), (history[-1],)))
    assert data["data"]["from_us"] == START_US + 2 * HOUR_US
    assert data["data"]["until_us"] == NOW_US
    assert noted(Watch(START_US), history, ()) == noted(watch, history[-1:], ())


@given(es=st.lists(st.sampled_from([0.0, 0.2, 0.9, 1.0, 1.5, 4.0, 1e9, math.inf]), min_size=1, max_size=12))
def test_where_evidence_began_is_the_last_time_its_sum_was_nothing(es: list[float]) -> None:
    threshold = verdict(0).findings[0].log_threshold
    score, began = 0.0, 0
    for number, e in enumerate(es):
        began = number if score == 0 else began
        score = min(max(0.0, score + (math.log(e) if e else -math.inf)), threshold)
    verdicts = [replace(verdict(number), findings=(replace(verdict(number).findings[0], e=e),)) for number, e in enumerate(es)]
    rises = noted(Watch(0), verdicts, ()).rises["3/champion"]
    if score == 0:
        assert rises == {}
    else:
        assert rises["distance:distribution"].score == pytest.approx(score)
        assert rises["distance:distribution"].since_us == START_US + began * HOUR_US


def test_an_alarm_that_lasts_and_names_nothing_new_is_one() -> None:
    flagged = replace(alarming(1), alarmed=())
    assert data_of(asks(Watch(0), settings(), (flagged,)))["features"][0]["name"] == "distance"
    unflagged = replace(flagged, findings=tuple(replace(each, alarm=False) for each in flagged.findings))
    highest = max(unflagged.findings, key=lambda each: each.log_detector)
    assert data_of(asks(Watch(0), settings(), (unflagged,)))["features"][0]["name"] == highest.stream


def test_what_an_alarm_names_beyond_its_findings_is_named_all_the_same() -> None:
    """Verdicts that were kept for long have lost findings."""
    names = tuple(f"x{number}:missing" for number in range(30))
    data = data_of(asks(Watch(0), settings(), (replace(alarming(1), alarmed=names, findings=()),)))
    assert data["said"] == "drift alarm of x0:missing, x1:missing, x2:missing and 27 more"
    assert data["features"][0] == {"name": "x0", "check": "missing"}
    assert (len(data["features"]), data["features_named"]) == (20, 30)
    assert data["data"]["from_us"] == START_US + HOUR_US


OBJECTIVE = QualitySettings(objective="auc", at_least=0.75)


@pytest.mark.parametrize(
    ("metric", "missed"),
    [
        (Metric(0.70, 0.60, 0.74, 500), True),
        (Metric(0.70, 0.60, 0.75, 500), False),  # its interval holds the objective: it may be met
        (Metric(0.10, 0.00, 0.99, 3), False),
        (Metric(0.80, 0.79, 0.81, 500), False),
    ],
)
def test_an_objective_is_missed_by_a_bound_and_not_by_an_estimate(metric: Metric, missed: bool) -> None:
    for name in ("recent", "realised"):
        empty: dict[str, Any] = {"recent": {}, "realised": {}, "risk": None}
        reading = replace(quality(), **(empty | {name: {"auc": metric}}))
        event = asks(Watch(START_US), settings(quality=OBJECTIVE), (), (reading,))
        assert (event is not None) == missed
        if event is not None:
            data = data_of(event)
            of = "the last window" if name == "recent" else "all rows"
            assert data["said"] == f"auc of {of} is at most 0.74, and must be at least 0.75"
            assert data["quality"][name] == {"auc": {"value": 0.7, "low": 0.6, "high": 0.74, "rows": 500}}
            assert data["objective"]["of"] == of
            assert (data["objective"]["at_least"], data["objective"]["at_most"]) == (0.75, None)


def test_an_objective_from_above() -> None:
    how = settings(quality=QualitySettings(objective="log_loss", at_most=0.3))
    data = data_of(asks(Watch(START_US), how, (), (quality(),)))
    assert data["said"] == "log_loss of all rows is at least 0.39, and must be at most 0.3"
    assert asks(Watch(0), settings(quality=QualitySettings(objective="log_loss", at_most=0.4)), (), (quality(),)) is None


def test_an_estimate_without_outcomes_decides_nothing() -> None:
    reading = replace(quality(), realised={}, recent={}, risk=None, estimated={"auc": Metric(0.1, 0.1, 0.1, 10**6)})
    assert asks(Watch(0), settings(quality=OBJECTIVE), (), (reading,)) is None


def test_harm_asks_first_and_needs_no_objective() -> None:
    data = data_of(asks(Watch(START_US), settings(quality=QualitySettings()), (alarming(2),), (quality(alarm=True),)))
    assert data["reason"] == "quality"
    assert data["said"] == "harm: the mean loss of 400 rows is 0.47, and 0.45 is tolerated"
    assert data["quality"]["risk"]["alarm"] is True
    assert data["also"] == [{"reason": "drift", "said": "drift alarm of distance:distribution"}]


def test_quality_that_no_window_has_yet_is_of_the_present_one() -> None:
    reading = replace(quality(alarm=True), recent_start_us=0)
    data = data_of(asks(Watch(0), settings(quality=QualitySettings()), (), (reading,), NOW_US + 5))
    assert (data["window"]["from_us"], data["window"]["until_us"]) == (NOW_US, NOW_US + HOUR_US)


def test_only_stated_reasons_count() -> None:
    assert asks(Watch(0), settings("schedule"), (alarming(1),), (quality(alarm=True),)) is None
    assert asks(Watch(0), settings("quality"), (alarming(1),), (quality(alarm=True),)) is None  # outcomes are not taken


def test_a_schedule_counts_from_the_last_time() -> None:
    how = settings("schedule", every_s=3600.0, cool_down_s=0.0)
    start = Watch(START_US + 5 * S)
    assert asks(start, how, now_us=START_US + HOUR_US) is None
    event = asks(start, how, now_us=START_US + HOUR_US + 5 * S)
    assert data_of(event)["data"]["from_us"] == START_US + 5 * S
    assert event is not None
    again = asked(start, event.time_us)
    assert asks(again, how, now_us=event.time_us + HOUR_US - 1) is None
    assert data_of(asks(again, how, now_us=event.time_us + HOUR_US))["data"]["from_us"] == event.time_us
    assert asks(start, settings("schedule"), now_us=2 * NOW_US) is None


def test_replicas_whose_schedules_are_due_in_one_period_ask_for_the_same() -> None:
    how = settings("schedule", every_s=3600.0)
    first, second = (asks(Watch(START_US + s), how, now_us=START_US + HOUR_US + s) for s in (5 * S, 7 * S))
    assert first is not None
    assert second is not None
    assert first.id == second.id


def test_new_rows_are_counted_since_the_last_event_and_over_restarts() -> None:
    how = settings("new_data", new_rows=1000, cool_down_s=0.0)
    watch = noted(Watch(START_US), (), (replace(quality(), labelled=400),))
    watch = noted(watch, (), (replace(quality(), labelled=900), replace(quality(), arm="shadow", labelled=50)))
    assert watch.new_rows == 950
    assert due(watch, how, KEY, (), (), NOW_US, is_open=False) is None
    watch = noted(watch, (), (replace(quality(), labelled=60),))  # counted from nothing again
    data = data_of(due(watch, how, KEY, (), (), NOW_US, is_open=False))
    assert data["said"] == "1010 rows with outcomes have come, and 1000 are enough"
    assert (data["rows"], data["enough_rows"]) == (1010, 1000)
    after = asked(watch, NOW_US)
    assert after.new_rows == 0
    assert noted(after, (), (replace(quality(), labelled=70),)).new_rows == 10


@pytest.mark.parametrize(("cool_down_s", "horizon_s"), [(7200.0, 0.0), (0.0, 7200.0), (7200.0, 7200.0)])
def test_after_an_event_there_is_silence(cool_down_s: float, horizon_s: float) -> None:
    how = settings(quality=QualitySettings(horizon_s=horizon_s), cool_down_s=cool_down_s)
    watch = asked(Watch(START_US), START_US + HOUR_US)
    assert asks(watch, how, (alarming(1),), now_us=START_US + 3 * HOUR_US - 1) is None
    assert asks(watch, how, (alarming(2),), now_us=START_US + 3 * HOUR_US) is not None


def test_while_an_event_has_not_reached_everybody_there_is_no_other() -> None:
    assert asks(Watch(0), settings(cool_down_s=0.0), (alarming(1),), is_open=True) is None


def test_what_was_asked_later_is_not_forgotten_for_what_was_asked_before() -> None:
    watch = Watch(0, asked_us=10, new_rows=3)
    assert asked(watch, 9) == watch
    assert asked(watch, 11) == Watch(0, asked_us=11)


def test_a_version_that_leaves_is_forgotten_alone() -> None:
    rises = {"3/champion": {"x:missing": Rise(1.0, 5)}, "30/champion": {"x:missing": Rise(1.0, 5)}}
    watch = Watch(0, labelled={"3/shadow": 5, "4/champion": 6}, rises=rises)
    left = without(watch, VersionKey("ranker", 3))
    assert left.labelled == {"4/champion": 6}
    assert set(left.rises) == {"30/champion"}
