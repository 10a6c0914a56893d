"""Realised metrics against their definitions, their bounds against the truth, and the same whatever the pieces."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.core.monitoring_settings import QualitySettings
from server.monitoring.realised import ALPHA, CALIBRATION_EDGES, Realised, class_probabilities, realised
from server.statistics import scores as scoring

KINDS: dict[str, dict[str, Any]] = {
    "binary": {"threshold": 0.4},
    "multiclass": {},
    "regression": {},
}


def rows_of(kind: str, count: int, seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    if kind == "binary":
        scores = generator.beta(0.7, 2, size=(count, 1))
        return scores, (generator.random(count) < scores[:, 0] ** 1.3).astype(float)
    if kind == "multiclass":
        # label 3 is of no class that the model knows
        return generator.dirichlet([1.0, 0.5, 0.2], size=count), generator.integers(0, 4, count).astype(float)
    values = generator.normal(size=count)
    return (values + generator.standard_t(3, size=count))[:, None], values


def made(kind: str, scale: float = 2.0) -> Realised:
    chosen: Any = kind
    return realised(QualitySettings(kind=chosen, **KINDS[kind]), scale)


def values(known: Realised) -> dict[str, float]:
    return {name: metric.value for name, metric in known.metrics().items()}


def test_binary_metrics_are_what_they_are_defined_as() -> None:
    scores, labels = rows_of("binary", 3000, 1)
    known = made("binary")
    known.add(scores, labels)
    score = scores[:, 0]
    chance = np.where(labels == 1, score, 1 - score)
    bins = np.digitize(score, CALIBRATION_EDGES, right=True)
    gaps = [abs((labels - score)[bins == index].sum()) for index in range(10)]
    assert values(known) == {
        "accuracy": pytest.approx(np.mean((score >= 0.4) == (labels == 1)), rel=1e-12),
        "log_loss": pytest.approx(-np.log(np.clip(chance, 1e-6, 1 - 1e-6)).mean(), rel=1e-12),
        "brier": pytest.approx(np.mean((labels - score) ** 2), rel=1e-12),
        "calibration_error": pytest.approx(sum(gaps) / 3000, rel=1e-9),
        # pairs in one cell of the score count by half
        "auc": pytest.approx(pairs_auc(score, labels), abs=1e-4),
    }
    assert values(known)["calibration_error"] == pytest.approx(
        scoring.calibration_error(score, labels, CALIBRATION_EDGES), rel=1e-9
    )


def pairs_auc(score: Any, labels: Any) -> float:
    positive, negative = score[labels == 1][:, None], score[labels == 0][None, :]
    return float(np.mean(positive > negative) + np.mean(positive == negative) / 2)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1e-5, 0.001, 0.25, 0.5, 0.999, 1.0]), st.integers(0, 1)), min_size=1, max_size=40)
)
def test_an_auc_of_scores_that_are_apart_is_exact(rows: list[tuple[float, int]]) -> None:
    score, labels = np.array([each for each, _ in rows]), np.array([each for _, each in rows], float)
    known = made("binary")
    known.add(score[:, None], labels)
    if 0 < labels.sum() < len(rows):
        area = known.metrics()["auc"]
        assert area.value == pytest.approx(pairs_auc(score, labels), abs=1e-12)
        assert 0 <= area.low <= area.value <= area.high <= 1
    else:
        assert "auc" not in known.metrics()


def test_several_classes() -> None:
    scores, labels = rows_of("multiclass", 2000, 2)
    known = made("multiclass")
    known.add(scores, labels)
    losses = [
        -math.log(min(max(row[int(label)], 1e-6), 1 - 1e-6)) if label < 3 else -math.log(1e-6)
        for row, label in zip(scores, labels, strict=True)
    ]
    assert values(known) == {
        "accuracy": pytest.approx(np.mean(scores.argmax(axis=1) == labels), rel=1e-12),
        "log_loss": pytest.approx(np.mean(losses), rel=1e-12),
    }
    assert class_probabilities(np.array([[0.5, 0.5]] * 3), np.array([-1.0, 2.0, 1.0])).tolist() == [1e-6, 1e-6, 0.5]


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_estimates(scale: float) -> None:
    scores, labels = rows_of("regression", 2000, 3)
    known = made("regression", scale)
    known.add(scores, labels)
    error = scores[:, 0] - labels
    assert values(known) == {
        "mean_absolute_error": pytest.approx(np.abs(error).mean(), rel=1e-12),
        "root_mean_squared_error": pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-12),
    }
    for metric in known.metrics().values():
        assert (metric.high, metric.rows) == (math.inf, 2000)
        assert 0 <= metric.low <= metric.value
        assert (metric.low > 0) == bool(scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [1, 7, 500])
def test_neither_pieces_nor_a_restart_change_a_bit(kind: str, pieces: int) -> None:
    scores, labels = rows_of(kind, 500, 4)
    whole, parts = made(kind), made(kind)
    assert whole.metrics() == {}
    whole.add(scores, labels)
    for chosen in np.array_split(np.arange(500), pieces):
        parts.add(scores[chosen], labels[chosen])
        copy = made(kind)
        copy.restore(parts.arrays())
        assert copy.metrics() == parts.metrics()
        parts = copy
    if kind == "regression":
        # sums of what has no bound are plain ones
        assert values(parts) == pytest.approx(values(whole), rel=1e-12)
    else:
        assert parts.metrics() == whole.metrics()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_kept_of_another_kind_is_refused(kind: str) -> None:
    known = made(kind)
    for name in known.arrays():
        broken = known.arrays()
        del broken[name]
        with pytest.raises(KeyError):
            made(kind).restore(broken)
    with pytest.raises(ValueError, match="of others"):
        made(kind).restore({**known.arrays(), "means": np.zeros((9, 7))})
    if kind == "binary":
        for name in ("gaps", "cells"):
            with pytest.raises(ValueError, match="another kind"):
                made(kind).restore({**known.arrays(), name: np.zeros((2, 7))})


def test_bounds_hold_at_every_instant_at_once() -> None:
    """Of a score that is uniform and calibrated: accuracy 3/4, squared error 1/6, log loss 1/2, AUC 5/6, and no gap anywhere.

    Each bound may be wrong at any of the instants in 5 % of the runs; so many or more than allowed here is a matter of 1e-4.
    """
    truth = {"accuracy": 3 / 4, "brier": 1 / 6, "log_loss": 1 / 2, "auc": 5 / 6, "calibration_error": 0.0}
    runs, misses = 120, dict.fromkeys(truth, 0)
    generator = np.random.default_rng(5)
    for _ in range(runs):
        known = realised(QualitySettings(), 0.0)
        wrong = set()
        for count in (10, 10, 30, 50, 100, 200, 400):
            scores = generator.random((count, 1))
            known.add(scores, (generator.random(count) < scores[:, 0]).astype(float))
            for name, metric in known.metrics().items():
                assert metric.low <= metric.value <= metric.high
                if not metric.low <= truth[name] <= metric.high:
                    wrong.add(name)
        for name in wrong:
            misses[name] += 1
    allowed = stats.binom.isf(1e-4, runs, ALPHA)
    assert max(misses.values()) <= allowed
    # and they say something: 800 rows tell a fifth of the range
    assert known.metrics()["accuracy"].high - known.metrics()["accuracy"].low < 0.2
