"""Arrays of a batch to columns of features, and back."""

import numpy as np
import pytest

from feature_client.errors import EntityError
from feature_client.keys import row_keys
from server.features.columns import given, key_columns, keys_of, model_inputs, scalars
from tests.features.examples import bound, carrier_delays, column, features, model, settings, texts

BINDING = bound(features(), settings(), model())


def test_columns_are_the_real_rows() -> None:
    batch = column(np.int32, 3, 4, 3)
    assert scalars(batch, 2).tolist() == [3, 4]
    assert scalars(batch[:, 0], 2).tolist() == [3, 4]
    recent = given({"recent": np.arange(6, dtype=np.float32).reshape(3, 2)}, BINDING.features.features["recent"], 2)
    assert recent.tolist() == [[0, 1], [2, 3]]


def test_keys_of_any_width_are_the_canonical_one() -> None:
    inputs = {"airport": column(np.uint8, 1, 255), "carrier": texts(b"AA", b"BB")}
    keys = key_columns(inputs, BINDING, {"airport": "int64", "carrier": "bytes"}, 2)
    assert keys["airport"].dtype == np.int64
    assert keys["airport"].tolist() == [1, 255]
    assert keys["carrier"].tolist() == [b"AA", b"BB"]


def test_a_key_that_cannot_be_one_does_not_fail_the_others() -> None:
    possible = row_keys("p", carrier_delays, {"carrier": texts(b"BB", b"AA")[:, 0]})
    assert keys_of("p", carrier_delays, {"carrier": texts(b"BB", b"AA")[:, 0]}) == (possible, [])
    wrong = {"carrier": texts(b"x" * 600, b"BB", b"x" * 600, b"AA")[:, 0]}
    assert keys_of("p", carrier_delays, wrong) == ([possible[0], possible[0], possible[0], possible[1]], [0, 2])
    assert keys_of("p", carrier_delays, {"carrier": texts(b"x" * 600)[:, 0]}) == ([], [0])
    with pytest.raises(EntityError):
        keys_of("p", carrier_delays, {"airport": np.array([1])})


def test_features_are_bound_in_the_shapes_of_the_model_and_padding_repeats_the_first_row() -> None:
    free = np.ones((4, 2), np.float32)
    inputs = {"day": column(np.int32, 1, 2, 3, 1), "free": free, "airport": column(np.int64, 1, 2, 3, 1)}
    values = {
        "carrier_flights": np.array([5, 6, 7]),
        "recent": np.arange(6, dtype=np.float32).reshape(3, 2),
        "weekend": np.array([True, False, False]),
        "airport_delay": np.array([1, 2, 3], np.float32),
        "delay_by_day": np.array([4, 5, 6], np.float32),
        "delay_scaled": np.array([7, 8, 9], np.float32),
    }
    made = model_inputs(inputs, BINDING, values, 3)
    assert set(made) == set(BINDING.model.input_names)
    assert made["free"] is free
    assert made["carrier_flights"].tolist() == [[5], [6], [7], [5]]
    assert made["recent"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert made["weekend"].tolist() == [True, False, False, True]
    assert made["packed"].tolist() == [[1, 4, 7], [2, 5, 8], [3, 6, 9], [1, 4, 7]]
    assert {name: made[name].dtype for name in made} == {
        "carrier_flights": np.int64,
        "recent": np.float32,
        "weekend": np.bool_,
        "packed": np.float32,
        "day": np.int32,
        "free": np.float32,
    }


def test_without_padding_features_are_passed_on() -> None:
    values = {"carrier_flights": np.array([5]), "recent": np.zeros((1, 2), np.float32), "weekend": np.array([True])}
    packed = np.zeros((1, 3), np.float32)
    made = model_inputs({"packed": packed}, BINDING, values, 1)
    assert np.shares_memory(made["carrier_flights"], values["carrier_flights"])
    assert made["packed"] is packed
    # what a model may go without, and no feature fills, stays away
    assert "free" not in made
