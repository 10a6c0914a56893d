"""Scores against outcomes: each figure against its definition, spelled out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from server.statistics.scores import (
    LOG_LOSS_CLIP,
    LOG_LOSS_MOST,
    accuracy,
    auc,
    binary_losses,
    bounded_log_losses,
    brier,
    calibrated,
    calibration,
    calibration_error,
    errors,
    estimated,
    grouped_error,
    isotonic,
    log_loss,
    log_losses,
    multiclass_losses,
    one_by_one,
    pooled,
    regression_losses,
)

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=80)


def drawn(seed: int, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores that are probabilities, rounded so that some are equal, and labels that come true with them."""
    random = np.random.default_rng(seed)
    chance = random.beta(1.5, 3, rows).round(2)
    return chance, random.binomial(1, chance)


@settings(deadline=None)
@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, int]]) -> None:
    values, labels = np.array(rows).T
    positives, negatives = values[labels == 1], values[labels == 0]
    found = auc(values, labels)
    if not (positives.size and negatives.size):
        assert found is None
        return
    pairs = np.heaviside(positives[:, None] - negatives[None, :], 0.5)
    assert found == pytest.approx(pairs.mean(), rel=1e-12)
    u = stats.mannwhitneyu(positives, negatives, method="asymptotic", use_continuity=False) if np.ptp(values) else None
    if u is not None:
        assert found == pytest.approx(u.statistic / positives.size / negatives.size, rel=1e-12)
    assert found is not None
    assert auc(values, 1 - labels) == pytest.approx(1 - found)


def test_losses_of_rows() -> None:
    assert log_losses([0.9, 0.9, 0.2], [1, 0, 0]) == pytest.approx([-math.log(0.9), -math.log(0.1), -math.log(0.8)], rel=1e-12)
    assert log_losses([0.0, 1.0, 2.0], [1, 0, 0]) == pytest.approx([LOG_LOSS_MOST] * 3, rel=1e-9)
    assert bounded_log_losses([0.0, 1.0, 0.5, 1.0], [1, 0, 1, 1]) == pytest.approx(
        [1, 1, math.log(2) / LOG_LOSS_MOST, 0], abs=1e-6
    )
    assert bounded_log_losses([0.0, 1.0], [1, 0]).max() <= 1
    assert binary_losses([0.75, 0.5, 1.5, -3.0], [1, 0, 0, 0]).tolist() == [0.0625, 0.25, 1.0, 0.0]
    assert errors([0.5, 0.49, 0.9], [1, 1, 0]).tolist() == [0, 1, 1]
    assert errors([3.0, -3.0], [1, 1], threshold=-3.0).tolist() == [0, 0]
    assert multiclass_losses([[1, 5, 2], [7, 7, 0]], [1, 1]).tolist() == [0, 1]
    assert multiclass_losses([[1, 5, 2]], [17]).tolist() == [1]
    assert regression_losses([1.0, 2.0, 9.0], [1.5, 2.0, 0.0], 2.0).tolist() == [0.25, 0.0, 1.0]


def test_means_of_losses() -> None:
    values, labels = drawn(1, 500)
    inside = values.clip(LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)
    assert log_loss(values, labels) == pytest.approx(
        -np.mean(labels * np.log(inside) + (1 - labels) * np.log(1 - inside)), rel=1e-9
    )
    assert log_loss(values, labels) == pytest.approx(bounded_log_losses(values, labels).mean() * LOG_LOSS_MOST, rel=1e-12)
    assert brier(values, labels) == pytest.approx(np.mean((values - labels) ** 2), rel=1e-12)
    assert accuracy(values, labels, 0.4) == pytest.approx(np.mean((values >= 0.4) == (labels == 1)), rel=1e-12)
    assert accuracy(np.eye(3), [0, 1, 1]) == pytest.approx(2 / 3)


def test_the_calibration_error_is_that_of_bins() -> None:
    values, labels = drawn(2, 500)
    edges = [0.1, 0.25, 0.5]
    expected = 0.0
    for low, high in zip([-1, *edges], [*edges, 2], strict=True):
        inside = (values > low) & (values <= high)
        expected += inside.mean() * abs(values[inside].mean() - labels[inside].mean())
    assert calibration_error(values, labels, edges) == pytest.approx(expected, rel=1e-12)
    assert calibration_error(values, labels, []) == pytest.approx(abs(values.mean() - labels.mean()), rel=1e-12)
    assert calibration_error([0.2, 0.2], [1, 0], [0.5]) == pytest.approx(0.3)


def test_of_no_rows_nothing_is_known() -> None:
    assert auc([], []) is log_loss([], []) is brier([], []) is accuracy([], []) is calibration_error([], [], [0.5]) is None
    assert accuracy(np.empty((0, 3)), []) is None
    assert isotonic([], []) == calibration([], []) == ()
    assert estimated((), []) == {}


def test_what_does_not_fit_is_refused() -> None:
    for function in (auc, log_loss, brier, accuracy, isotonic, calibration):
        with pytest.raises(ValueError, match="one label"):
            function([0.5], [1, 0])
        with pytest.raises(ValueError, match="0 or 1"):
            function([0.5, 0.5], [1, 2])
        with pytest.raises(ValueError, match="finite"):
            function([0.5, math.nan], [1, 0])
    with pytest.raises(ValueError, match="two-dimensional"):
        multiclass_losses([0.5], [1])
    for shape, labels in (((2, 3), [0]), ((1, 0), [0])):
        with pytest.raises(ValueError, match="one label"):
            errors(np.zeros(shape), labels)
    for values, scale in (([1.0, 2.0], 1.0), ([1.0], 0.0), ([1.0], math.nan)):
        with pytest.raises(ValueError, match="positive scale"):
            regression_losses([1.0], values, scale)
    with pytest.raises(ValueError, match="one-dimensional"):
        estimated((), [[0.5]])
    with pytest.raises(ValueError, match="finite"):
        calibrated((), [math.inf])


