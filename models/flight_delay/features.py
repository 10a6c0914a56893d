"""What is known of a flight at the instant it is scheduled to leave, from logs of what happened before.

One definition: the training builder, the store's filling and every request call the functions below. An operator installs
this file and names it in the server's settings; nothing in the model repository is ever executed.

A call brings `carrier`, `origin`, `dest`, `tailnum`, `departure_hour` (local hour of the timetable) and `scheduled_us`.
"""

from collections.abc import Mapping

import numpy as np

from feature_client.aggregation import count, last, mean, rate
from feature_client.schema import Array, Entity, EventLog, Feature, days, hours
from feature_client.view import feature_view

_MEASURED = {
    "temp_f": "degF",
    "dewpoint_f": "degF",
    "humidity_pct": "%",
    "wind_direction_deg": "deg",
    "wind_speed_mph": "mph",
    "precip_in": "in",
    "pressure_mbar": "mbar",
    "visibility_miles": "miles",
}
_FLIGHT = {"carrier": "bytes", "origin": "bytes", "dest": "bytes", "tailnum": "bytes", "departure_hour": "int64"}
DEPARTURES = EventLog("departures", {"event_us": "int64", **_FLIGHT, "delay_min": "float64", "late": "bool"})
ARRIVALS = EventLog("arrivals", {"event_us": "int64", **_FLIGHT, "delay_min": "float64", "late": "bool", "distance": "int64"})
OBSERVATIONS = EventLog(
    "observations",
    {"event_us": "int64", "known_us": "int64", "origin": "bytes", **dict.fromkeys(_MEASURED, "float64")},
    created_time="known_us",
)
REGISTRATIONS = EventLog("registrations", {"event_us": "int64", "tailnum": "bytes", "built": "float64", "seats": "float64"})
LOGS = (DEPARTURES, ARRIVALS, OBSERVATIONS, REGISTRATIONS)
"""What happened, as `events` makes it: delays of 15 minutes and less are not late; an aircraft not known is `b""`."""

CARRIER = Entity("carrier", {"carrier": "bytes"})
CARRIER_AT_ORIGIN = Entity("carrier_at_origin", {"carrier": "bytes", "origin": "bytes"})
ORIGIN = Entity("origin", {"origin": "bytes"})
ORIGIN_HOUR = Entity("origin_hour", {"origin": "bytes", "departure_hour": "int64"})
DESTINATION = Entity("destination", {"dest": "bytes"})
ROUTE = Entity("route", {"origin": "bytes", "dest": "bytes"})
AIRCRAFT = Entity("aircraft", {"tailnum": "bytes"})

USUAL_LATE = 0.22
"""Part of flights that arrive late in a usual month: what few observations are drawn towards."""
USUAL_WEIGHT = 10.0
REFERENCE_YEAR = 2013.0
MISSING = float("nan")
_HOUR_S = 3600


def drawn(late: Array, seen: Array) -> Array:
    """A rate of few observations says little: it is drawn towards the usual one as if that had been seen some times."""
    return (np.where(seen > 0, late * seen, 0.0) + USUAL_LATE * USUAL_WEIGHT) / (seen + USUAL_WEIGHT)


def minutes_feature(name: str, max_age_us: int) -> Feature:
    """A mean delay; missing where nothing was seen."""
    return Feature(name, "float32", MISSING, unit="min", null="keep", max_age_us=max_age_us)


def rate_feature(name: str, max_age_us: int) -> Feature:
    """A drawn rate; the usual one where nothing was seen."""
    return Feature(name, "float32", USUAL_LATE, unit="ratio", max_age_us=max_age_us)


