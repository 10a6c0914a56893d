"""What happened, as a system at the airports would have logged it: departures, arrivals, weather, aircraft.

An event stands at the instant it happened and, where that differs, with the instant it became known: a delay is known when the
aircraft has left or come in, an observation of the weather once its hour is over. Training sets, the store and the replay are
all made from these logs, so no feature can know more than was known. Cancelled flights leave no trace here: nothing says when
it became known that they would not fly.

Instants of arrival are the scheduled ones in the destination's own time plus the delay. Checked on all 327,346 flights: from
gate to gate takes 5 to 235 minutes more than the time in the air.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # ships no annotations
from numpy.typing import NDArray

from models.flight_delay.data import LATE_MINUTES, folder
from models.flight_delay.features import ARRIVALS, DEPARTURES, OBSERVATIONS, REGISTRATIONS
from models.flight_delay.inputs import WEATHER
from server.core.tensors import Array

_MINUTE_US, _HOUR_US = 60_000_000, 3_600_000_000
_CARIBBEAN = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
"""Destinations that the package's list of airports lacks."""
_NEW_YEAR_US = 1_356_998_400 * 1_000_000
"""2013-01-01 in UTC: from when on registrations are known."""


def load_events() -> dict[str, dict[str, Array]]:
    """The events of 2013 by log, each in the order in which they became known.

    Raises: ValueError where a destination's time is not known.
    """
    flights = _with_instants(pd.read_csv(folder() / "flights.csv.zip"))
    left, landed = flights[flights["dep_delay"].notna()], flights[flights["arr_delay"].notna()]
    logs = {
        DEPARTURES.name: _flights(left, left["departs_us"], left["dep_delay"]),
        ARRIVALS.name: _flights(landed, landed["arrives_us"], landed["arr_delay"])
        | {"distance": landed["distance"].to_numpy(np.int64)},
        OBSERVATIONS.name: _observations(),
        REGISTRATIONS.name: _registrations(),
    }
    return {name: _in_order(columns) for name, columns in logs.items()}


def keys_of(flights: Any) -> dict[str, Array]:
    """What names a flight before it leaves. Shapes: `[rows]`; text as bytes, an aircraft that is not known as `b""`."""
    texts = {name: as_bytes(flights[name]) for name in ("carrier", "origin", "dest", "tailnum")}
    return {**texts, "departure_hour": flights["hour"].to_numpy(np.int64)}


def as_bytes(texts: Any) -> NDArray[np.object_]:
    """A column of text as UTF-8; missing is empty."""
    column = np.empty(len(texts), dtype=object)
    column[:] = [b"" if text != text else str(text).encode() for text in texts.tolist()]
    return column


def _with_instants(flights: Any) -> Any:
    """Adds when each flight left and came in, in microseconds since 1970."""
    airports = pd.read_csv(folder() / "airports.csv")
    zones = dict(zip(airports["faa"], airports["tzone"], strict=True)) | _CARIBBEAN
    scheduled = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
    block_min = pd.Series(0, index=flights.index)
    arrival = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    zone = flights["dest"].map(zones)
    if zone.isna().any():
        raise ValueError(f"the time is not known at {sorted(set(flights['dest'][zone.isna()]))}")
    for name, group in scheduled.groupby(zone):
        local = group.dt.tz_convert(name)
        block_min[group.index] = (arrival[group.index] - (local.dt.hour * 60 + local.dt.minute)) % 1440
    scheduled_us = microseconds(scheduled)
    return flights.assign(
        scheduled_us=scheduled_us,
        departs_us=scheduled_us + flights["dep_delay"] * _MINUTE_US,
        arrives_us=scheduled_us + (block_min + flights["arr_delay"]) * _MINUTE_US,
    )


def microseconds(moments: Any) -> NDArray[np.int64]:
    """A column of instants in microseconds since 1970."""
    return moments.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)  # type: ignore[no-any-return]  # pandas


def _flights(flights: Any, instant_us: Any, delay_min: Any) -> dict[str, Array]:
    delay = delay_min.to_numpy(np.float64)
    return {"event_us": instant_us.to_numpy(np.int64), **keys_of(flights), "delay_min": delay, "late": delay > LATE_MINUTES}


def _observations() -> dict[str, Array]:
    weather = pd.read_csv(folder() / "weather.csv").rename(columns=WEATHER)
    hour_us = microseconds(pd.to_datetime(weather["time_hour"], utc=True))
    measured: Mapping[str, Array] = {name: weather[name].to_numpy(np.float64) for name in WEATHER.values()}
    return {"event_us": hour_us, "known_us": hour_us + _HOUR_US, "origin": as_bytes(weather["origin"]), **measured}


def _registrations() -> dict[str, Array]:
    planes = pd.read_csv(folder() / "planes.csv")
    numbers = {"built": planes["year"].to_numpy(np.float64), "seats": planes["seats"].to_numpy(np.float64)}
    return {"event_us": np.full(len(planes), _NEW_YEAR_US), "tailnum": as_bytes(planes["tailnum"]), **numbers}


def _in_order(columns: dict[str, Array]) -> dict[str, Array]:
    order = np.argsort(np.maximum(columns["event_us"], columns.get("known_us", columns["event_us"])), kind="stable")
    return {name: np.ascontiguousarray(column[order]) for name, column in columns.items()}
