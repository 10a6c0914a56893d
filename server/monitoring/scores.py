"""The scores of sampled predictions: where a model's settings say that they are. **Pure.**"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.core.monitoring_settings import QualitySettings
from server.core.tensors import Array

_SLACK = 1e-5
"""By how much a probability may be off its range: float32 arithmetic, as of a softmax, is."""


def scores_of(
    outputs: Mapping[str, Array], rows: int, settings: QualitySettings
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The scores of N rows, and which of them are usable: numbers of the kind that `settings` says.

    Shapes: scores `[N, 1]`, of several classes `[N, K]`, K at least 1; usable `[N]`. What is not usable has score 0.
    """
    output = next(iter(outputs.values()), None) if not settings.output else outputs.get(settings.output)
    if output is None or output.dtype.kind not in "fiub" or not rows:
        return np.zeros((rows, 1)), np.zeros(rows, np.bool_)
    scores = output.reshape(rows, -1).astype(np.float64)
    if settings.kind != "multiclass":
        scores = scores[:, settings.column : settings.column + 1]
    if not scores.shape[1]:
        return np.zeros((rows, 1)), np.zeros(rows, np.bool_)
    right = np.isfinite(scores)
    if settings.kind != "regression":
        with np.errstate(invalid="ignore"):
            right &= (scores >= -_SLACK) & (scores <= 1 + _SLACK)
        scores = np.clip(scores, 0.0, 1.0)
    usable = np.all(right, axis=1)
    return np.where(usable[:, None], scores, 0.0), usable
