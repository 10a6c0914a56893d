"""The quality of one version in one arm by its outcomes, and whether it has come to harm. **Pure.**

Floor 4. Risk is the mean of a bounded loss (of a binary score the squared error, of several classes the error, of a regression
the absolute error in units of `loss_scale`, capped at 1) against what it was on the baseline's rows. Better or merely different
never alarms, and what alarms is outcomes: it is the one alarm of monitoring that may page.

The detector counts windows, by the mean loss of each: while that is expected to be at most `loss_upper + risk_tolerance`, it
takes at least `alarm_every_windows` windows on average until it alarms. Rows would alarm sooner, and are not independent: a
bad day of a model that is no worse than it was is thousands of them. A window with fewer labelled rows than `min_rows` is
counted with the next one.

Source: Podkopaev and Ramdas, "Tracking the risk of a deployed model" (arXiv 2110.06177), for what is asked; the arithmetic is
`server.statistics.bounded_mean`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from server.core.clock import US_PER_S
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.monitoring.baseline import ReferenceQuality
from server.monitoring.pending import Settled
from server.monitoring.realised import CALIBRATION_EDGES, class_probabilities, realised
from server.monitoring.verdict import Metric, QualityReading, RiskReading
from server.statistics import scores as scoring
from server.statistics.bounded_mean import BoundedMean, HarmDetector

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[np.generic]]

RISK_ALPHA = 0.01
"""Half of it on each side: the baseline's loss is below `loss_upper`, and the served one above `loss_low`, by 99.5 % each."""

LOG_ABOVE_MOST = math.log(1000.0)
"""How far beyond its threshold a detector is let: so that an alarm ends soon after the harm has, and not after as long."""

_LOSS_UNITS = 2**40
"""Losses of a window are added as whole numbers of this part: to the same bits in any order."""

SCALE_QUANTILE = 0.99
"""Of the absolute errors on the baseline's rows: the unit of a regression's loss. Few errors are capped, and one outlier does
not make all others small."""


def losses_of(scores: Floats, labels: Floats, settings: QualitySettings, scale: float) -> Floats:
    """`[N]` in [0, 1]: the loss that risk is the mean of. Shapes: `scores` `[N, K]`, `labels` `[N]`."""
    if settings.kind == "binary":
        return scoring.binary_losses(scores[:, 0], labels)
    if settings.kind == "multiclass":
        return scoring.multiclass_losses(scores, labels)
    return scoring.regression_losses(scores[:, 0], labels, scale)


def reference_quality(scores: Floats, labels: Floats, settings: QualitySettings) -> ReferenceQuality:
    """How good scores are on rows whose outcomes are known: what a baseline has of quality.

    Shapes: `scores` `[N]`, or `[N, K]`, as `scores_of` gives them; `labels` `[N]`, as in an `Outcome`. In any order: the bound
    on the loss is one for values that come one by one and by chance, of which the first weigh most. These are all there now,
    and files are sorted (by time, where losses have seasons): they are dealt out anew, always in the same way.
    Raises: ValueError for no rows, for a score or label that is not finite, for labels of a binary model beside 0 and 1.
    """
    labels = scoring.floats(labels)
    if not len(labels):
        raise ValueError("the quality of no rows is not known")
    scores = scoring.floats(scores).reshape(len(labels), -1)
    scale = 1.0
    if settings.kind == "regression":
        error = np.abs(scores[:, 0] - labels)
        scale = float(np.quantile(error, SCALE_QUANTILE)) or float(error.max()) or 1.0
    order = np.random.default_rng(0).permutation(len(labels))
    loss = BoundedMean(RISK_ALPHA).add(losses_of(scores, labels, settings, scale)[order])
    return ReferenceQuality(
        kind=settings.kind,
        rows=len(labels),
        metrics=_metrics_of(scores, labels, settings),
        loss_mean=loss.mean,
        loss_upper=max(loss.interval(RISK_ALPHA)[1], loss.mean),
        loss_rows=loss.rows,
        calibration=scoring.calibration(scores[:, 0], labels) if settings.kind == "binary" else (),
        loss_scale=scale,
    )


def _metrics_of(scores: Floats, labels: Floats, settings: QualitySettings) -> dict[str, float]:
    score = scores[:, 0]
    if settings.kind == "regression":
        error = score - labels
        squared = float(np.sqrt(np.square(error).mean()))
        return {"mean_absolute_error": float(np.abs(error).mean()), "root_mean_squared_error": squared}
    if settings.kind == "multiclass":
        chance = class_probabilities(scores, labels)
        return {
            "accuracy": 1 - float(scoring.multiclass_losses(scores, labels).mean()),
            "log_loss": -float(np.log(chance).mean()),
        }
    found = {
        "accuracy": scoring.accuracy(score, labels, settings.threshold),
        "log_loss": scoring.log_loss(score, labels),
        "brier": scoring.brier(score, labels),
        "calibration_error": scoring.calibration_error(score, labels, CALIBRATION_EDGES),
        "auc": scoring.auc(score, labels),
    }
    return {name: value for name, value in found.items() if value is not None}


