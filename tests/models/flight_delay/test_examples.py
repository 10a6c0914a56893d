import numpy as np

from models.flight_delay import examples
from models.flight_delay.data import Flights
from models.flight_delay.inputs import MEASURES, SCHEDULE


def test_examples_have_real_rows_and_every_variant(flights: Flights) -> None:
    chosen = examples.choose(flights.months(6))
    assert list(chosen) == [spec.name for spec in SCHEDULE.specs]
    assert {array.shape for array in chosen.values()} == {(examples.ROWS, 1)}
    assert b"ZZ" in chosen["carrier"]
    assert b"" in chosen["dest"]
    for name in MEASURES:
        values = chosen[name].astype(np.float32)
        assert np.isnan(values).any()
        assert np.isposinf(values).any()
        assert np.isneginf(values).any()
        assert np.isfinite(values).sum() > examples.ROWS / 2


def test_the_rarest_destinations_and_real_gaps_are_among_the_examples(flights: Flights) -> None:
    june = flights.months(6)
    real = {name: array[: -len(examples.VARIANTS), 0] for name, array in examples.choose(june).items()}
    names, counts = np.unique(june.inputs["dest"].astype("S"), return_counts=True)
    assert names[counts.argmin()] in real["dest"]
    for name in ("wind_direction_deg", "pressure_mbar", "plane_age_years", "plane_seats"):
        assert np.isnan(real[name].astype(np.float32)).any()


def test_as_rows_copies_nothing() -> None:
    column = np.arange(3, dtype=np.int32)
    rows = examples.as_rows({"day_of_week": column})["day_of_week"]
    assert rows.shape == (3, 1)
    assert np.shares_memory(rows, column)
