"""Scored predictions for tests of outcomes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from server.core.hashing import id_hash
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline, ReferenceQuality
from server.monitoring.outcomes import Outcomes
from server.monitoring.samples import Samples
from tests.monitoring.sampled import samples_of

KEY = VersionKey("m", 3)
SECOND = 1_000_000


class Now:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.us = 10**15

    def __call__(self) -> int:
        return self.us


def settings_of(window_s: float = 3600.0, target_rows: int = 10_000, **quality: Any) -> ModelMonitoring:
    return ModelMonitoring(window_s=window_s, target_rows=target_rows, quality=QualitySettings(**quality))


def baseline_of(quality: ReferenceQuality | None) -> Baseline:
    return Baseline((), np.zeros(0, np.int64), 0, quality=quality)


def scored(
    ids: Sequence[str],
    scores: Any,
    *,
    rows: Sequence[int] | None = None,
    time_us: Any = 0,
    key: VersionKey = KEY,
    arm: str = "champion",
) -> Samples:
    """Predictions with these ids and scores."""
    made = samples_of(len(ids), key=key, arm=arm)
    return replace(
        made,
        id_hash=np.array([id_hash(each) for each in ids], np.uint64),
        row=np.zeros(len(ids), np.int32) if rows is None else np.array(rows, np.int32),
        time_us=np.broadcast_to(np.asarray(time_us, np.int64), (len(ids),)),
        outputs={"score": np.asarray(scores)},
    )


def taking(now: Now, settings: ModelMonitoring, quality: ReferenceQuality | None = None) -> Outcomes:
    """Outcomes of one version."""
    outcomes = Outcomes(now)
    outcomes.serve(KEY, settings, None if quality is None else baseline_of(quality))
    return outcomes