class Quality:
    """What is known of one version in one arm. Ownership: one thread at a time."""

    def __init__(self, settings: ModelMonitoring, reference: ReferenceQuality | None) -> None:
        """`reference` None, or of another kind: no risk is tracked. Raises: ValueError for settings without `quality`."""
        if settings.quality is None:
            raise ValueError("these settings have no quality")
        self._settings = settings.quality
        self._reference = reference if reference is not None and reference.kind == self._settings.kind else None
        self._scale = 0.0 if self._reference is None else self._reference.loss_scale
        self._window_us = round(settings.window_s * US_PER_S)
        self._log_threshold = math.log(settings.alarm_every_windows)
        self._least_rows = settings.min_rows
        self._block = (-1, 0, 0)  # the start of the window that is open, and its labelled rows and losses
        self._total, self._recent = realised(self._settings, self._scale), realised(self._settings, self._scale)
        self._recent_start_us = -1
        self._loss = BoundedMean(RISK_ALPHA)
        bound = math.inf if self._reference is None else self._reference.loss_upper + self._settings.risk_tolerance
        # a loss is never above 1
        self._detector = HarmDetector(bound) if 0 < bound < 1 else None

    def count(self, settled: Settled) -> None:
        """With further predictions, of which those without an outcome say nothing."""
        labelled = ~np.isnan(settled.labels)
        scores, labels, time_us = settled.scores[labelled], settled.labels[labelled], settled.time_us[labelled]
        if not len(labels):
            return
        self._total.add(scores, labels)
        starts = time_us // self._window_us * self._window_us
        newest = int(starts.max())
        if newest > self._recent_start_us:
            self._recent, self._recent_start_us = realised(self._settings, self._scale), newest
        recent = starts == self._recent_start_us
        if recent.any():
            self._recent.add(scores[recent], labels[recent])
        if self._detector is not None:
            losses = losses_of(scores, labels, self._settings, self._scale)
            self._loss = self._loss.add(losses)
            units = np.rint(losses * _LOSS_UNITS).astype(np.int64)
            for start in np.unique(starts).tolist():
                own = units[starts == start]
                self._detect(start, len(own), int(own.sum()))

    def _detect(self, start_us: int, rows: int, units: int) -> None:
        """With labelled rows of one window; those of one that has gone by count with the one that is open."""
        open_us, known, total = self._block
        if self._detector is not None and start_us > open_us and known >= self._least_rows:
            detector = self._detector.add(np.array([total / (known * _LOSS_UNITS)]))
            self._detector = _not_far_above(detector, self._log_threshold + LOG_ABOVE_MOST)
            known = total = 0
        self._block = max(start_us, open_us), known + rows, total + units

    def complete(self, reading: QualityReading, latest: Floats | None) -> QualityReading:
        """A reading of counts, with what is known of quality. `latest`: `[n, K]`, the scores that estimates are made of."""
        return replace(
            reading,
            labelled=self._total.rows,
            realised=self._total.metrics(),
            recent=self._recent.metrics(),
            recent_start_us=max(self._recent_start_us, 0),
            estimated={} if latest is None else self._estimated(latest),
            risk=self._risk(),
        )

    def _estimated(self, latest: Floats) -> dict[str, Metric]:
        """Without outcomes, of a binary score alone and where a baseline says how well it is calibrated. Nothing bounds how
        wrong an estimate is, so that its bounds are those of the metric itself.
        """
        if self._reference is None or self._settings.kind != "binary":
            return {}
        found = scoring.estimated(self._reference.calibration, latest[:, 0], self._settings.threshold)
        most = {"log_loss": scoring.LOG_LOSS_MOST}
        return {name: Metric(value, 0.0, most.get(name, 1.0), len(latest)) for name, value in found.items()}

    def _risk(self) -> RiskReading | None:
        if self._detector is None:
            return None
        log_detector = self._detector.log_detector
        return RiskReading(
            loss_mean=self._loss.mean,
            loss_low=self._loss.interval(RISK_ALPHA)[0],
            bound=self._detector.bound,
            rows=self._loss.rows,
            log_detector=log_detector,
            log_threshold=self._log_threshold,
            alarm=log_detector >= self._log_threshold,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All that it knows."""
        kept = {f"total.{name}": array for name, array in self._total.arrays().items()}
        kept |= {f"recent.{name}": array for name, array in self._recent.arrays().items()}
        detector = [] if self._detector is None else self._detector.document()
        kept |= {"start": np.array(self._recent_start_us), "loss": np.array(self._loss.document())}
        kept["block"] = np.array(self._block, np.int64)
        return {**kept, "detector": np.array(detector, np.float64)}

    def restore(self, arrays: Arrays) -> None:
        """Know what `arrays` gave, of the same settings and reference. Raises: KeyError, ValueError."""
        for prefix, part in (("total.", self._total), ("recent.", self._recent)):
            part.restore({name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)})
        self._recent_start_us = int(arrays["start"])
        open_us, rows, units = np.asarray(arrays["block"], np.int64).tolist()
        self._block = (open_us, rows, units)
        self._loss = BoundedMean.from_document(np.asarray(arrays["loss"], np.float64).tolist())
        kept = np.asarray(arrays["detector"], np.float64).tolist()
        if self._detector is not None:
            detector = HarmDetector.from_document(kept)
            if detector.bound != self._detector.bound:
                raise ValueError("what was kept of a risk is of another bound")
            self._detector = detector


def _not_far_above(detector: HarmDetector, log_most: float) -> HarmDetector:
    """The detector, or one that is as far above as it may be: less than it was, so that it alarms no sooner."""
    excess = detector.log_detector - log_most
    return detector if excess <= 0 else replace(detector, starts=tuple(start - excess for start in detector.starts))
