import numpy as np
import pytest

from models.flight_delay.data import Flights
from models.flight_delay.history import History
from models.flight_delay.inputs import SCHEDULE
from models.flight_delay.replay import by_keys, requests, split


def test_july_is_replayed_in_the_order_of_scheduled_departure() -> None:
    replayed = list(requests(7))
    assert len(replayed) == 28_293
    departs = np.concatenate([request.departs_s for request in replayed])
    assert (np.diff(departs) >= 0).all()
    # the first flight of July leaves at five in the morning, New York's summer time
    assert np.datetime64(int(departs[0]), "s") == np.datetime64("2013-07-01T09:00:00")
    assert round(float(np.mean([request.late[0] for request in replayed])), 3) == 0.315


def test_requests_hold_every_input_as_slices_of_the_same_columns(flights: Flights) -> None:
    first, second = list(split(flights.months(7), rows_per_request=20_000))
    assert list(first.inputs) == [spec.name for spec in SCHEDULE.specs]
    assert {array.shape for array in first.inputs.values()} == {(20_000, 1)}
    assert {array.shape for array in second.inputs.values()} == {(8_293, 1)}
    assert (first.late.shape, second.departs_s.shape) == ((20_000,), (8_293,))
    assert all(array.base is not None and array.base is second.inputs[name].base for name, array in first.inputs.items())


def test_rows_and_labels_stay_together(flights: Flights) -> None:
    month = flights.months(7)
    order = np.argsort(month.departs_s, kind="stable")
    for number, request in enumerate(split(month.take(np.arange(50)))):
        chosen = np.argsort(month.departs_s[:50], kind="stable")[number]
        assert request.late[0] == month.late[chosen]
        assert request.inputs["dest"][0, 0] == month.inputs["dest"][chosen]
    assert len(order) == month.rows


def test_by_keys_a_request_names_its_flight_and_its_instant(histories: History) -> None:
    july = histories.take(np.flatnonzero(histories.flights.month == 7)[:500])
    replayed = by_keys(july)
    assert len(replayed) == 500
    assert list(replayed[0].inputs) == [
        *("carrier", "origin", "dest", "tailnum", "departure_hour", "scheduled_us", "as_of_us"),
    ]
    instants = [int(request.inputs["as_of_us"][0, 0]) for request in replayed]
    assert instants == sorted(july.scheduled_us.tolist())
    assert all(request.departs_s[0] * 1_000_000 == request.inputs["scheduled_us"][0, 0] for request in replayed)
    assert {array.shape for array in replayed[0].inputs.values()} == {(1, 1)}


@pytest.mark.parametrize(("month", "rows", "text"), [(0, 1, "month"), (13, 1, "month"), (7, 0, "rows_per_request")])
def test_arguments_out_of_range_are_refused(month: int, rows: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        requests(month, rows)
