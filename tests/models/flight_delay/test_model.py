import numpy as np
import torch

from models.flight_delay.data import Flights
from models.flight_delay.inputs import CATEGORIES, SCHEDULE
from models.flight_delay.model import DelayModel, encode, fit, stack_values


def network(flights: Flights) -> DelayModel:
    torch.manual_seed(0)
    model = DelayModel(fit(flights), embedding=(2, 2, 2), hidden=(8,), dropout=0.5)
    model.eval()
    return model


def test_fit_uses_the_rows_given_and_no_others(flights: Flights) -> None:
    january = flights.months(1)
    fitted = fit(january)
    assert set(fitted.vocabularies["dest"]) == set(january.inputs["dest"].tolist())
    assert sorted(fitted.vocabularies["origin"].items()) == [(b"EWR", 1), (b"JFK", 2), (b"LGA", 3)]
    temperature = january.inputs["temp_f"].astype(np.float64)
    assert fitted.fill[SCHEDULE.values.index("temp_f")] == np.float32(np.nanmedian(temperature))
    assert fitted.low[SCHEDULE.values.index("temp_f")] >= np.nanmin(temperature)


def test_fit_survives_a_value_that_never_changes(flights: Flights) -> None:
    one = flights.take(np.zeros(5, dtype=np.int64))
    assert np.isfinite(fit(one).scale).all()
    assert (fit(one).scale > 0).all()


def test_what_the_vocabulary_lacks_gets_the_code_for_unknown(flights: Flights) -> None:
    fitted = fit(flights.months(1))
    codes = encode(flights.months(7), fitted)
    unseen = np.array([dest not in fitted.vocabularies["dest"] for dest in flights.months(7).inputs["dest"]])
    assert unseen.any()
    assert np.array_equal(codes[:, CATEGORIES.index("dest")] == 0, unseen)


def test_forward_takes_the_inputs_in_their_order(flights: Flights) -> None:
    few = flights.take(np.arange(6))
    model = network(flights.months(1))
    codes, values = torch.tensor(encode(few, fit(flights.months(1)))), torch.tensor(stack_values(few, SCHEDULE))
    columns = [codes[:, index : index + 1] for index in range(len(CATEGORIES))]
    columns += [torch.tensor(few.inputs[spec.name]).unsqueeze(1) for spec in SCHEDULE.specs[len(CATEGORIES) :]]
    with torch.inference_mode():
        answer, expected = model(*columns), torch.sigmoid(model.logit(codes, values))
    assert answer.shape == (6, 1)
    assert torch.equal(answer, expected)
    assert len(answer.unique()) > 1


def test_values_are_clipped_to_the_training_range(flights: Flights) -> None:
    few = flights.take(np.arange(2))
    model, codes = network(flights.months(1)), torch.tensor(encode(few, fit(flights.months(1))))
    storm, hurricane = torch.tensor(stack_values(few, SCHEDULE)), torch.tensor(stack_values(few, SCHEDULE))
    storm[:, SCHEDULE.values.index("wind_speed_mph")] = 500.0
    hurricane[:, SCHEDULE.values.index("wind_speed_mph")] = 1048.36
    with torch.inference_mode():
        assert torch.equal(model.logit(codes, storm), model.logit(codes, hurricane))
        assert not torch.equal(model.logit(codes, storm), model.logit(codes, torch.tensor(stack_values(few, SCHEDULE))))
