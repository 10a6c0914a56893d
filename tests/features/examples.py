"""Definitions, models, settings and stores that the tests of this room share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from feature_client.aggregation import count, last, mean
from feature_client.feature_set import FeatureSet
from feature_client.schema import Array, Columns, Entity, EventLog, Feature, hours
from feature_client.view import View, feature_view
from server.core.feature_settings import ModelFeatures
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.features.binding import Binding, bind

FLIGHTS = EventLog(
    "flights",
    {"event_us": "int64", "carrier": "bytes", "airport": "int64", "delay": "float64"},
)
CARRIER = Entity("carrier", {"carrier": "bytes"})
AIRPORT = Entity("airport", {"airport": "int64"})


@feature_view(
    entity=CARRIER,
    source=FLIGHTS,
    inputs={"mean_delay": mean("delay", hours(6)), "flights": count(hours(6))},
    features=[Feature("carrier_delay", "float32", -1.0), Feature("carrier_flights", "int64", 0)],
    max_age_us=hours(24),
)
def carrier_delays(mean_delay: Array, flights: Array) -> dict[str, Array]:
    return {"carrier_delay": mean_delay, "carrier_flights": flights}


@feature_view(
    entity=AIRPORT,
    source=FLIGHTS,
    inputs={"mean_delay": mean("delay", hours(6)), "latest": last("delay")},
    features=[Feature("airport_delay", "float32", -2.0), Feature("recent", "float32", 0.0, (2,))],
    on_missing="fail",
)
def airport_delays(mean_delay: Array, latest: Array) -> dict[str, Array]:
    return {"airport_delay": mean_delay, "recent": np.stack([latest, mean_delay], axis=1)}


@feature_view(
    inputs={"day": "int32", "airport_delay": "float32"},
    features=[Feature("weekend", "bool", False), Feature("delay_by_day", "float32", 0.0)],
)
def calendar(day: Array, airport_delay: Array) -> dict[str, Array]:
    if (day < 0).any():
        raise ValueError("a day before the first")
    return {"weekend": day >= 5, "delay_by_day": airport_delay * day.astype(np.float32)}


def _learn(carrier_delay: Array) -> dict[str, Array]:
    return {"mean": np.array([carrier_delay.mean()])}


@feature_view(inputs={"carrier_delay": "float32"}, features=[Feature("delay_scaled", "float32", 0.0)], fit=_learn)
def scaled(carrier_delay: Array, state: Columns) -> dict[str, Array]:
    return {"delay_scaled": carrier_delay - state["mean"][0].astype(np.float32)}


VIEWS: tuple[View, ...] = (carrier_delays, airport_delays, calendar, scaled)
STATES: Mapping[str, Columns] = {"scaled@1": {"mean": np.array([4.0])}}
PACKED: dict[str, Any] = {"name": "packed", "columns": ["airport_delay", "delay_by_day", "delay_scaled"]}

Spec = tuple[str, tuple[int, ...]]
INPUTS: dict[str, Spec] = {
    "carrier_flights": ("INT64", (1,)),
    "recent": ("FP32", (-1,)),
    "weekend": ("BOOL", ()),
    "packed": ("FP32", (3,)),
    "day": ("INT32", (1,)),
    "free": ("FP32", (2,)),
}


def features(*views: View) -> FeatureSet:
    return FeatureSet(views or VIEWS, STATES)


def settings(*packed: dict[str, Any], views: FeatureSet | None = None, **values: Any) -> ModelFeatures:
    """`[features]` of a model; `keys` by view is given as `keys={"view@1": {...}}`."""
    keys = values.pop("keys", {})
    refs = [view.ref for view in (views or features()).views]
    return ModelFeatures.model_validate(
        {"views": [{"view": ref, "keys": keys.get(ref, {})} for ref in refs], "inputs": packed or [PACKED], **values}
    )


def model(inputs: Mapping[str, Spec] | None = None, max_batch: int = 8, outputs: tuple[str, ...] = ("y",)) -> Signature:
    made = tuple(TensorSpec(name, *spec) for name, spec in (INPUTS if inputs is None else inputs).items())
    return Signature("m", made, tuple(TensorSpec(name, "FP32", (1,)) for name in outputs), max_batch)


def bound(chosen: FeatureSet, given: ModelFeatures, own: Signature, *not_read: str) -> Binding:
    """With a model that was trained to take every feature but these."""
    return bind(chosen, given, own, set(chosen.features) - set(not_read))


def texts(*values: bytes) -> Array:
    """BYTES. Shapes: `[N, 1]`."""
    made = np.empty((len(values), 1), dtype=object)
    made[:, 0] = values
    return made


def column(dtype: Any, *values: Any) -> Array:
    """Shapes: `[N, 1]`."""
    return np.array(values, dtype=dtype)[:, None]
