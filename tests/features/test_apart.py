"""Rows that cannot be computed, among rows that can."""

import gc
import weakref

import numpy as np
import pytest

from feature_client.errors import DefinitionError
from feature_client.schema import Array, Feature, Status
from feature_client.served import Served
from feature_client.view import feature_view
from server.features.apart import Given, compute
from tests.features.examples import airport_delays, calendar, features

VIEWS = features(airport_delays, calendar)


def rows(*days: int) -> Given:
    count = len(days)
    served = Served(
        {"airport_delay": np.arange(count, dtype=np.float32), "recent": np.ones((count, 2), np.float32)},
        np.zeros((count, 2), np.uint8),
        np.arange(count) == 1,
    )
    return Given(count, {"day": np.array(days, np.int32)}, {"weekend": np.ones(count, np.bool_)}, {"airport_delays@1": served})


def test_rows_that_can_be_computed_are() -> None:
    made = compute(VIEWS, rows(1, 2, 3))
    assert made.error is None
    assert made.failed.tolist() == [False] * 3
    assert made.features.refused.tolist() == [False, True, False]
    assert made.features.values["delay_by_day"].tolist() == [0, 2, 6]


@pytest.mark.parametrize("days", [(1, -1, 3), (-1, 2, 3, -4, 5), (1, 2, 3, 4, 5, 6, -7)])
def test_a_row_that_cannot_be_computed_fails_alone(days: tuple[int, ...]) -> None:
    made, healthy = compute(VIEWS, rows(*days)), compute(VIEWS, rows(*map(abs, days)))
    failed = np.array(days) < 0
    assert made.failed.tolist() == failed.tolist()
    assert made.features.refused.tolist() == (failed | healthy.features.refused).tolist()
    for name, column in healthy.features.values.items():
        assert made.features.values[name].dtype == column.dtype
        assert made.features.values[name][~failed].tolist() == column[~failed].tolist()
        assert made.features.statuses[name][~failed].tolist() == healthy.features.statuses[name][~failed].tolist()
    assert made.features.statuses["delay_by_day"][failed].tolist() == [Status.NULL] * failed.sum()
    assert made.features.values["airport_delay"][failed].tolist() == [-2.0] * failed.sum()
    assert isinstance(made.error, ValueError)


def test_nothing_of_a_batch_is_held_by_what_failed() -> None:
    brought = rows(-1, 1)
    gone = weakref.ref(brought.stored["airport_delays@1"])
    gc.disable()
    try:
        made = compute(VIEWS, brought)
        del brought
        assert gone() is None
    finally:
        gc.enable()
    assert made.error is not None


def test_only_together_they_fail() -> None:
    @feature_view(inputs={"code": "bytes"}, features=[Feature("length", "int64", 0)])
    def lengths(code: Array) -> dict[str, Array]:
        # a definition that is wrong in itself, and shows it for more than one row only
        return {"length": np.array([len(code)])}

    made = compute(features(lengths), Given(2, {"code": np.array([b"a", b"b"], dtype=object)}, {}, {}))
    assert made.failed.tolist() == [False, False]
    assert isinstance(made.error, DefinitionError)
