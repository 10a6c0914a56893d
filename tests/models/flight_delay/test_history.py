"""What was known of a flight before it left: from logs, at the right instants, and never from what came later."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_client.feature_set import FeatureSet
from feature_client.point_in_time import training_set
from feature_client.schema import DEFAULTED, Status
from models.flight_delay import features
from models.flight_delay.data import Flights
from models.flight_delay.events import load_events
from models.flight_delay.features import LOGS, VIEWS, new_york_offset_s
from models.flight_delay.history import History
from models.flight_delay.inputs import HISTORY, LATELY, SCHEDULE
from server.core.tensors import Array

Logs = dict[str, dict[str, Array]]


@pytest.fixture(scope="module")
def logs() -> Logs:
    return load_events()


@pytest.fixture
def history(histories: History) -> History:
    return histories


def known_us(columns: dict[str, Array]) -> NDArray[np.int64]:
    return np.maximum(columns["event_us"], columns.get("known_us", columns["event_us"]))


def test_logs_are_as_declared_and_in_the_order_of_becoming_known(logs: Logs) -> None:
    assert {log.name: list(log.columns) == list(logs[log.name]) for log in LOGS} == {log.name: True for log in LOGS}
    for columns in logs.values():
        assert (np.diff(known_us(columns)) >= 0).all()
    assert {name: len(columns["event_us"]) for name, columns in logs.items()} == {
        "departures": 328_521,
        "arrivals": 327_346,
        "observations": 26_115,
        "registrations": 3_322,
    }


def test_an_arrival_is_at_the_gate_when_the_timetable_and_its_delay_say_so(logs: Logs) -> None:
    """UA 1545 of January 1 left Newark for Houston at 5:15 and came in at 8:30 local time, 11 minutes late."""
    arrivals = logs["arrivals"]
    first = np.flatnonzero(
        (arrivals["tailnum"] == b"N14228") & (arrivals["dest"] == b"IAH") & (arrivals["departure_hour"] == 5)
    )[0]
    instant = datetime(2013, 1, 1, 8, 30, tzinfo=ZoneInfo("America/Chicago")).astimezone(UTC)
    assert arrivals["event_us"][first] == int(instant.timestamp()) * 1_000_000
    assert (arrivals["delay_min"][first], arrivals["late"][first]) == (11.0, False)


def test_what_both_variants_are_given_is_the_same(history: History, flights: Flights) -> None:
    assert list(history.flights.inputs) == [spec.name for spec in HISTORY.specs]
    for name in (*SCHEDULE.categories, "day_of_week", "departure_minute", "plane_age_years", "plane_seats"):
        assert np.array_equal(
            history.flights.inputs[name], flights.inputs[name], equal_nan=flights.inputs[name].dtype.kind == "f"
        ), name
    # an observation stands for three hours, where data.load has none for the hour before
    for name in ("temp_f", "visibility_miles"):
        known = ~np.isnan(flights.inputs[name].astype(np.float32))
        assert np.array_equal(history.flights.inputs[name][known], flights.inputs[name][known])
    distances = history.flights.inputs["distance_miles"] == flights.inputs["distance_miles"]
    assert distances.mean() > 0.998  # the first flight of a route has the default


def test_features_are_what_somebody_would_count_by_hand(logs: Logs, history: History) -> None:
    """Some flights, each counted in plain Python over everything that had come in or left by then."""
    for row in np.random.default_rng(7).integers(0, history.flights.rows, 25).tolist():
        instant = history.scheduled_us[row]
        left, landed = (
            {name: column[known_us(logs[log]) <= instant] for name, column in logs[log].items()}
            for log in ("departures", "arrivals")
        )
        keys = {name: column[row] for name, column in history.keys.items()}
        hour_us = 3_600_000_000
        at = left["origin"] == keys["origin"]
        left_us, landed_us = (log["event_us"].astype(np.int64) for log in (left, landed))
        newest = left_us[at].max()
        recent = at & (left_us > newest - hour_us)
        got = {name: history.flights.inputs[name][row] for name in LATELY}
        if instant - newest <= 3 * hour_us:
            assert got["origin_left_1h"] == recent.sum()
            assert got["origin_delay_1h"] == np.float32(left["delay_min"][recent].mean())
        on = (landed["origin"] == keys["origin"]) & (landed["dest"] == keys["dest"])
        if on.any():
            lately = on & (landed_us > landed_us[on].max() - 14 * 24 * hour_us)
            if instant - landed_us[on].max() <= 14 * 24 * hour_us:
                drawn = (landed["late"][lately].sum() + 2.2) / (lately.sum() + 10)
                assert got["route_late_14d"] == pytest.approx(drawn, rel=1e-6)


def test_what_happens_later_changes_nothing(logs: Logs, history: History) -> None:
    """Every delay after an instant is replaced: features at that instant are the same to the bit."""
    instant = int(np.datetime64("2013-03-05T18:00", "us").astype(np.int64))
    rows = np.flatnonzero(np.abs(history.scheduled_us - instant) < 3_600_000_000)
    rows = rows[history.scheduled_us[rows] <= instant]
    assert len(rows) > 30
    changed = {}
    for name, columns in logs.items():
        later = known_us(columns) > instant
        changed[name] = {
            column: np.where(later, 1e6, values) if values.dtype.kind == "f" else values for column, values in columns.items()
        }
    keys = {name: column[rows] for name, column in history.keys.items()}
    instants = history.scheduled_us[rows]
    again = training_set(FeatureSet(VIEWS), changed, instants, keys, {"scheduled_us": instants})
    for name in LATELY:
        assert again.values[name].tobytes() == history.flights.inputs[name][rows].tobytes(), name


def test_an_aircraft_nobody_has_seen_gets_defaults_and_says_so(logs: Logs) -> None:
    instants = np.array([int(np.datetime64("2013-06-01", "us").astype(np.int64))])
    keys = {name: np.array([b"?"], dtype=object) for name in ("carrier", "origin", "dest", "tailnum")}
    made = training_set(
        FeatureSet(VIEWS), logs, instants, {**keys, "departure_hour": np.array([12])}, {"scheduled_us": instants}
    )
    assert made.values["carrier_late_14d"][0] == np.float32(features.USUAL_LATE)
    assert np.isnan(made.values["aircraft_last_delay"][0])
    assert made.statuses["aircraft_last_delay"][0] == Status.NOT_FOUND | DEFAULTED
    assert made.values["day_of_week"][0] == 5  # eight in the evening of Friday, May 31
    assert made.values["departure_minute"][0] == 20 * 60


def test_new_york_keeps_its_time_as_the_zone_database_says() -> None:
    seconds = np.arange(datetime(2008, 1, 1, tzinfo=UTC).timestamp(), datetime(2031, 1, 1, tzinfo=UTC).timestamp(), 1800)
    instants = seconds.astype(np.int64)
    # around every change, and now and then
    offsets = new_york_offset_s(instants)
    edges = np.flatnonzero(np.diff(offsets))
    assert len(edges) == 2 * 23
    near = np.unique(np.concatenate([edges + shift for shift in range(-3, 4)] + [np.arange(0, len(instants), 997)]))
    zone = ZoneInfo("America/New_York")
    for index in near.tolist():
        there = datetime.fromtimestamp(int(instants[index]), zone).utcoffset()
        assert there is not None
        assert offsets[index] == there.total_seconds()
