"""Validation rows to a version's baseline, with how good its answers were."""

import numpy as np
import pytest

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.quality import RISK_ALPHA, losses_of
from server.monitoring.validation_rows import baseline_of, quality_of
from server.statistics.bounded_mean import BoundedMean

KEY = VersionKey("m", 1)
SCORED = ModelSettings.model_validate({"monitoring": {"tolerance": 1.0, "quality": {"output": "p"}}})
SCORES = np.linspace(0.01, 0.99, 50)[:, None]


def test_rows_with_times_outcomes_and_features() -> None:
    made = baseline_of(
        KEY,
        {"x": SCORES},
        {"p": SCORES},
        SCORED,
        time_us=np.zeros(50, dtype=np.int64),
        labels=(SCORES[:, 0] > 0.5).astype(np.float64),
        features=("x",),
        latency_us=(1.0, 2.0, 3.0),
    )
    assert [(stream.name, stream.origin) for stream in made.streams] == [("x", "feature"), ("output:p", "output")]
    assert sorted(made.hourly) == [72]
    assert made.quality is not None
    assert made.quality.metrics["auc"] == 1.0
    assert made.latency_us == (1.0, 2.0, 3.0)


def test_rows_without_any_of_them() -> None:
    made = baseline_of(KEY, {"x": SCORES, "ids": SCORES}, {"p": SCORES}, ModelSettings(), free={"ids"})
    assert [stream.name for stream in made.streams] == ["x", "output:p"]
    assert (made.hourly, made.quality, made.rows) == ({}, None, 50)


def test_the_bound_on_the_loss_does_not_depend_on_how_rows_are_sorted() -> None:
    """The better half first, as where losses have seasons: the bound for values one by one lies below their mean."""
    labels = np.repeat([1.0, 0.0], 2000)
    scores = np.full((4000, 1), 0.9)
    quality = SCORED.monitoring.quality
    assert quality is not None
    one_by_one = BoundedMean(RISK_ALPHA).add(losses_of(scores, labels, quality, 1.0))
    assert one_by_one.interval(RISK_ALPHA)[1] < 0.4 < one_by_one.mean
    made = quality_of({"p": scores}, labels, quality)
    assert made.loss_mean == pytest.approx((0.01 + 0.81) / 2)
    assert made.loss_mean < made.loss_upper < made.loss_mean + 0.05
    assert quality_of({"p": scores}, labels, quality) == made


def test_what_does_not_fit_is_said() -> None:
    labels = np.ones(50)
    with pytest.raises(ValueError, match=r"outcomes need \[monitoring\.quality\]"):
        baseline_of(KEY, {}, {"p": SCORES}, ModelSettings(), labels=labels)
    with pytest.raises(ValueError, match="1 of 50 rows have no binary score"):
        baseline_of(KEY, {}, {"p": np.where(SCORES > 0.98, 7.0, SCORES)}, SCORED, labels=labels)
    with pytest.raises(ValueError, match="a baseline needs rows"):
        baseline_of(KEY, {}, {}, ModelSettings())
