"""Rows of numbers as a version answered them, for tests of its monitors."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import with_digest
from server.monitoring.build import build
from server.monitoring.samples import Samples

KEY = VersionKey("fraud", 3)
HOUR_US = 3_600_000_000
T0_US = 10**15 - 10**15 % HOUR_US
"""When the first window begins."""


def settings(**monitoring: object) -> ModelSettings:
    """Of a model with these settings of its monitors, hourly windows without them."""
    return ModelSettings.model_validate({"monitoring": monitoring})


def answered(
    time_us: NDArray[np.int64] | Sequence[int],
    inputs: Mapping[str, Array],
    *,
    key: VersionKey = KEY,
    arm: str = "champion",
) -> Samples:
    """Rows of these times."""
    count = len(time_us)
    return Samples(
        key=key,
        arm=arm,
        epoch=0,
        weight=1.0,
        time_us=np.asarray(time_us, dtype=np.int64),
        id_hash=np.arange(count, dtype=np.uint64),
        row=np.zeros(count, dtype=np.int32),
        inclusion=np.ones(count),
        queue_us=np.zeros(count, dtype=np.int64),
        execute_us=np.zeros(count, dtype=np.int64),
        inputs=inputs,
        callers={},
        outputs={},
        features=(),
        statuses=np.zeros((count, 0), dtype=np.uint8),
    )


def normal_rows(time_us: int, count: int, columns: int, seed: int, *, shift: float = 0.0) -> Samples:
    """Normal columns, all at one instant, the first of them shifted."""
    values = np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)
    values[:, 0] += shift
    return answered(np.full(count, time_us), {"x": values})


def normal_baseline(rows: int, columns: int, seed: int = 1) -> Baseline:
    """What `normal_rows` without a shift are like."""
    return with_digest(build(normal_rows(T0_US, rows, columns, seed), settings(), timed=False))
