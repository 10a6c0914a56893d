"""What the two variants of the model are given: names, types and order of their inputs. **Pure.**

`SCHEDULE` is what a caller can know from a timetable, the weather report and the list of aircraft; `HISTORY` adds what happened
lately, as features of the store.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from server.core.tensors import TensorSpec

Variant = Literal["schedule", "history"]

CATEGORIES = ("carrier", "origin", "dest")
COUNTS = ("day_of_week", "departure_minute", "distance_miles")
WEATHER = {
    "temp": "temp_f",
    "dewp": "dewpoint_f",
    "humid": "humidity_pct",
    "wind_dir": "wind_direction_deg",
    "wind_speed": "wind_speed_mph",
    "precip": "precip_in",
    "pressure": "pressure_mbar",
    "visib": "visibility_miles",
}
"""Columns of weather.csv, and the inputs they become. All at the origin, for the hour before the scheduled departure."""
PLANE = ("plane_age_years", "plane_seats")
MEASURES = (*WEATHER.values(), *PLANE)
LATELY = (
    "origin_delay_1h",
    "origin_delay_3h",
    "origin_late_1h",
    "origin_left_1h",
    "carrier_origin_delay_3h",
    "carrier_origin_late_3h",
    "carrier_delay_6h",
    "carrier_late_6h",
    "carrier_late_14d",
    "dest_delay_6h",
    "dest_late_6h",
    "route_late_14d",
    "origin_hour_late_14d",
    "aircraft_last_delay",
    "aircraft_late_7d",
)
"""Features of `features.VIEWS` that no caller could bring."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a variant, in the order in which the network takes them: categories, counts, measures.

    FP32 inputs may be NaN: not known. A category never seen is a category too: unknown.
    """

    specs: tuple[TensorSpec, ...]

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Texts."""
        return tuple(spec.name for spec in self.specs if spec.datatype == "BYTES")

    @cached_property
    def counts(self) -> tuple[str, ...]:
        """Numbers that are always known."""
        return tuple(spec.name for spec in self.specs if spec.datatype == "INT32")

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Numbers that may be missing."""
        return tuple(spec.name for spec in self.specs if spec.datatype == "FP32")

    @cached_property
    def values(self) -> tuple[str, ...]:
        """All numbers."""
        return (*self.counts, *self.measures)


def _specs(names: tuple[str, ...], datatype: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype, (1,)) for name in names)


SCHEDULE = Inputs((*_specs(CATEGORIES, "BYTES"), *_specs(COUNTS, "INT32"), *_specs(MEASURES, "FP32")))
HISTORY = Inputs((*SCHEDULE.specs, *_specs(LATELY, "FP32")))
VARIANTS: dict[Variant, Inputs] = {"schedule": SCHEDULE, "history": HISTORY}
