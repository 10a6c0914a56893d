"""A month of flights as the requests a client would have sent, in the order of scheduled departure.

With inputs or, for versions that find their features themselves, with what names a flight and when it is to leave.

What a request holds are slices of columns sorted once: making one costs no copy, so a client that replays tens of
thousands spends its time on sending. The labels ride along for judging; they are no part of what is sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.flight_delay.data import Flights, load
from models.flight_delay.examples import as_rows
from models.flight_delay.history import History
from server.core.tensors import Array


@dataclass(frozen=True, slots=True)
class Replayed:
    """One request. Shapes: each of `inputs` is `[rows, 1]`, by name; `late` and `departs_s` are `[rows]`.

    Units: `departs_s` in seconds since 1970. Ownership: slices shared with every other request of the replay; read only.
    """

    inputs: dict[str, Array]
    late: NDArray[np.bool_]
    departs_s: NDArray[np.int64]


def requests(month: int, rows_per_request: int = 1) -> Iterator[Replayed]:
    """The labelled flights of one month of 2013; the last request may hold fewer rows.

    Raises: ValueError for a month outside 1-12 or fewer than one row per request.
    """
    if not 1 <= month <= 12:
        raise ValueError(f"month must be within 1 and 12, got {month}")
    return split(load().months(month), rows_per_request)


def split(flights: Flights, rows_per_request: int = 1) -> Iterator[Replayed]:
    """Flights in the order of scheduled departure, flights of one minute in the order of the data."""
    if rows_per_request < 1:
        raise ValueError(f"rows_per_request must be at least 1, got {rows_per_request}")
    ordered = flights.take(np.argsort(flights.departs_s, kind="stable"))
    inputs = as_rows(ordered.inputs)
    starts = range(0, ordered.rows, rows_per_request)
    return (_slice(inputs, ordered, slice(start, start + rows_per_request)) for start in starts)


def by_keys(history: History) -> list[Replayed]:
    """One request for each flight, which brings its join keys and the instant that it asks for, in order of that instant."""
    order = np.argsort(history.scheduled_us, kind="stable")
    ordered = history.take(order)
    instants = {"scheduled_us": ordered.scheduled_us, "as_of_us": ordered.scheduled_us}
    inputs = as_rows({**ordered.keys, **instants})
    return [_slice(inputs, ordered.flights, slice(start, start + 1)) for start in range(ordered.flights.rows)]


def _slice(inputs: dict[str, Array], ordered: Flights, rows: slice) -> Replayed:
    return Replayed({name: array[rows] for name, array in inputs.items()}, ordered.late[rows], ordered.departs_s[rows])
