"""From validation rows and the answers to them to the baseline of a version. **Pure.**

Floor 4. What answered is not its business: rows come with what serving would have answered.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from server.core.monitoring_settings import QualitySettings
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.build import build
from server.monitoring.quality import reference_quality
from server.monitoring.samples import Samples
from server.monitoring.scores import scores_of


def baseline_of(
    key: VersionKey,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    settings: ModelSettings,
    *,
    time_us: NDArray[np.int64] | None = None,
    labels: NDArray[np.float64] | None = None,
    features: tuple[str, ...] = (),
    latency_us: tuple[float, float, float] = (0.0, 0.0, 0.0),
    free: Collection[str] = (),
) -> Baseline:
    """The baseline of N rows, all of which have everything.

    Shapes: `inputs`, `outputs` `[N, ...]`; `time_us`, when rows happened, and `labels`, their outcomes, `[N]`. `features`: the
    names of inputs that are features. `free`: see `build`.
    Raises: ValueError where there is nothing to monitor, or outcomes do not fit the settings.
    """
    arrays = [*inputs.values(), *outputs.values()]
    rows = len(arrays[0]) if arrays else 0
    quality = None if labels is None else quality_of(outputs, labels, settings.monitoring.quality)
    samples = Samples(
        key=key,
        arm="",
        epoch=0,
        weight=1.0,
        time_us=np.zeros(rows, dtype=np.int64) if time_us is None else time_us,
        id_hash=np.zeros(rows, dtype=np.uint64),
        row=np.arange(rows, dtype=np.int32),
        inclusion=np.ones(rows),
        queue_us=np.zeros(rows, dtype=np.int64),
        execute_us=np.zeros(rows, dtype=np.int64),
        inputs=inputs,
        callers={},
        outputs=outputs,
        features=features,
        statuses=np.zeros((rows, len(features)), dtype=np.uint8),
    )
    return build(samples, settings, quality=quality, latency_us=latency_us, timed=time_us is not None, free=free)


def quality_of(outputs: Mapping[str, Array], labels: NDArray[np.float64], settings: QualitySettings | None) -> ReferenceQuality:
    """How good answers are that have outcomes. Raises: ValueError where they cannot be compared."""
    if settings is None:
        raise ValueError("outcomes need [monitoring.quality] in model.toml, which says what they are compared with")
    scores, usable = scores_of(outputs, len(labels), settings)
    if not usable.all():
        unusable = int((~usable).sum())
        raise ValueError(f"{unusable} of {len(labels)} rows have no {settings.kind} score where [monitoring.quality] says")
    return reference_quality(scores, labels, settings)
