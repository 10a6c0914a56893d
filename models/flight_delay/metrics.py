"""How good predicted probabilities are, and two baselines that a model must beat. **Pure.**

Numbers without a yardstick mean little: `constant` is the training rows' own rate, `logistic` what carrier and hour of
departure already tell.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
_EDGE = 1e-7
_CALIBRATION_BINS = 10


def measure(late: Labels, probability: Floats) -> dict[str, float]:
    """Every measure of one set of predictions, rounded to six digits."""
    measures = {
        "auc": auc(late, probability),
        "log_loss": log_loss(late, probability),
        "brier": float(np.mean((probability - late) ** 2)),
        "calibration_error": calibration_error(late, probability),
        "mean_probability": float(probability.mean()),
        "late_ratio": float(late.mean()),
    }
    return {name: round(value, 6) for name, value in measures.items()}


def auc(late: Labels, probability: Floats) -> float:
    """Chance that a late flight is ranked above one that is not; equal probabilities count half. NaN for one class only.

    >>> auc(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    _, inverse, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(late.sum()), int((~late).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[late].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(late: Labels, probability: Floats) -> float:
    """Mean negative log likelihood, in nats.

    >>> round(log_loss(np.array([True, False]), np.array([0.5, 0.5])), 4)
    0.6931
    """
    clipped = np.clip(probability, _EDGE, 1 - _EDGE)
    return float(-np.mean(np.where(late, np.log(clipped), np.log1p(-clipped))))


def calibration_error(late: Labels, probability: Floats) -> float:
    """Expected calibration error: mean gap between probability and observed rate over ten equally wide bins, by rows.

    >>> round(calibration_error(np.array([True, False]), np.array([0.95, 0.15])), 4)
    0.1
    """
    bins = np.minimum((probability * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=probability - late, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(late))


def logistic(train: Mapping[str, NDArray[np.int64]], late: Labels, valid: Mapping[str, NDArray[np.int64]]) -> Floats:
    """Predictions of a logistic regression on one-hot codes, fitted by Newton's method.

    Shapes: `train` and `valid` hold one `[rows]` array of codes from 0 per variable. A small ridge keeps codes without
    training rows at zero.
    """
    sizes = {name: int(max(train[name].max(), valid[name].max())) + 1 for name in train}
    design = _one_hot(train, sizes)
    weights = np.zeros(design.shape[1])
    for _ in range(12):
        predicted = 1 / (1 + np.exp(-design @ weights))
        curvature = design.T @ (design * (predicted * (1 - predicted))[:, None]) + np.eye(len(weights))
        weights += np.linalg.solve(curvature, design.T @ (late - predicted) - weights)
    answer: Floats = 1 / (1 + np.exp(-_one_hot(valid, sizes) @ weights))
    return answer


def _one_hot(codes: Mapping[str, NDArray[np.int64]], sizes: Mapping[str, int]) -> Floats:
    columns = [np.eye(size)[codes[name]] for name, size in sizes.items()]
    return np.concatenate([np.ones((len(columns[0]), 1)), *columns], axis=1)
