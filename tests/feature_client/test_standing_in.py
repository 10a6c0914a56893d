"""What stands in for values that are missing, old or null, and which rows must not be answered."""

from dataclasses import replace

import numpy as np
import pytest

from feature_client.schema import DEFAULTED, Feature, Status, days
from feature_client.served import Found, absent_rows, default_of, nulls_of, serve
from feature_client.view import View
from tests.feature_client.views import aircraft, bytes_column, route

NOW_US = 1_700_000_000_000_000


def found(view: View, *row_status: Status, age_us: int = 0) -> Found:
    """Rows whose features all are 1 (or b"1"), with no nulls."""
    rows = absent_rows(view, len(row_status), Status.PRESENT)
    for feature in view.features:
        rows.values[feature.name][...] = b"1" if feature.dtype == "bytes" else 1
    event_us = np.full(len(row_status), NOW_US - age_us)
    return Found(rows.values, rows.nulls, np.array(row_status, np.uint8), event_us, event_us)


def test_whole_rows_are_passed_on_as_they_are() -> None:
    rows = found(aircraft, Status.PRESENT, Status.PRESENT)
    served = serve(aircraft, rows, NOW_US)
    assert (served.statuses == Status.PRESENT).all()
    assert served.statuses.shape == (2, len(aircraft.features))
    assert not served.refused.any()
    assert all(np.shares_memory(served.values[name], column) for name, column in rows.values.items())


@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.TIMEOUT])
def test_defaults_stand_in_where_there_is_no_row(status: Status) -> None:
    rows = found(aircraft, Status.PRESENT, status)
    served = serve(aircraft, rows, NOW_US)
    assert served.statuses.tolist() == [[0] * 7, [status | DEFAULTED] * 7]
    assert not served.refused.any()
    for feature in aircraft.features:
        column = served.values[feature.name]
        assert column.dtype == rows.values[feature.name].dtype
        assert column.flags.c_contiguous
        np.testing.assert_array_equal(column[1], np.broadcast_to(default_of(feature), column[1:].shape)[0])
        np.testing.assert_array_equal(column[0], rows.values[feature.name][0])
        assert (rows.values[feature.name] == (b"1" if feature.dtype == "bytes" else 1)).all()  # what was found stays


def test_nulls_are_kept_or_defaulted_as_declared() -> None:
    rows = found(aircraft, Status.PRESENT, Status.PRESENT, Status.NOT_FOUND)
    rows.nulls[[0, 2]] = True  # a null of a row that is not there means nothing
    served = serve(aircraft, rows, NOW_US)
    kept = [feature.null == "keep" for feature in aircraft.features]
    assert served.statuses[0].tolist() == [Status.NULL if keeps else Status.NULL | DEFAULTED for keeps in kept]
    assert served.statuses[1:].tolist() == [[0] * 7, [Status.NOT_FOUND | DEFAULTED] * 7]
    assert served.values["tail_carrier"].tolist() == [b"1", b"1", b""]
    assert served.values["tail_delay"].tolist() == [5.0, 1.0, 5.0]


def test_only_kept_nulls_are_no_defaults() -> None:
    rows = found(aircraft, Status.PRESENT)
    rows.nulls[0, aircraft.names.index("tail_latest")] = True
    served = serve(aircraft, rows, NOW_US)
    assert sorted(served.statuses[0].tolist()) == [0] * 6 + [Status.NULL]
    assert served.values["tail_latest"] is rows.values["tail_latest"]


def test_age_is_judged_by_the_shorter_limit_of_feature_and_view() -> None:
    for age_us, stale in ((days(3), 0), (days(3) + 1, 1), (days(30), 1), (days(30) + 1, 7)):
        served = serve(aircraft, found(aircraft, Status.PRESENT, age_us=age_us), NOW_US)
        assert (served.statuses == Status.STALE | DEFAULTED).sum() == stale
    view = replace(aircraft, max_age_us=0, features=(Feature("a", "int64", 0),))
    assert serve(view, found(view, Status.PRESENT, age_us=days(9999)), NOW_US).statuses.tolist() == [[0]]


def test_age_is_judged_row_by_row_where_instants_are_given() -> None:
    served = serve(route, found(route, *[Status.PRESENT] * 3), NOW_US + np.array([days(2), days(2) + 1, -5]))
    assert served.statuses[:, 0].tolist() == [0, Status.STALE, 0]
    assert served.refused.tolist() == [False, True, False]


def test_an_old_null_is_old() -> None:
    rows = found(aircraft, Status.PRESENT, age_us=days(31))
    rows.nulls[:] = True
    assert (serve(aircraft, rows, NOW_US).statuses == Status.STALE | DEFAULTED).all()


def test_refused_rows_hold_defaults_so_that_others_can_be_computed() -> None:
    rows = found(route, Status.PRESENT, Status.NOT_FOUND, Status.TIMEOUT, Status.FP_MISMATCH)
    served = serve(route, rows, NOW_US)
    assert served.refused.tolist() == [False, True, False, True]
    assert served.statuses[:, 0].tolist() == [0, Status.NOT_FOUND, Status.TIMEOUT | DEFAULTED, Status.FP_MISMATCH]
    assert served.values["route_flights"].tolist() == [1, 0, 0, 0]
    assert serve(route, rows, NOW_US, fail_on_timeout=True).refused.tolist() == [False, True, True, True]


def test_a_row_of_another_definition_is_always_refused() -> None:
    served = serve(aircraft, found(aircraft, Status.FP_MISMATCH, Status.NOT_FOUND), NOW_US)
    assert served.refused.tolist() == [True, False]


def test_no_rows() -> None:
    served = serve(aircraft, absent_rows(aircraft, 0, Status.NOT_FOUND), NOW_US)
    assert (served.statuses.shape, served.refused.shape) == ((0, 7), (0,))


def test_nulls_of_columns() -> None:
    assert nulls_of(Feature("a", "bytes", b""), bytes_column(b"", None)).tolist() == [False, True]
    assert nulls_of(Feature("a", "int64", 0), np.zeros(2, np.int64)).tolist() == [False, False]
    assert nulls_of(Feature("a", "float16", 0), np.array([np.nan, np.inf], np.float16)).tolist() == [True, False]
    pairs = np.array([[np.nan, 1.0], [np.nan, np.nan]])
    assert nulls_of(Feature("a", "float64", 0, shape=(2,)), pairs).tolist() == [False, True]
    assert nulls_of(Feature("a", "float64", 0, shape=(2, 1)), np.zeros((0, 2, 1))).tolist() == []
