"""Realised metrics: what outcomes say of scores, with bounds that hold at every instant at once. **Pure.**

Floor 4. One accumulator of constant size for each kind of model. Its metrics are of the rows that were given, each with the
same weight, whatever the probability with which it was sampled: within one version, arm and window that hardly changes, and a
weighted mean has no such bounds. Where the rate has changed, the figures since the version is served are of the sampled rows,
and not of the traffic: times of a higher rate have more of a say.

Bounds are confidence sequences at 95 % each, of the mean of what was expected of the rows, in the order in which they came.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.core.monitoring_settings import QualitySettings
from server.monitoring.verdict import Metric
from server.statistics import scores as scoring
from server.statistics.bounded_mean import BoundedMean
from server.statistics.pairing import Pairing

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[np.generic]]

ALPHA = 0.05
CALIBRATION_EDGES = np.arange(1, 10) / 10
"""The ten bins of equal width that calibration errors are of."""

_CELLS = 4096
_FARTHEST = 14.0
"""Logits of scores are counted in so many cells, up to so far from 0: an AUC is exact but for pairs in one cell, which is
narrower than 0.002 in the score. Scores that are less than 1e-6 from 0 or 1 are alike."""


class Realised(ABC):
    """What every kind has: named means of values in [0, 1]. Ownership: one thread at a time."""

    names: tuple[str, ...] = ()
    alpha = ALPHA

    def __init__(self) -> None:
        self.rows = 0
        self._means = {name: BoundedMean(self.alpha) for name in self.names}

    def add(self, scores: Floats, labels: Floats) -> None:
        """With further rows. Shapes: `scores` `[N, K]`, `labels` `[N]`."""
        self.rows += len(labels)

    def metrics(self) -> dict[str, Metric]:
        """By name, those that the rows have; none without rows."""
        return self._metrics() if self.rows else {}

    @abstractmethod
    def _metrics(self) -> dict[str, Metric]:
        """Of one row or more."""
        ...

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that it knows."""
        means = np.array([self._means[name].document() for name in self.names])
        return {"rows": np.array(self.rows, np.int64), "means": means}

    def restore(self, arrays: Arrays) -> None:
        """Know what `arrays` gave. Raises: KeyError, ValueError."""
        means = np.asarray(arrays["means"], np.float64)
        if len(means) != len(self.names):
            raise ValueError("what was kept of metrics is of others")
        self.rows = int(arrays["rows"])
        self._means = {name: BoundedMean.from_document(row) for name, row in zip(self.names, means.tolist(), strict=True)}

    def _count(self, name: str, values: Floats) -> None:
        self._means[name] = self._means[name].add(values)

    def _metric(self, name: str, unit: float = 1.0) -> Metric:
        known = self._means[name]
        low, high = known.interval(self.alpha)
        return Metric(known.mean * unit, low * unit, high * unit, known.rows)


class Binary(Realised):
    """Of the probability of the positive class: `auc`, `log_loss`, `brier`, `accuracy`, `calibration_error`.

    The bounds of the AUC are from pairs of one positive and one negative each, in the order of arrival; its value is of all
    pairs.
    """

    names = ("accuracy", "log_loss", "brier", "auc")

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold
        self._pairing = Pairing()
        self._cells = np.zeros((2, _CELLS), np.int64)
        bins = len(CALIBRATION_EDGES) + 1
        self._gap_alpha = self.alpha / bins
        self._gaps = [BoundedMean(self._gap_alpha)] * bins

    def add(self, scores: Floats, labels: Floats) -> None:
        """See `Realised`. Labels are 0 and 1."""
        super().add(scores, labels)
        score = scores[:, 0]
        self._count("accuracy", 1 - scoring.errors(score, labels, self._threshold))
        self._count("log_loss", scoring.bounded_log_losses(score, labels))
        self._count("brier", scoring.binary_losses(score, labels))
        self._pairing, pairs = self._pairing.add(score, labels)
        self._count("auc", pairs)
        for label in (0, 1):
            self._cells[label] += np.bincount(_cells_of(score[labels == label]), minlength=_CELLS)
        place = np.searchsorted(CALIBRATION_EDGES, score)
        gap = (1 + labels - score) / 2
        self._gaps = [mean.add(np.where(place == index, gap, 0.5)) for index, mean in enumerate(self._gaps)]

    def _metrics(self) -> dict[str, Metric]:
        found = {name: self._metric(name) for name in ("accuracy", "brier")}
        found["log_loss"] = self._metric("log_loss", scoring.LOG_LOSS_MOST)
        found["calibration_error"] = self._calibration_error()
        area = self._auc()
        return found if area is None else {**found, "auc": area}

    def _auc(self) -> Metric | None:
        negative, positive = self._cells.astype(np.float64)
        area = scoring.weighted_auc(np.arange(_CELLS, dtype=np.float64), positive, negative)
        low, high = self._means["auc"].interval(self.alpha)
        return None if area is None else Metric(area, min(low, area), max(high, area), self.rows)

    def _calibration_error(self) -> Metric:
        """The sum over bins of |mean of (label - score), where the score is in that bin|, each within bounds of its own."""
        value = low = high = 0.0
        for mean in self._gaps:
            least, most = (2 * bound - 1 for bound in mean.interval(self._gap_alpha))
            value += abs(2 * mean.mean - 1)
            low += max(least, -most, 0.0)
            high += max(abs(least), abs(most))
        return Metric(value, min(low, value), min(max(high, value), 1.0), self.rows)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """See `Realised`."""
        waiting = np.array([self._pairing.label, *self._pairing.waiting], np.float64)
        gaps = np.array([mean.document() for mean in self._gaps])
        return {**super().arrays(), "waiting": waiting, "cells": self._cells.copy(), "gaps": gaps}

    def restore(self, arrays: Arrays) -> None:
        """See `Realised`."""
        super().restore(arrays)
        label, *waiting = np.asarray(arrays["waiting"], np.float64).tolist()
        gaps = np.asarray(arrays["gaps"], np.float64)
        cells = np.asarray(arrays["cells"], np.int64)
        if len(gaps) != len(self._gaps) or cells.shape != self._cells.shape:
            raise ValueError("what was kept of a calibration or an AUC is of another kind")
        self._pairing, self._cells = Pairing(int(label), tuple(waiting)), cells.copy()
        self._gaps = [BoundedMean.from_document(row) for row in gaps.tolist()]


