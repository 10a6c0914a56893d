"""Answers of decoupled versions by their place."""

import numpy as np
import pytest

from server.telemetry.answers import ANSWERS_COUNTED, AnswerCosts


def ns(*values: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


def test_each_place_sums_what_came_there() -> None:
    costs = AnswerCosts()
    costs.add(ns(10, 1, 20, 2), "empty_response", 5)
    costs.add(ns(30, 3), "fail", 7)
    costs.add(ns(), "cancel", 9)
    assert costs.durations() == {
        0: {"compute_infer": (2, 40), "compute_output": (2, 4), "success": (2, 44), "cancel": (1, 9)},
        1: {"compute_infer": (1, 20), "compute_output": (1, 2), "success": (1, 22), "fail": (1, 7)},
        2: {"empty_response": (1, 5)},
    }


def test_there_are_only_so_many_places() -> None:
    costs = AnswerCosts()
    costs.add(ns(*[1] * 2 * ANSWERS_COUNTED), "empty_response", 5)
    assert sorted(costs.durations()) == list(range(ANSWERS_COUNTED))
    assert not any("empty_response" in fields for fields in costs.durations().values())


def test_an_unknown_end_is_a_bug() -> None:
    with pytest.raises(KeyError):
        AnswerCosts().add(ns(), "vanished", 1)
