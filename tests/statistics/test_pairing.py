"""Pairs of a positive and a negative: their mean is the AUC, each row is in one at most, and little is kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.statistics.bounded_mean import BoundedMean
from server.statistics.pairing import WAITING_MOST, Pairing
from server.statistics.scores import auc

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=60)


@settings(deadline=None)
@given(ROWS)
def test_rows_are_paired_in_order_of_arrival(rows: list[tuple[int, int]]) -> None:
    positives, negatives = ([score for score, label in rows if label == own] for own in (1, 0))
    state, found = Pairing().add([score for score, _ in rows], [label for _, label in rows])
    whole = list(zip(positives, negatives, strict=False))
    expected = [float(np.heaviside(high - low, 0.5)) for high, low in whole]
    assert found.tolist() == expected
    longer = max(positives, negatives, key=len)
    assert list(state.waiting) == longer[len(whole) :]


@settings(deadline=None)
@given(ROWS, st.integers(0, 60))
def test_it_does_not_matter_how_rows_are_cut(rows: list[tuple[int, int]], place: int) -> None:
    scores, labels = ([row[column] for row in rows] for column in (0, 1))
    state, found = Pairing().add(scores, labels)
    half, first = Pairing().add(scores[:place], labels[:place])
    other, second = half.add(scores[place:], labels[place:])
    assert np.concatenate((first, second)).tolist() == found.tolist()
    assert other.waiting == state.waiting


def test_the_mean_of_pairs_is_the_auc_and_its_interval_has_it() -> None:
    random = np.random.default_rng(1)
    labels = random.binomial(1, 0.3, 40_000)
    scores = random.normal(labels * 0.8)
    _, found = Pairing().add(scores, labels)
    assert found.size == labels.sum()
    whole = auc(scores, labels)
    assert whole is not None
    low, high = BoundedMean().add(found).interval(0.05)
    assert low < whole < high
    assert high - low < 0.05


def test_few_wait_and_the_oldest_leave_first() -> None:
    state, found = Pairing().add(np.arange(WAITING_MOST + 10), np.zeros(WAITING_MOST + 10))
    assert found.size == 0
    assert state.waiting == tuple(range(10, WAITING_MOST + 10))
    state, found = state.add([10.0, 10.5], [1, 1])
    assert found.tolist() == [0.5, 0.0]
    assert len(state.waiting) == WAITING_MOST - 2


def test_what_are_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="one label"):
        Pairing().add([0.5], [1, 0])
    with pytest.raises(ValueError, match="0 or 1"):
        Pairing().add([0.5], [2])
