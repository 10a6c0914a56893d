"""Quality by outcomes: what a baseline says, when harm alarms and when it does not, and that early labels do not mislead."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.monitoring.baseline import ReferenceQuality
from server.monitoring.outcome import Outcome
from server.monitoring.pending import Settled
from server.monitoring.quality import LOG_ABOVE_MOST, Quality, losses_of, reference_quality
from server.monitoring.verdict import QualityReading, RiskReading
from server.statistics import scores as scoring
from server.statistics.bounded_mean import GRID
from tests.monitoring.scored import KEY, SECOND, Now, scored, settings_of, taking

EMPTY = QualityReading(KEY, "champion", {}, 0, 0, {}, {}, 0, {}, None)


def settled(scores: Any, labels: Any, time_us: Any = 0) -> Settled:
    array = np.asarray(scores, np.float64).reshape(len(labels), -1)
    return Settled(array, np.asarray(labels, np.float64), np.broadcast_to(np.asarray(time_us, np.int64), (len(labels),)))


def calibrated_rows(count: int, seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    scores = generator.random(count)
    return scores, (generator.random(count) < scores).astype(float)


def risk_of(quality: Quality) -> RiskReading:
    risk = quality.complete(EMPTY, None).risk
    assert risk is not None
    return risk


# -- what a baseline says -------------------------------------------------------------------------------------------------


def test_the_reference_of_a_binary_score() -> None:
    scores, labels = calibrated_rows(4000, 1)
    found = reference_quality(scores, labels, QualitySettings(threshold=0.3))
    assert found.metrics == {
        "accuracy": np.mean((scores >= 0.3) == (labels == 1)),
        "auc": scoring.auc(scores, labels),
        "brier": pytest.approx(np.mean((scores - labels) ** 2), rel=1e-12),
        "log_loss": scoring.log_loss(scores, labels),
        "calibration_error": scoring.calibration_error(scores, labels, np.arange(1, 10) / 10),
    }
    assert (found.kind, found.rows, found.loss_rows, found.loss_scale) == ("binary", 4000, 4000, 1.0)
    assert found.loss_mean == pytest.approx(found.metrics["brier"], rel=1e-12)
    assert found.loss_mean < 1 / 6 + 0.02 < found.loss_upper + 0.02 < 1 / 6 + 0.06
    # what is calibrated already is not calibrated again
    assert found.calibration == ()


def test_a_score_that_is_not_calibrated_is() -> None:
    chance, labels = calibrated_rows(4000, 2)
    found = reference_quality(chance[:, None] ** 3, labels, QualitySettings())
    assert scoring.calibrated(found.calibration, np.array([0.5**3, 0.8**3])) == pytest.approx([0.5, 0.8], abs=0.1)
    one = reference_quality(np.array([0.2, 0.3]), np.array([1.0, 1.0]), QualitySettings())
    assert "auc" not in one.metrics


def test_the_reference_of_several_classes() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = reference_quality(scores, np.array([0.0, 1.0, 2.0, 2.0]), QualitySettings(kind="multiclass"))
    losses = -np.log([0.7, 0.8, 0.2, 0.6])
    assert found.metrics == {"accuracy": 0.75, "log_loss": pytest.approx(losses.mean(), rel=1e-12)}
    assert (found.loss_mean, found.calibration) == (0.25, ())


def test_the_reference_of_estimates() -> None:
    error = np.concatenate([np.arange(1.0, 200.0), [1e9]])
    found = reference_quality(error, np.zeros(200), QualitySettings(kind="regression"))
    assert found.metrics["mean_absolute_error"] == pytest.approx(error.mean())
    assert found.metrics["root_mean_squared_error"] == pytest.approx(math.sqrt(np.square(error).mean()))
    # an outlier does not make everything else small: 99 of 100 errors are below it
    assert found.loss_scale == pytest.approx(np.quantile(error, 0.99))
    assert 198 <= found.loss_scale <= 199
    assert found.loss_mean == pytest.approx(np.minimum(error / found.loss_scale, 1).mean())
    few = reference_quality(np.append(np.zeros(1000), 5.0), np.zeros(1001), QualitySettings(kind="regression"))
    assert few.loss_scale == 5.0
    none = reference_quality(np.zeros(3), np.zeros(3), QualitySettings(kind="regression"))
    assert (none.loss_scale, none.loss_mean) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [([], [], "no rows"), ([0.5], [0.5], "0 or 1"), ([math.nan], [1.0], "finite"), ([0.5], [math.inf], "finite")],
)
def test_what_has_no_quality(scores: list[float], labels: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        reference_quality(np.array(scores), np.array(labels), QualitySettings())


def test_the_upper_bound_of_a_reference_is_one() -> None:
    """The true loss is above it with 0.5 % at most; more misses than allowed here are a matter of 1e-4."""
    runs = 200
    misses = sum(
        reference_quality(*calibrated_rows(300, seed), QualitySettings()).loss_upper < 1 / 6 for seed in range(100, 100 + runs)
    )
    assert misses <= stats.binom.isf(1e-4, runs, 0.005)


# -- what has been realised -----------------------------------------------------------------------------------------------


def test_the_last_window_has_figures_of_its_own() -> None:
    quality = Quality(settings_of(window_s=60), None)
    times = np.array([0, 59, 60, 119, 5, 61]) * SECOND
    quality.count(settled([0.9] * 6, [1, 1, 1, 0, 0, 0], times))
    reading = quality.complete(EMPTY, None)
    assert (reading.labelled, reading.realised["accuracy"].value) == (6, 0.5)
    assert (reading.recent_start_us, reading.recent["accuracy"].rows) == (60 * SECOND, 3)
    assert reading.recent["accuracy"].value == pytest.approx(1 / 3)
    # rows of windows before it change only the whole
    quality.count(settled([0.9], [1], 30 * SECOND))
    quality.count(settled([0.9, 0.9], [1, math.nan], 65 * SECOND))
    assert quality.complete(EMPTY, None).recent["accuracy"].value == pytest.approx(0.5)
    assert quality.complete(EMPTY, None).labelled == 8
    quality.count(settled([0.1], [1], 200 * SECOND))
    reading = quality.complete(EMPTY, None)
    assert (reading.recent_start_us, reading.recent["accuracy"].value) == (180 * SECOND, 0.0)


def test_nothing_is_known_of_rows_without_outcomes() -> None:
    quality = Quality(settings_of(), None)
    quality.count(settled([0.5, 0.5], [math.nan, math.nan]))
    assert quality.complete(EMPTY, None) == EMPTY
    with pytest.raises(ValueError, match="no quality"):
        Quality(ModelMonitoring(), None)


def test_estimates_need_a_baseline_and_no_outcomes() -> None:
    chance, labels = calibrated_rows(6000, 7)
    scores = chance**2
    reference = reference_quality(scores[:3000], labels[:3000], QualitySettings(threshold=0.25))
    latest = scores[3000:, None]
    estimates = Quality(settings_of(threshold=0.25), reference).complete(EMPTY, latest).estimated
    assert estimates["accuracy"].value == pytest.approx(np.mean((scores[3000:] >= 0.25) == labels[3000:]), abs=0.03)
    assert estimates["auc"].value == pytest.approx(scoring.auc(scores[3000:], labels[3000:]), abs=0.03)
    # nothing bounds how wrong they are
    assert {(metric.low, metric.high, metric.rows) for name, metric in estimates.items() if name != "log_loss"} == {
        (0, 1, 3000)
    }
    assert estimates["log_loss"].high == scoring.LOG_LOSS_MOST
    assert Quality(settings_of(), None).complete(EMPTY, latest).estimated == {}
    other = Quality(settings_of(kind="multiclass"), reference_of(0.1, "multiclass"))
    assert other.complete(EMPTY, np.full((3, 2), 0.5)).estimated == {}


# -- harm -----------------------------------------------------------------------------------------------------------------


def reference_of(loss_upper: float, kind: Any = "multiclass") -> ReferenceQuality:
    return ReferenceQuality(kind, 1000, {}, loss_upper, loss_upper, 1000)


def wrong(generator: np.random.Generator, rate: float, count: int) -> Settled:
    """Answers of two classes that are wrong at this rate."""
    return settled([[0.9, 0.1]] * count, generator.random(count) < rate)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_losses_are_what_risk_is_defined_by(kind: Any) -> None:
    scores = np.array([[0.7, 0.3], [0.2, 0.8]])
    expected = {"binary": [0.49, 0.64], "multiclass": [0.0, 1.0], "regression": [0.07, 0.08]}[kind]
    labels = {"binary": [0.0, 1.0], "multiclass": [0.0, 0.0], "regression": [0.0, 1.0]}[kind]
    assert losses_of(scores, np.array(labels), QualitySettings(kind=kind), 10.0) == pytest.approx(expected)


class Windows:
    """Labelled rows, window by window, of a quality that is looked at after each."""

    def __init__(self, quality: Quality, generator: np.random.Generator) -> None:
        self.quality, self.generator, self.next = quality, generator, 0

    def pass_by(self, rate: float, windows: int, rows: int = 1000) -> bool:
        """Whether it alarmed in any of them."""
        alarmed = False
        for _ in range(windows):
            got = wrong(self.generator, rate, rows)
            self.quality.count(settled(got.scores, got.labels, self.next * 3600 * SECOND))
            self.next += 1
            alarmed |= risk_of(self.quality).alarm
        return alarmed


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_false_alarms_are_as_rare_as_is_stated(spread: float) -> None:
    """At the very loss that is tolerated, with a stated run length of 40 windows: at most a tenth of runs alarm within 4. It is
    the same where good days and bad ones take turns by chance: their rows are not independent, and none is worse on average.
    """
    settings = ModelMonitoring(alarm_every_windows=40, quality=QualitySettings(kind="multiclass"))
    generator, runs, alarms = np.random.default_rng(11), 200, 0
    for _ in range(runs):
        days = Windows(Quality(settings, reference_of(0.08)), generator)
        # the last window is open still
        rates = 0.1 + spread * generator.choice([-1.0, 1.0], 5)
        alarms += any(days.pass_by(float(rate), 1) for rate in rates)
    assert risk_of(days.quality).log_threshold == math.log(40)
    assert risk_of(days.quality).bound == pytest.approx(0.1)
    assert alarms <= stats.binom.isf(1e-4, runs, 4 / 40)


def windows_until_certain(rate: float, rows: int, bound: float, log_threshold: float) -> int:
    """After how many windows an alarm is certain but for 1e-4, by the binomial law: any one bet bounds the detector below."""
    for windows in range(1, 1000):
        errors = stats.binom.isf(1 - 1e-4 / windows, rows, rate)
        grown = [windows * math.log1p(bet * (errors / rows / bound - 1)) - math.log(len(GRID)) for bet in GRID]
        if max(grown) >= log_threshold:
            return windows
    raise AssertionError("never")


def test_a_loss_that_doubles_is_caught() -> None:
    generator = np.random.default_rng(12)
    certain = windows_until_certain(0.2, 1000, 0.1, math.log(672))
    assert certain < 48  # two days of hours, for certain; two weeks are far
    for _ in range(20):
        days = Windows(Quality(settings_of(kind="multiclass"), reference_of(0.08)), generator)
        assert not days.pass_by(0.08, 30)
        assert days.pass_by(0.2, certain + 1)
    # reported beside it: where the mean loss is for certain
    risk = risk_of(days.quality)
    assert risk.loss_low < risk.loss_mean
    assert risk.rows == 1000 * (31 + certain)


def test_an_alarm_ends_soon_after_the_harm_and_better_never_alarms() -> None:
    days = Windows(Quality(settings_of(kind="multiclass"), reference_of(0.08)), np.random.default_rng(13))
    days.pass_by(0.6, 50)
    risk = risk_of(days.quality)
    assert risk.log_detector == pytest.approx(risk.log_threshold + LOG_ABOVE_MOST)
    days.pass_by(0.02, 30)
    assert not risk_of(days.quality).alarm
    assert not days.pass_by(0.02, 100)
    assert risk_of(days.quality).log_detector < risk.log_threshold - 2


def test_small_windows_count_together_and_late_rows_with_the_open_one() -> None:
    def quality(blocks: list[tuple[int, int, int]]) -> Quality:
        made = Quality(settings_of(kind="multiclass"), reference_of(0.08))
        for hour, right, errors in blocks:
            made.count(settled([[0.9, 0.1]] * (right + errors), [0.0] * right + [1.0] * errors, hour * 3600 * SECOND))
        return made

    expected = quality([(0, 30, 30), (3, 1, 0)])
    assert risk_of(expected).log_detector > -math.inf
    for blocks in ([(0, 10, 10), (1, 20, 20), (3, 1, 0)], [(1, 20, 20), (0, 10, 10), (3, 1, 0)]):
        assert risk_of(quality(blocks)).log_detector == risk_of(expected).log_detector
    assert risk_of(quality([(0, 30, 10), (1, 5, 5)])).log_detector == -math.inf


def test_risk_needs_a_reference_that_can_be_exceeded() -> None:
    for reference in (None, reference_of(0.99), reference_of(0.1, "binary")):
        quality = Quality(settings_of(kind="multiclass"), reference)
        quality.count(wrong(np.random.default_rng(1), 0.5, 100))
        assert quality.complete(EMPTY, None).risk is None
        again = Quality(settings_of(kind="multiclass"), reference)
        again.restore(quality.arrays())
        assert again.complete(EMPTY, None) == quality.complete(EMPTY, None)


def test_a_restart_changes_nothing() -> None:
    generator = np.random.default_rng(14)
    quality = Quality(settings_of(kind="multiclass"), reference_of(0.08))
    for count in (1, 100, 1000):
        quality.count(wrong(generator, 0.3, count))
        again = Quality(settings_of(kind="multiclass"), reference_of(0.08))
        again.restore(quality.arrays())
        assert again.complete(EMPTY, None) == quality.complete(EMPTY, None)
    with pytest.raises(ValueError, match="another bound"):
        Quality(settings_of(kind="multiclass"), reference_of(0.09)).restore(quality.arrays())


# -- delays ---------------------------------------------------------------------------------------------------------------


def truth_of(chance: Any) -> dict[str, float]:
    """What the metrics of calibrated scores are on average, of a grid of scores that are equally likely."""
    positive, negative = chance / chance.sum(), (1 - chance) / (1 - chance).sum()
    return {
        "accuracy": float(np.maximum(chance, 1 - chance).mean()),
        "brier": float((chance * (1 - chance)).mean()),
        "log_loss": float(-(chance * np.log(chance) + (1 - chance) * np.log1p(-chance)).mean()),
        "auc": float(positive @ (np.cumsum(negative) - negative / 2)),
        "calibration_error": 0.0,
    }


def test_labels_that_come_early_for_one_class_do_not_mislead() -> None:
    """A calibrated score that is a square of a uniform one; positives are known after a second, negatives after 100, and of
    both 30 % never.

    With a horizon the figures are right at every instant. Without one they say after 50 seconds that all are positives.
    """
    generator = np.random.default_rng(22)
    scores = generator.random(6000) ** 2
    labels = (generator.random(6000) < scores).astype(float)
    known = generator.random(6000) < 0.7
    truth = truth_of((np.arange(10**6) + 0.5) ** 2 / 10**12)
    ids = [f"r{number}" for number in range(6000)]
    delays = np.where(labels == 1, 1, 100)
    for horizon_s in (200, 0):
        now = Now()
        outcomes = taking(now, settings_of(horizon_s=horizon_s))
        begun, seen = now.us, []
        arrivals = sorted((number // 60 + int(delays[number]), number) for number in np.flatnonzero(known).tolist())
        for second in range(310):
            now.us = begun + second * SECOND
            if second < 100:
                chosen = slice(second * 60, second * 60 + 60)
                outcomes.add([scored(ids[chosen], scores[chosen], time_us=now.us)])
            while arrivals and arrivals[0][0] == second:
                _, number = arrivals.pop(0)
                outcomes.report(Outcome("m", 0, ids[number], 0, labels[number]))
            if second % 10 == 9:
                seen.append(outcomes.readings()[0])
        if not horizon_s:
            early = seen[4].realised
            assert "auc" not in early
            for name in ("brier", "log_loss", "accuracy", "calibration_error"):
                assert not early[name].low <= truth[name] <= early[name].high, name
            continue
        for index, reading in enumerate(seen):
            assert reading.served == min(max(60 * (10 * index + 10 - 200), 0), 6000)
            for name, metric in reading.realised.items():
                assert metric.low <= truth[name] <= metric.high, (name, metric)
        last = seen[-1]
        assert (last.served, last.labelled) == (6000, known.sum())
        assert last.outcomes == {"accepted": known.sum()}
        assert last.realised["auc"].value == pytest.approx(scoring.auc(scores[known], labels[known]), abs=1e-4)
        assert last.realised["log_loss"].value == pytest.approx(scoring.log_loss(scores[known], labels[known]), rel=1e-9)
