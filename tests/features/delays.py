"""Definitions as an operator installs them, in a file of their own."""

import numpy as np

from feature_client.aggregation import count, mean
from feature_client.schema import Array, Columns, Entity, EventLog, Feature, hours
from feature_client.view import feature_view

FLIGHTS = EventLog("flights", {"event_us": "int64", "carrier": "bytes", "delay": "float64"})


@feature_view(
    entity=Entity("carrier", {"carrier": "bytes"}),
    source=FLIGHTS,
    inputs={"mean_delay": mean("delay", hours(6)), "flights": count(hours(6))},
    features=[Feature("carrier_delay", "float32", -1.0), Feature("carrier_flights", "int64", 0)],
)
def carrier_delays(mean_delay: Array, flights: Array) -> dict[str, Array]:
    return {"carrier_delay": mean_delay, "carrier_flights": flights}


@feature_view(inputs={"day": "int64"}, features=[Feature("weekend", "float32", 0.0)])
def calendar(day: Array) -> dict[str, Array]:
    return {"weekend": (day >= 5).astype(np.float32)}


def _learn(carrier_delay: Array) -> dict[str, Array]:
    return {"mean": np.array([carrier_delay.mean()])}


@feature_view(inputs={"carrier_delay": "float32"}, features=[Feature("delay_scaled", "float32", 0.0)], fit=_learn)
def scaled(carrier_delay: Array, state: Columns) -> dict[str, Array]:
    return {"delay_scaled": carrier_delay - state["mean"][0].astype(np.float32)}
