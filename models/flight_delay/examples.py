"""Golden examples: few rows that reach every branch of the preprocessing. **Pure.**

A version that answers them as on the day it was built reads its inputs the same way. Real rows of June come first; the
others are the first of them with one thing changed, for what a caller may send and the data does not hold.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.flight_delay.data import Flights, to_inputs
from models.flight_delay.inputs import CATEGORIES, LATELY, MEASURES, SCHEDULE, WEATHER, Inputs
from server.core.tensors import Array

ROWS = 32
_MISSING_IN_JUNE = ("wind_direction_deg", "pressure_mbar", "plane_age_years", "plane_seats")
_INT32_MAX = 2**31 - 1
VARIANTS: tuple[Mapping[str, object], ...] = (
    {"carrier": b"ZZ"},
    {"origin": "Århus".encode()},
    {"dest": b""},
    dict.fromkeys(CATEGORIES, b"?"),
    dict.fromkeys(WEATHER.values(), float("nan")),
    dict.fromkeys((*MEASURES, *LATELY), float("nan")),
    dict.fromkeys((*MEASURES, *LATELY), float("inf")),
    dict.fromkeys((*MEASURES, *LATELY), float("-inf")),
    {"day_of_week": 0, "departure_minute": -1, "distance_miles": -_INT32_MAX},
    {"day_of_week": 8, "departure_minute": _INT32_MAX, "distance_miles": _INT32_MAX},
)


def choose(flights: Flights, inputs: Inputs = SCHEDULE) -> dict[str, Array]:
    """Inputs of the golden examples. Shapes: each `[ROWS, 1]`."""
    special = _special_rows(flights)
    plain = np.linspace(0, flights.rows - 1, ROWS - len(VARIANTS) - len(special)).astype(np.int64)
    real = flights.take(np.concatenate([plain, special])).inputs
    columns = {
        spec.name: [*real[spec.name], *(variant.get(spec.name, real[spec.name][0]) for variant in VARIANTS)]
        for spec in inputs.specs
    }
    return as_rows(to_inputs(columns, inputs))


def as_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Columns `[rows]` as the model takes them, `[rows, 1]`, without copying."""
    return {name: array[:, np.newaxis] for name, array in inputs.items()}


def _special_rows(flights: Flights) -> NDArray[np.int64]:
    """The first row that misses each measure that some June row misses, and one of each of the two rarest destinations."""
    first_missing = [np.flatnonzero(np.isnan(flights.inputs[name].astype(np.float32)))[:1] for name in _MISSING_IN_JUNE]
    _, first, counts = np.unique(flights.inputs["dest"].astype("S"), return_index=True, return_counts=True)
    return np.concatenate([*first_missing, first[np.argsort(counts, kind="stable")[:2]]])