@settings(deadline=None)
@given(ROWS)
def test_isotonic_is_scipys_on_the_distinct_scores(rows: list[tuple[int, int]]) -> None:
    values, labels = np.array(rows).T
    distinct, place, weights = np.unique(values, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=labels) / weights
    expected = optimize.isotonic_regression(means, weights=weights).x
    pairs = isotonic(values, labels)
    assert calibrated(pairs, distinct) == pytest.approx(expected, abs=1e-12)
    known, level = np.array(pairs).T
    assert (np.diff(known) > 0).all()
    assert (np.diff(level) >= 0).all()


@pytest.mark.parametrize("order", ["random", "staircase", "falling", "rising"])
def test_isotonic_of_many_rows_whatever_their_order(order: str) -> None:
    rows = 200_000
    random = np.random.default_rng(3)
    position = np.arange(rows) / rows
    chance = {"random": position, "staircase": np.full(rows, 0.5), "falling": 1 - position, "rising": np.round(position)}[order]
    values, labels = np.arange(rows, dtype=float), random.binomial(1, chance)
    found = calibrated(isotonic(values, labels), values)
    assert found == pytest.approx(optimize.isotonic_regression(labels).x, abs=1e-12)


def test_isotonic_of_an_order_that_pools_one_at_a_time() -> None:
    # levels that rise, and then one so low that it takes them in from the back, one after another
    weights = np.full(300, 1000)
    sums = np.append(np.arange(1, 300) * 3, 0)
    expected = optimize.isotonic_regression(sums / weights, weights=weights).x
    for starts, total, weight in (pooled(sums, weights), one_by_one(np.arange(300), sums, weights)):
        assert np.repeat(total / weight, np.diff(np.append(starts, 300))) == pytest.approx(expected, abs=1e-12)


def test_calibrated_is_interpolated_and_level_outside() -> None:
    pairs = ((0.2, 0.1), (0.4, 0.3), (0.6, 0.3), (0.8, 0.9))
    assert calibrated(pairs, [0.0, 0.2, 0.3, 0.5, 0.7, 1.0]) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.6, 0.9])
    assert calibrated((), [-1.0, 0.3, 2.0]).tolist() == [0.0, 0.3, 1.0]


def test_calibrating_is_done_only_where_it_helps() -> None:
    values, labels = drawn(4, 6_000)
    overconfident = 1 / (1 + np.exp(-3 * np.log((values + 0.005) / (1.005 - values))))
    pairs = calibration(overconfident, labels)
    assert pairs == isotonic(overconfident, labels)
    edges = np.quantile(overconfident, np.arange(1, 10) / 10)
    fresh, truth = drawn(5, 6_000)
    again = 1 / (1 + np.exp(-3 * np.log((fresh + 0.005) / (1.005 - fresh))))
    groups, outcome = np.searchsorted(edges, again), truth.astype(np.float64)
    raw, fitted = (
        grouped_error(groups, again, outcome),
        grouped_error(groups, calibrated(pairs, again), outcome),
    )
    assert raw is not None
    assert fitted is not None
    assert fitted < raw / 3


def test_a_score_that_is_calibrated_stays_as_it_is() -> None:
    """Labels in exactly the proportion that scores say, in each fold: nothing can be gained."""
    values = np.repeat([0.25, 0.5, 0.75], 120)
    labels = np.concatenate([np.tile([1] * ones + [0] * (4 - ones), 30) for ones in (1, 2, 3)])
    assert calibration(values, labels) == ()
    assert calibration(values[:2], labels[:2]) == calibration(values, np.ones_like(labels)) == ()


def test_an_estimate_is_what_comes_true_on_average() -> None:
    """The mean over many draws of labels from the probabilities that are supposed: each metric within four standard errors."""
    random = np.random.default_rng(6)
    values = random.beta(2, 2, 300)
    pairs = ((0.1, 0.05), (0.5, 0.3), (0.9, 0.95))
    found = estimated(pairs, values, threshold=0.4)
    draws = [random.binomial(1, calibrated(pairs, values)) for _ in range(400)]
    for name, realised in (
        ("accuracy", [accuracy(values, labels, 0.4) for labels in draws]),
        ("log_loss", [log_loss(values, labels) for labels in draws]),
        ("brier", [brier(values, labels) for labels in draws]),
        ("auc", [auc(values, labels) for labels in draws]),
    ):
        figures = np.array(realised, dtype=np.float64)
        assert abs(figures.mean() - found[name]) < 4 * figures.std() / math.sqrt(len(draws)) + 1e-3
    assert set(found) == {"accuracy", "log_loss", "brier", "auc"}


def test_an_estimate_takes_the_metrics_of_the_score_that_was_served() -> None:
    # where calibration makes all scores equal there is no order left in them, but the served ones have theirs
    found = estimated(((0.0, 0.5), (1.0, 0.5)), [0.1, 0.9])
    assert found == pytest.approx(
        {"accuracy": 0.5, "log_loss": -(math.log(0.1) + math.log(0.9)) / 2, "brier": 0.41, "auc": 0.5}
    )
    assert "auc" not in estimated(((0.0, 1.0),), [0.1, 0.9])
    assert estimated((), [0.0, 1.0])["auc"] == 1
