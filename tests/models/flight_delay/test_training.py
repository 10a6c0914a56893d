import numpy as np
import pytest
import torch

from models.flight_delay.data import Flights
from models.flight_delay.metrics import log_loss
from models.flight_delay.model import fit
from models.flight_delay.training import Settings, predict, reproducible, train


def few(flights: Flights, month: int, rows: int) -> Flights:
    chosen = flights.months(month)
    return chosen.take(np.linspace(0, chosen.rows - 1, rows).astype(np.int64))


def test_reproducible_leaves_torch_as_it_was() -> None:
    def fails_inside() -> None:
        with reproducible(1):
            torch.rand(3)
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError

    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with pytest.raises(KeyError):
        fails_inside()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_does_not_depend_on_what_ran_before(flights: Flights) -> None:
    rows, valid = few(flights, 1, 1500), few(flights, 6, 500)
    fitted, settings = fit(rows), Settings(epochs=1)
    first = predict(train(rows, valid, fitted, settings).model, valid, fitted)
    torch.rand(17)
    second = predict(train(rows, valid, fitted, settings).model, valid, fitted)
    other_seed = predict(train(rows, valid, fitted, Settings(epochs=1, seed=14)).model, valid, fitted)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other_seed)


def test_the_best_epoch_is_kept_and_patience_ends_training(flights: Flights) -> None:
    rows, valid = few(flights, 1, 600), few(flights, 6, 600)
    fitted = fit(rows)
    # a rate this high overfits 600 rows within a few epochs
    trained = train(rows, valid, fitted, Settings(epochs=40, patience=2, batch_rows=64, learning_rate=3e-2, dropout=0.0))
    losses = trained.valid_log_loss
    assert len(losses) < 40
    assert len(losses) == trained.best_epoch + 1 + 2
    assert losses[trained.best_epoch] == min(losses)
    assert round(log_loss(valid.late, predict(trained.model, valid, fitted)), 6) == min(losses)