class Multiclass(Realised):
    """Of one number per class: `accuracy` of the largest, `log_loss` of the numbers as probabilities.

    A label that is none of the K classes is one that the model cannot know: it is wrong, with probability 0.
    """

    names = ("accuracy", "log_loss")

    def add(self, scores: Floats, labels: Floats) -> None:
        """See `Realised`."""
        super().add(scores, labels)
        self._count("accuracy", 1 - scoring.multiclass_losses(scores, labels))
        losses = -np.log(class_probabilities(scores, labels)) / scoring.LOG_LOSS_MOST
        self._count("log_loss", np.minimum(losses, 1.0))

    def _metrics(self) -> dict[str, Metric]:
        return {"accuracy": self._metric("accuracy"), "log_loss": self._metric("log_loss", scoring.LOG_LOSS_MOST)}


class Regression(Realised):
    """Of estimates: `mean_absolute_error` and `root_mean_squared_error`.

    Errors have no bound, so that no upper bound of their mean can be known: `high` is infinite. `low` is of the errors capped
    at `scale`, which is below it; 0 where there is no scale (0), because the version has no baseline.
    """

    names = ("absolute", "squared")

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale
        self._sums = np.zeros(2)

    def add(self, scores: Floats, labels: Floats) -> None:
        """See `Realised`."""
        super().add(scores, labels)
        error = np.abs(scores[:, 0] - labels)
        self._sums += (error.sum(), np.square(error).sum())
        if self._scale:
            capped = scoring.regression_losses(scores[:, 0], labels, self._scale)
            self._count("absolute", capped)
            self._count("squared", np.square(capped))

    def _metrics(self) -> dict[str, Metric]:
        absolute, squared = (self._sums / self.rows).tolist()
        lows = [self._scale * self._means["absolute"].interval(self.alpha)[0]]
        lows.append(self._scale * math.sqrt(self._means["squared"].interval(self.alpha)[0]))
        return {
            "mean_absolute_error": Metric(absolute, min(lows[0], absolute), math.inf, self.rows),
            "root_mean_squared_error": Metric(math.sqrt(squared), min(lows[1], math.sqrt(squared)), math.inf, self.rows),
        }

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """See `Realised`."""
        return {**super().arrays(), "sums": self._sums.copy()}

    def restore(self, arrays: Arrays) -> None:
        """See `Realised`."""
        super().restore(arrays)
        self._sums = np.asarray(arrays["sums"], np.float64).reshape(2).copy()


def realised(settings: QualitySettings, scale: float) -> Realised:
    """What is known of a model of that kind, before any outcome. `scale`: of the errors of a regression, 0: not known."""
    if settings.kind == "binary":
        return Binary(settings.threshold)
    return Multiclass() if settings.kind == "multiclass" else Regression(scale)


def class_probabilities(scores: Floats, labels: Floats) -> Floats:
    """`[N]`: what `scores` `[N, K]` gave to the class that was true, clipped as all log losses are."""
    known = (labels >= 0) & (labels < scores.shape[1])
    code = np.where(known, labels, 0).astype(np.intp)
    chance = np.where(known, scores[np.arange(len(code)), code], 0.0)
    return np.clip(chance, scoring.LOG_LOSS_CLIP, 1 - scoring.LOG_LOSS_CLIP)


def _cells_of(scores: Floats) -> NDArray[np.intp]:
    with np.errstate(divide="ignore"):
        logits = np.log(scores) - np.log1p(-scores)
    place = (np.clip(logits, -_FARTHEST, _FARTHEST) + _FARTHEST) * ((_CELLS - 1) / (2 * _FARTHEST))
    cells: NDArray[np.intp] = np.rint(place).astype(np.intp)
    return cells
