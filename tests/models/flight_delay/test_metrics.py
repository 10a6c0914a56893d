import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.flight_delay import metrics

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=30)


@given(ROWS)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    late = np.array([row[0] for row in rows])
    probability = np.array([row[1] for row in rows]) / 8
    pairs = [float(p > n) + 0.5 * float(p == n) for p in probability[late] for n in probability[~late]]
    measured = metrics.auc(late, probability)
    if pairs:
        assert measured == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert math.isnan(measured)


def test_log_loss_is_finite_for_a_confident_mistake() -> None:
    assert metrics.log_loss(np.array([True]), np.array([0.0])) == pytest.approx(-math.log(1e-7))
    assert metrics.log_loss(np.array([True, False]), np.array([0.25, 0.5])) == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_calibration_error_weighs_bins_by_rows() -> None:
    late = np.array([True, False, True, True])
    probability = np.array([0.05, 0.05, 0.05, 1.0])
    # three rows say 0.05 where 2/3 came true; one row says 1.0 rightly
    assert metrics.calibration_error(late, probability) == pytest.approx((2 - 0.15) / 4)


def test_a_constant_at_the_observed_rate_is_calibrated_and_useless() -> None:
    late = np.array([True, False, False, False])
    measured = metrics.measure(late, np.full(4, 0.25))
    assert measured == {
        "auc": 0.5,
        "log_loss": 0.562335,
        "brier": 0.1875,
        "calibration_error": 0.0,
        "mean_probability": 0.25,
        "late_ratio": 0.25,
    }


def test_logistic_finds_the_rate_of_each_group() -> None:
    groups = np.repeat([0, 1], 4000)
    late = np.concatenate([np.arange(4000) < 400, np.arange(4000) < 2400])
    predicted = metrics.logistic({"group": groups}, late, {"group": np.array([0, 1, 2])})
    assert predicted[:2] == pytest.approx([0.1, 0.6], abs=0.002)
    # a group without training rows adds nothing to the intercept: it lands between the two
    assert 0.1 < predicted[2] < 0.6
