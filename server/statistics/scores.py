"""Scores against outcomes: how good answers were, row by row and together. **Pure.**

Floor 1. Of all functions: **Shapes**: `scores` and `labels` `[N]`, of several classes `scores` `[N, C]` and `labels` `[N]`
codes; labels of a binary score are 0 and 1. **Raises** ValueError where shapes differ, or a score is not finite. A figure that
N rows do not have (the AUC of one class, the mean of no rows) is None. What is calibrated and estimated supposes that a score
still means what it meant when it was calibrated: it cannot see concept drift.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LOG_LOSS_CLIP = 1e-6
"""Probabilities are at least this far from 0 and 1 in a log loss, so that one row counts for at most LOG_LOSS_MOST nats."""
LOG_LOSS_MOST = -math.log(LOG_LOSS_CLIP)
Pairs = tuple[tuple[float, float], ...]
"""(score, probability), ascending in both; between them is interpolated."""
FOLDS = 3
GROUPS = 10
"""Deciles of the scores, by which calibrating is judged."""
VECTORISED_WHILE = 0.9


def floats(values: ArrayLike) -> Floats:
    """Numbers as float64, all of them finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a score or label is not finite")
    return array


def binary(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Scores and labels of two classes, checked."""
    first, second = floats(scores), floats(labels)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"one label for each score is needed, not {second.shape} for {first.shape}")
    if not np.isin(second, (0.0, 1.0)).all():
        raise ValueError("labels are 0 or 1")
    return first, second


def auc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The probability that a positive's score is above a negative's, ties by half. None where there is one class alone."""
    first, second = binary(scores, labels)
    return weighted_auc(first, second, 1 - second)


def weighted_auc(scores: Floats, positive: Floats, negative: Floats) -> float | None:
    """The AUC where each row is positive and negative with weights of its own; None where one of them has no weight."""
    if not (positive.sum() > 0 and negative.sum() > 0):
        return None
    _, place = np.unique(scores, return_inverse=True)
    above = np.bincount(place, weights=positive)
    below = np.bincount(place, weights=negative)
    before = np.cumsum(below) - below / 2
    return float(np.dot(above, before) / (above.sum() * below.sum()))


def mean(values: Floats) -> float | None:
    """None where there are none."""
    return float(values.mean()) if values.size else None


def log_losses(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """`[N]` of nats, of probabilities clipped by LOG_LOSS_CLIP; divided by LOG_LOSS_MOST they are in [0, 1]."""
    first, second = binary(scores, labels)
    right = np.where(second == 1, first, 1 - first)
    losses: Floats = -np.log(np.clip(right, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP))
    return losses


def bounded_log_losses(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """`log_losses` in units of LOG_LOSS_MOST: `[N]` in [0, 1]."""
    return np.minimum(log_losses(scores, labels) / LOG_LOSS_MOST, 1.0)


def log_loss(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The mean of `log_losses`."""
    return mean(log_losses(scores, labels))


def binary_losses(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """Squared errors of probabilities, `[N]` in [0, 1]: a score outside counts as 0 or 1."""
    first, second = binary(scores, labels)
    return (np.clip(first, 0.0, 1.0) - second) ** 2


def brier(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The mean of `binary_losses`."""
    return mean(binary_losses(scores, labels))


def errors(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> Floats:
    """1 where an answer was wrong, `[N]`: `[N]` say yes from `threshold` on, `[N, C]` the class with the largest."""
    first = floats(scores)
    if first.ndim == 2:
        codes = np.asarray(labels)
        if codes.shape != first.shape[:1] or first.shape[1] == 0:
            raise ValueError(f"one label for each row of scores is needed, not {codes.shape} for {first.shape}")
        return np.asarray(first.argmax(axis=1) != codes, dtype=np.float64)
    first, second = binary(first, labels)
    return np.asarray((first >= threshold) != (second == 1), dtype=np.float64)


def accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float = 0.5) -> float | None:
    """The share of right answers: 1 minus the mean of `errors`."""
    wrong = mean(errors(scores, labels, threshold))
    return None if wrong is None else 1 - wrong


def multiclass_losses(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """`errors` of several classes: scores need not be probabilities."""
    if np.ndim(scores) != 2:
        raise ValueError("scores of several classes are two-dimensional")
    return errors(scores, labels)


def regression_losses(estimates: ArrayLike, values: ArrayLike, scale: float) -> Floats:
    """Absolute errors in units of `scale`, capped at 1: `[N]` in [0, 1]."""
    first, second = floats(estimates), floats(values)
    if first.shape != second.shape or not scale > 0:
        raise ValueError(
            f"a value for each estimate and a positive scale are needed: {second.shape} for {first.shape}, {scale}"
        )
    return np.minimum(np.abs(first - second) / scale, 1.0)


def calibration_error(scores: ArrayLike, labels: ArrayLike, edges: ArrayLike) -> float | None:
    """The mean over rows of |mean score - share of positives| of the row's bin: the expected calibration error.

    Shapes: `edges` `[B - 1]`, ascending: bin i has scores > edges[i - 1] and <= edges[i], as frozen bins everywhere.
    """
    first, second = binary(scores, labels)
    return grouped_error(np.searchsorted(np.asarray(edges, dtype=np.float64), first), first, second)


def grouped_error(groups: NDArray[np.intp], scores: Floats, labels: Floats) -> float | None:
    """The sum over groups of |sum of scores - sum of labels|, per row."""
    if not scores.size:
        return None
    return float(np.abs(np.bincount(groups, weights=scores - labels)).sum() / scores.size)


def isotonic(scores: ArrayLike, labels: ArrayLike) -> Pairs:
    """The non-decreasing function of the score that is nearest to the labels in squares: least and largest score of each step.

    Equal scores count as one. Without rows there are no pairs. Raises: ValueError as `scores` says.
    """
    first, second = binary(scores, labels)
    if not first.size:
        return ()
    values, place, weight = np.unique(first, return_inverse=True, return_counts=True)
    positive = np.bincount(place, weights=second).astype(np.int64)
    starts, sums, weights = pooled(positive, weight.astype(np.int64))
    level = sums / weights
    ends = np.concatenate((starts[1:], [values.size])) - 1
    pairs = [
        pair for low, high, at in zip(values[starts], values[ends], level, strict=True) for pair in ((low, at), (high, at))
    ]
    return tuple(dict.fromkeys((float(score), float(at)) for score, at in pairs))


def pooled(
    sums: NDArray[np.int64], weights: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Adjacent violators pooled: where each step starts, its sum and its weight, all exact.

    Whole falling runs are pooled at once while that is worth a pass; what is left goes one by one, so it is never quadratic.
    """
    starts = np.arange(sums.size)
    while True:
        # what is not above its predecessor joins it: in whole numbers, a / b <= c / d is a d <= c b
        joins = sums[1:] * weights[:-1] <= sums[:-1] * weights[1:]
        heads = np.flatnonzero(np.concatenate(([True], ~joins)))
        before = starts.size
        if heads.size == before:
            return starts, sums, weights
        starts, sums, weights = starts[heads], np.add.reduceat(sums, heads), np.add.reduceat(weights, heads)
        if heads.size > VECTORISED_WHILE * before:
            return one_by_one(starts, sums, weights)


def one_by_one(
    starts: NDArray[np.intp], sums: NDArray[np.int64], weights: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """The same with a stack: linear, whatever the order."""
    stack: list[tuple[int, int, int]] = []
    for start, own, weight in zip(starts.tolist(), sums.tolist(), weights.tolist(), strict=True):
        while stack and own * stack[-1][2] <= stack[-1][1] * weight:
            start, more, heavier = stack.pop()
            own, weight = own + more, weight + heavier
        stack.append((start, own, weight))
    first, second, third = zip(*stack, strict=True)
    return np.array(first, dtype=np.intp), np.array(second, dtype=np.int64), np.array(third, dtype=np.int64)


def calibrated(pairs: Pairs, scores: ArrayLike) -> Floats:
    """Scores as probabilities: interpolated between pairs, beyond them the outermost; without pairs clipped to [0, 1]."""
    first = floats(scores)
    if not pairs:
        return np.clip(first, 0.0, 1.0)
    known, level = np.array(pairs).T
    return np.asarray(np.interp(first, known, level), dtype=np.float64)


def calibration(scores: ArrayLike, labels: ArrayLike) -> Pairs:
    """`isotonic`, if it helps rows that it has not seen: if the mean calibration error of three folds falls. Else ().

    Folds are stratified by label, rows taken in turn; errors are of the same rows, grouped by deciles of their scores.
    """
    first, second = binary(scores, labels)
    fold = np.empty(first.size, dtype=np.intp)
    for label in (0, 1):
        rows = np.flatnonzero(second == label)
        if rows.size < FOLDS:
            return ()
        fold[rows] = np.arange(rows.size) % FOLDS
    gain = 0.0
    for number in range(FOLDS):
        kept, held = fold != number, fold == number
        pairs = isotonic(first[kept], second[kept])
        own, truth = first[held], second[held]
        groups = np.searchsorted(np.quantile(own, np.arange(1, GROUPS) / GROUPS), own)
        raw, fitted = (grouped_error(groups, calibrated(chosen, own), truth) or 0.0 for chosen in ((), pairs))
        gain += raw - fitted
    return isotonic(first, second) if gain > 0 else ()


def estimated(pairs: Pairs, scores: ArrayLike, threshold: float = 0.5) -> Mapping[str, float]:
    """What the metrics of a binary score would be on average if its calibrated probabilities were true, by name.

    "accuracy", "log_loss", "brier", "auc"; none where there are no rows, and no AUC where all are of one class. The metrics are
    of the scores as they were served; only the outcomes are taken from calibration. Source: CBPE, as NannyML documents it.
    """
    first = floats(scores)
    if first.ndim != 1:
        raise ValueError(f"scores are one-dimensional, not {first.shape}")
    chance = calibrated(pairs, first)
    told = np.clip(first, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)
    square = np.clip(first, 0.0, 1.0)
    found = {
        "accuracy": mean(np.where(first >= threshold, chance, 1 - chance)),
        "log_loss": mean(-(chance * np.log(told) + (1 - chance) * np.log1p(-told))),
        "brier": mean(chance * (1 - square) ** 2 + (1 - chance) * square**2),
        "auc": weighted_auc(first, chance, 1 - chance),
    }
    return {name: value for name, value in found.items() if value is not None}