@feature_view(
    entity=ORIGIN,
    source=DEPARTURES,
    inputs={
        "delay_1h": mean("delay_min", hours(1)),
        "delay_3h": mean("delay_min", hours(3)),
        "late_1h": rate("late", hours(1)),
        "seen_1h": count(hours(1)),
    },
    features=[
        minutes_feature("origin_delay_1h", hours(3)),
        minutes_feature("origin_delay_3h", hours(6)),
        rate_feature("origin_late_1h", hours(3)),
        Feature("origin_left_1h", "float32", 0.0, unit="flights", max_age_us=hours(3)),
    ],
)
def origin_departures(delay_1h: Array, delay_3h: Array, late_1h: Array, seen_1h: Array) -> Mapping[str, Array]:
    """How the airport is doing: what has left there in the last hours."""
    return {
        "origin_delay_1h": delay_1h,
        "origin_delay_3h": delay_3h,
        "origin_late_1h": drawn(late_1h, seen_1h),
        "origin_left_1h": seen_1h.astype(np.float32),
    }


@feature_view(
    entity=CARRIER_AT_ORIGIN,
    source=DEPARTURES,
    inputs={"delay_3h": mean("delay_min", hours(3)), "late_3h": rate("late", hours(3)), "seen_3h": count(hours(3))},
    features=[minutes_feature("carrier_origin_delay_3h", hours(6)), rate_feature("carrier_origin_late_3h", hours(6))],
)
def carrier_origin_departures(delay_3h: Array, late_3h: Array, seen_3h: Array) -> Mapping[str, Array]:
    """How the airline is doing at this airport."""
    return {"carrier_origin_delay_3h": delay_3h, "carrier_origin_late_3h": drawn(late_3h, seen_3h)}


@feature_view(
    entity=CARRIER,
    source=ARRIVALS,
    inputs={
        "delay_6h": mean("delay_min", hours(6)),
        "late_6h": rate("late", hours(6)),
        "seen_6h": count(hours(6)),
        "late_14d": rate("late", days(14)),
        "seen_14d": count(days(14)),
    },
    features=[
        minutes_feature("carrier_delay_6h", hours(12)),
        rate_feature("carrier_late_6h", hours(12)),
        rate_feature("carrier_late_14d", days(7)),
    ],
)
def carrier_arrivals(delay_6h: Array, late_6h: Array, seen_6h: Array, late_14d: Array, seen_14d: Array) -> Mapping[str, Array]:
    """How punctual the airline is, today and lately."""
    return {
        "carrier_delay_6h": delay_6h,
        "carrier_late_6h": drawn(late_6h, seen_6h),
        "carrier_late_14d": drawn(late_14d, seen_14d),
    }


@feature_view(
    entity=DESTINATION,
    source=ARRIVALS,
    inputs={"delay_6h": mean("delay_min", hours(6)), "late_6h": rate("late", hours(6)), "seen_6h": count(hours(6))},
    features=[minutes_feature("dest_delay_6h", hours(12)), rate_feature("dest_late_6h", hours(12))],
)
def destination_arrivals(delay_6h: Array, late_6h: Array, seen_6h: Array) -> Mapping[str, Array]:
    """How flights come in at the destination."""
    return {"dest_delay_6h": delay_6h, "dest_late_6h": drawn(late_6h, seen_6h)}


@feature_view(
    entity=ROUTE,
    source=ARRIVALS,
    inputs={"late_14d": rate("late", days(14)), "seen_14d": count(days(14)), "distance": last("distance")},
    features=[rate_feature("route_late_14d", days(14)), Feature("distance_miles", "int32", 872, unit="miles")],
)
def route_arrivals(late_14d: Array, seen_14d: Array, distance: Array) -> Mapping[str, Array]:
    """How punctual the route is lately, and how long."""
    return {"route_late_14d": drawn(late_14d, seen_14d), "distance_miles": distance.astype(np.int32)}


@feature_view(
    entity=ORIGIN_HOUR,
    source=ARRIVALS,
    inputs={"late_14d": rate("late", days(14)), "seen_14d": count(days(14))},
    features=[rate_feature("origin_hour_late_14d", days(7))],
)
def origin_hour_arrivals(late_14d: Array, seen_14d: Array) -> Mapping[str, Array]:
    """How punctual flights of this hour of the timetable are lately."""
    return {"origin_hour_late_14d": drawn(late_14d, seen_14d)}


