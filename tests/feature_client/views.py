"""Example definitions that tests share: flights, as small as shows everything that a view can declare."""

from collections.abc import Mapping

import numpy as np

from feature_client.aggregation import count, last, mean, rate
from feature_client.schema import Array, Columns, Entity, EventLog, Feature, days, hours
from feature_client.view import View, feature_view

AIRCRAFT = Entity("aircraft", {"tail": "int64"})
ROUTE = Entity("route", {"origin": "bytes", "destination": "bytes"})

FLIGHTS = EventLog(
    "flights",
    {
        "tail": "int64",
        "origin": "bytes",
        "destination": "bytes",
        "event_us": "int64",
        "created_us": "int64",
        "flight_id": "int64",
        "delay_min": "float64",
        "is_late": "bool",
        "seats": "int64",
        "carrier": "bytes",
    },
    created_time="created_us",
    event_id="flight_id",
)
"""Delays are known later than they happen, some are told twice, some have no delay (NaN) or carrier (None)."""


@feature_view(
    entity=AIRCRAFT,
    source=FLIGHTS,
    version=2,
    inputs={
        "flights": count(days(1)),
        "delay": mean("delay_min", days(7)),
        "late": rate("is_late", days(7)),
        "latest": last("delay_min"),
        "seats": last("seats"),
        "carrier": last("carrier"),
    },
    features=[
        Feature("tail_flights", "int32", 0, unit="flights"),
        Feature("tail_delay", "float32", 5.0, unit="min"),
        Feature("tail_late", "float64", 0.25, unit="ratio", max_age_us=days(3)),
        Feature("tail_latest", "float32", 0.0, unit="min", null="keep"),
        Feature("tail_pair", "float32", -1.0, shape=(2,), unit="min"),
        Feature("tail_carrier", "bytes", b"", null="keep"),
        Feature("tail_large", "bool", False),
    ],
    max_age_us=days(30),
)
def aircraft(flights: Array, delay: Array, late: Array, latest: Array, seats: Array, carrier: Array) -> Mapping[str, Array]:
    """Of one aircraft: every type and policy; `tail_pair` has two numbers, `tail_latest` and `tail_carrier` keep nulls."""
    return {
        "tail_flights": flights.astype(np.int32),
        "tail_delay": delay.astype(np.float32),
        "tail_late": late,
        "tail_latest": latest.astype(np.float32),
        "tail_pair": np.stack([latest, delay], axis=1).astype(np.float32),
        "tail_carrier": carrier,
        "tail_large": seats > 200,
    }


@feature_view(
    entity=ROUTE,
    source=FLIGHTS,
    inputs={"flights": count(hours(6)), "delay": mean("delay_min", hours(6))},
    features=[Feature("route_flights", "int64", 0, unit="flights"), Feature("route_delay", "float64", 0.0, unit="min")],
    on_missing="fail",
    on_stale="fail",
    max_age_us=days(2),
)
def route(flights: Array, delay: Array) -> Mapping[str, Array]:
    """Of one route, two keys of bytes: a request for a route without a row is refused."""
    return {"route_flights": flights, "route_delay": delay}


@feature_view(
    inputs={"distance_mi": "float64", "speed_kn": "float64", "tail_delay": "float32"},
    features=[
        Feature("flight_min", "float32", 90.0, unit="min"),
        Feature("delay_ratio", "float32", 0.0, unit="ratio", null="keep"),
    ],
)
def planned(distance_mi: Array, speed_kn: Array, tail_delay: Array) -> Mapping[str, Array]:
    """Of the call's own values and a stored feature."""
    duration = distance_mi / (speed_kn * 1.15078) * 60
    return {"flight_min": duration, "delay_ratio": (tail_delay / duration).astype(np.float32)}


def learn(distance_mi: Array, tail_late: Array) -> Mapping[str, Array]:
    """What `standardised` needs, of a training set: means and deviations."""
    return {
        "distance": np.array([np.nanmean(distance_mi), np.nanstd(distance_mi) + 1e-9]),
        "late": np.array([np.nanmean(tail_late), np.nanstd(tail_late) + 1e-9]),
    }


@feature_view(
    inputs={"distance_mi": "float64", "tail_late": "float64"},
    features=[Feature("distance_z", "float32", 0.0), Feature("late_z", "float32", 0.0)],
    fit=learn,
)
def standardised(distance_mi: Array, tail_late: Array, state: Columns) -> Mapping[str, Array]:
    """Of state that was learnt."""
    return {
        "distance_z": (distance_mi - state["distance"][0]) / state["distance"][1],
        "late_z": (tail_late - state["late"][0]) / state["late"][1],
    }


STATE = {"distance": np.array([1000.0, 250.0]), "late": np.array([0.25, 0.125])}
STATES = {"standardised@1": STATE}
VIEWS: tuple[View, ...] = (aircraft, route, planned, standardised)


def bytes_column(*values: bytes | None) -> Array:
    """An array of objects."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def flights(count: int, seed: int = 0, tails: int = 5, span_us: int = days(20)) -> dict[str, Array]:
    """A log of flights in the order in which they happened, some known late, some told twice, some with nothing to tell."""
    rng = np.random.default_rng(seed)
    event_us = np.sort(rng.integers(0, span_us, count)) + 1_700_000_000_000_000
    airports = np.array([b"JFK", b"LGA", "ZRÜ".encode(), b"a|b:{c}"], dtype=object)
    carriers = np.array([b"UA", b"", None], dtype=object)
    delay = np.round(rng.normal(5, 20, count), 1)
    delay[rng.random(count) < 0.1] = np.nan
    ids = np.arange(count)
    again = np.flatnonzero(rng.random(count) < 0.1)
    ids[again] = ids[np.maximum(again - 1, 0)]
    return {
        "tail": rng.integers(0, tails, count) - 1,
        "origin": airports[rng.integers(0, 4, count)],
        "destination": airports[rng.integers(0, 4, count)],
        "event_us": event_us,
        "created_us": event_us + rng.choice([0, 0, hours(1), days(1)], count),
        "flight_id": ids,
        "delay_min": delay,
        "is_late": np.nan_to_num(delay) > 15,
        "seats": rng.integers(50, 400, count),
        "carrier": carriers[rng.integers(0, 3, count)],
    }
