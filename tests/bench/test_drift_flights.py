"""The replay of the flights: halves are halves, a real change is named, and quality is what the outcomes say."""

from dataclasses import replace

import numpy as np
import pytest

from bench.drift.control import PLAN, control, halves, risk_control
from bench.drift.flights import drift_rows, quality_rows, risk_rows, stream_rows
from bench.drift.replay import DAY_US, WEEK_S, Served, baseline_of, known, name_of, settings_of, verdicts
from models.flight_delay.data import load
from server.core.hashing import id_hash


@pytest.fixture(scope="module")
def year() -> Served:
    """Every twelfth flight; instead of the model, the rate at which flights of that hour were late in spring."""
    flights = load()
    flights = flights.take(np.argsort(flights.departs_s, kind="stable")[::12])
    hour = flights.inputs["departure_minute"].astype(np.int64) // 60
    spring = flights.month < 6
    late = np.bincount(hour[spring], weights=flights.late[spring], minlength=24)
    rate = late / np.maximum(np.bincount(hour[spring], minlength=24), 1)
    identities = np.array([id_hash(name_of(row)) for row in range(flights.rows)], np.uint64)
    return Served(flights, rate[hour], flights.departs_s * 1_000_000, identities)


@pytest.mark.parametrize("split", ["exchanged", "rows", "days"])
def test_halves_share_no_flight(year: Served, split: str) -> None:
    first, second, times = halves(year, split, np.random.default_rng(1))
    assert not set(first.tolist()) & set(second.tolist())
    assert len(first) + len(second) > 2300
    days_of_july = (year.time_us[np.concatenate([first, second])] // DAY_US).tolist()
    assert set(days_of_july) == set(range(15_887, 15_918))
    assert (times == year.time_us).all() == (split != "exchanged")
    assert sorted(times[second].tolist()) == sorted(year.time_us[second].tolist())
    days = [set((year.time_us[part] // DAY_US).tolist()) for part in (first, second)]
    assert bool(days[0] & days[1]) == (split != "days")


def test_rows_that_are_exchangeable_give_no_alarm(year: Served) -> None:
    """At most once in 672 windows on average, and these are 31: of 38 flights a day two days are merged."""
    told = control(year, "exchanged", "day", 0.1, "nothing", 2)
    assert (told["splits_with_alarm"], told["windows"], told["windows_in_alarm"]) == (0, 31, 0)
    assert ("exchanged", "day", 0.1, "nothing") in PLAN


def test_a_month_is_one_window(year: Served) -> None:
    told = control(year, "rows", "month", 0.1, "weather, weekday", 1)
    assert told["windows"] == 1
    assert "temp_f:distribution" not in told["effects"]
    assert "carrier:distribution" in told["effects"]


def test_winter_is_named(year: Served) -> None:
    settings = settings_of(window_s=WEEK_S)
    baseline = baseline_of(year, year.months(6, 6), settings)
    found = verdicts(year, baseline, year.months(12, 12), settings)
    rows = drift_rows(found)
    assert [row["state"] for row in rows] == ["alarm"] * len(rows)
    assert len(rows) >= 4
    told = {row["what"]: row for row in stream_rows(found)}
    assert told["temp_f:distribution"]["windows"] == len(rows)
    assert told["temp_f:distribution"]["largest"] > 2
    assert "carrier:distribution" not in told


def test_quality_is_that_of_all_outcomes(year: Served) -> None:
    settings = settings_of(window_s=WEEK_S)
    rows = year.months(7, 7)
    baseline = baseline_of(year, year.months(6, 6), settings)
    found = known(year, baseline, rows, settings)
    told = quality_rows(found.weeks, baseline)
    assert told[-1]["labelled"] == len(rows)
    assert found.weeks[-1].outcomes["accepted"] == len(rows)
    brier = np.mean((year.probability[rows].astype(np.float32).astype(np.float64) - year.flights.late[rows]) ** 2)
    assert found.weeks[-1].realised["brier"].value == pytest.approx(brier, abs=1e-9)
    assert len(risk_rows(found)) == len(found.risks)
    assert {row["first_day"] for row in told} >= {"2013-07-04", "2013-07-25"}


def test_what_falls_is_said_to_have_fallen(year: Served) -> None:
    settings = settings_of(window_s=WEEK_S)
    baseline = baseline_of(year, year.months(6, 6), settings)
    wrong = replace(year, probability=1 - year.probability)
    told = quality_rows(known(wrong, baseline, year.months(7, 7), settings).weeks, baseline)
    whole = next(row for row in told if row["first_day"] == "2013-07-11")
    assert {"brier", "log_loss", "auc"} <= set(whole["fell"])
    assert risk_control(year, "exchanged")["alarms"] == 0