@feature_view(
    entity=AIRCRAFT,
    source=ARRIVALS,
    inputs={"delay": last("delay_min"), "late_7d": rate("late", days(7)), "seen_7d": count(days(7))},
    features=[minutes_feature("aircraft_last_delay", hours(24)), rate_feature("aircraft_late_7d", days(7))],
)
def aircraft_arrivals(delay: Array, late_7d: Array, seen_7d: Array) -> Mapping[str, Array]:
    """How this aircraft came in lately."""
    return {"aircraft_last_delay": delay, "aircraft_late_7d": drawn(late_7d, seen_7d)}


@feature_view(
    entity=AIRCRAFT,
    source=REGISTRATIONS,
    inputs={"built": last("built"), "seats": last("seats")},
    features=[
        Feature("plane_age_years", "float32", MISSING, unit="years", null="keep"),
        Feature("plane_seats", "float32", MISSING, null="keep"),
    ],
)
def aircraft(built: Array, seats: Array) -> Mapping[str, Array]:
    """The aircraft itself."""
    return {"plane_age_years": REFERENCE_YEAR - built, "plane_seats": seats}


@feature_view(
    entity=ORIGIN,
    source=OBSERVATIONS,
    inputs={name: last(name) for name in _MEASURED},
    features=[
        Feature(name, "float32", MISSING, unit=unit, null="keep", max_age_us=hours(3)) for name, unit in _MEASURED.items()
    ],
)
def origin_weather(
    temp_f: Array,
    dewpoint_f: Array,
    humidity_pct: Array,
    wind_direction_deg: Array,
    wind_speed_mph: Array,
    precip_in: Array,
    pressure_mbar: Array,
    visibility_miles: Array,
) -> Mapping[str, Array]:
    """The last observation at the airport of departure that is complete."""
    return {
        "temp_f": temp_f,
        "dewpoint_f": dewpoint_f,
        "humidity_pct": humidity_pct,
        "wind_direction_deg": wind_direction_deg,
        "wind_speed_mph": wind_speed_mph,
        "precip_in": precip_in,
        "pressure_mbar": pressure_mbar,
        "visibility_miles": visibility_miles,
    }


def new_york_offset_s(instant_s: Array) -> Array:
    """Seconds that New York's clocks are ahead of UTC (negative), by the rule in force since 2007: summer time from the second
    Sunday of March to the first of November, 2 o'clock each.
    """
    year = instant_s.astype("datetime64[s]").astype("datetime64[Y]")
    march = _sunday(year.astype("datetime64[M]") + 2, 2) + (2 + 5) * _HOUR_S
    november = _sunday(year.astype("datetime64[M]") + 10, 1) + (2 + 4) * _HOUR_S
    return np.where((instant_s >= march) & (instant_s < november), -4 * _HOUR_S, -5 * _HOUR_S)


def _sunday(month: Array, number: int) -> Array:
    """The first second, in UTC, of the month's so-manieth Sunday."""
    first = month.astype("datetime64[D]").astype(np.int64)  # 1970-01-01 was a Thursday
    return (first + (3 - first) % 7 + 7 * (number - 1)) * 24 * _HOUR_S


@feature_view(
    inputs={"scheduled_us": "int64"},
    features=[
        Feature("day_of_week", "int32", 1, unit="1 is Monday"),
        Feature("departure_minute", "int32", 0, unit="min after midnight in New York"),
    ],
)
def timetable(scheduled_us: Array) -> Mapping[str, Array]:
    """When the flight is scheduled to leave, as people say it."""
    utc_s = scheduled_us // 1_000_000
    local_s = utc_s + new_york_offset_s(utc_s)
    return {
        "day_of_week": ((local_s // (24 * _HOUR_S) + 3) % 7 + 1).astype(np.int32),
        "departure_minute": (local_s // 60 % (24 * 60)).astype(np.int32),
    }


VIEWS = (
    origin_departures,
    carrier_origin_departures,
    carrier_arrivals,
    destination_arrivals,
    route_arrivals,
    origin_hour_arrivals,
    aircraft_arrivals,
    aircraft,
    origin_weather,
    timetable,
)
"""Everything that the model reads, in the order of its features."""
