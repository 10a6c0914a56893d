"""Samples by hand."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.samples import Samples

HOUR_US = 3600 * 10**6


def rows_of(
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array] | None = None,
    *,
    time_us: NDArray[np.int64] | None = None,
    features: tuple[str, ...] = (),
    statuses: NDArray[np.uint8] | None = None,
    arm: str = "champion",
) -> Samples:
    """All rows of some tensors, as one version answered them at midnight of a Monday unless said otherwise."""
    tensors = {**inputs, **(outputs or {})}
    count = len(next(iter(tensors.values())))
    return Samples(
        key=VersionKey("m", 1),
        arm=arm,
        epoch=0,
        weight=1.0,
        time_us=np.full(count, 96 * HOUR_US, dtype=np.int64) if time_us is None else time_us,
        id_hash=np.arange(count, dtype=np.uint64),
        row=np.zeros(count, dtype=np.int32),
        inclusion=np.ones(count),
        queue_us=np.zeros(count, dtype=np.int64),
        execute_us=np.zeros(count, dtype=np.int64),
        inputs=inputs,
        callers={},
        outputs=outputs or {},
        features=features,
        statuses=np.zeros((count, len(features)), dtype=np.uint8) if statuses is None else statuses,
    )


def texts(*values: object) -> NDArray[np.object_]:
    """A column of BYTES."""
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made
