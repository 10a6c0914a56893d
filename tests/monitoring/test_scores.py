"""Where scores are, and which of them are no scores."""

from typing import Any

import numpy as np
import pytest

from server.core.monitoring_settings import QualitySettings
from server.monitoring.scores import scores_of

A, B = np.array([[0.1, 0.9], [0.2, 0.8]], np.float32), np.array([3, -4], np.int64)


@pytest.mark.parametrize(
    ("quality", "outputs", "expected"),
    [
        ({}, {"a": A, "b": B}, A[:, :1]),
        ({"column": 1}, {"a": A}, A[:, 1:]),
        ({"kind": "multiclass", "output": "a"}, {"b": B, "a": A}, A),
        ({"kind": "multiclass"}, {"a": A.reshape(2, 2, 1)}, A),
        ({"kind": "regression", "output": "b"}, {"a": A, "b": B}, B[:, None]),
        ({}, {"a": np.array([True, False])}, [[1.0], [0.0]]),
    ],
)
def test_scores_are_where_the_settings_say(quality: dict[str, Any], outputs: dict[str, Any], expected: Any) -> None:
    scores, usable = scores_of(outputs, 2, QualitySettings(**quality))
    assert scores.dtype == np.float64
    assert scores.tolist() == np.asarray(expected, np.float64).tolist()
    assert usable.tolist() == [True, True]


@pytest.mark.parametrize(
    ("quality", "outputs"),
    [
        ({}, {}),
        ({"output": "c"}, {"a": A}),
        ({"column": 2}, {"a": A}),
        ({}, {"a": np.array([b"x", b"y"], object)}),
        ({}, {"a": np.zeros((2, 0), np.float32)}),
        ({}, {"a": np.array([1.001, -0.001])}),
        ({}, {"a": np.array([np.nan, np.inf])}),
        ({"kind": "multiclass"}, {"a": np.array([[0.5, np.nan], [2.0, 0.0]])}),
        ({"kind": "regression"}, {"a": np.array([np.nan, -np.inf])}),
    ],
)
def test_what_is_no_score_is_not_usable(quality: dict[str, Any], outputs: dict[str, Any]) -> None:
    scores, usable = scores_of(outputs, 2, QualitySettings(**quality))
    assert usable.tolist() == [False, False]
    assert not scores.any()
    assert scores.shape[0] == 2


def test_rounding_does_not_make_a_probability_another_thing() -> None:
    scores, usable = scores_of({"a": np.array([1.000001, -0.000001], np.float32)}, 2, QualitySettings())
    assert (scores.tolist(), usable.tolist()) == ([[1.0], [0.0]], [True, True])
    scores, _ = scores_of({"a": np.array([1.000001, -7.0])}, 2, QualitySettings(kind="regression"))
    assert scores.tolist() == [[1.000001], [-7.0]]
