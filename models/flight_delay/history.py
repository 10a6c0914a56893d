"""Flights with what was known of them at the instant they were scheduled to leave: the rows of the variant `HISTORY`.

Made by the point-in-time builder from the event logs, by the functions that the server calls. The last observation of the
weather is another one than `data.load` joins where an hour has none: there the one before stands, up to three hours.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # ships no annotations
from numpy.typing import NDArray

from feature_client.feature_set import FeatureSet
from feature_client.point_in_time import training_set
from models.flight_delay import data
from models.flight_delay.data import Flights
from models.flight_delay.events import keys_of, load_events, microseconds
from models.flight_delay.features import VIEWS
from models.flight_delay.inputs import HISTORY
from server.core.tensors import Array


@dataclass(frozen=True)
class History:
    """Labelled flights with the inputs of `HISTORY`, and what a call brings instead of them.

    Shapes: `keys` `[rows]` each, `scheduled_us` int64 `[rows]`, rows as in `flights`.
    """

    flights: Flights
    keys: dict[str, Array]
    scheduled_us: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "History":
        """The chosen rows; arrays are copies."""
        keys: dict[str, Array] = {name: column[chosen] for name, column in self.keys.items()}
        return History(self.flights.take(chosen), keys, self.scheduled_us[chosen])


def load_history() -> History:
    """Every labelled flight of the year, in the package's order. Raises: ValueError as `data.load` does."""
    schedule = data.load()
    flights = pd.read_csv(data.folder() / "flights.csv.zip")
    labelled = flights[flights["arr_delay"].notna()]
    scheduled = pd.to_datetime(labelled["time_hour"], utc=True) + pd.to_timedelta(labelled["minute"], unit="min")
    scheduled_us, keys = microseconds(scheduled), keys_of(labelled)
    features = FeatureSet(VIEWS)
    made = training_set(features, load_events(), scheduled_us, keys, {"scheduled_us": scheduled_us})
    columns = {spec.name: made.values.get(spec.name, schedule.inputs.get(spec.name)) for spec in HISTORY.specs}
    return History(replace(schedule, inputs=data.to_inputs(columns, HISTORY)), keys, scheduled_us)
