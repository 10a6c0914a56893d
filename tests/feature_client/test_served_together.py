"""From found rows to served values: the vectorised judgement equals one that looks at each value by itself."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_client.aggregation import last
from feature_client.schema import DEFAULTED, DTYPES, Entity, EventLog, Feature, Status
from feature_client.served import Found, absent_rows, nulls_of, serve
from feature_client.view import View

NOW_US = 1_000
ROWS = (Status.PRESENT, Status.NOT_FOUND, Status.TIMEOUT, Status.FP_MISMATCH)


def view_of(draw: st.DrawFn) -> View:
    count = draw(st.integers(1, 4))
    features = []
    for index in range(count):
        dtype = draw(st.sampled_from(["float32", "int64", "bytes"]))
        features.append(
            Feature(
                f"f{index}",
                dtype,
                b"d" if dtype == "bytes" else 7,
                shape=() if dtype == "bytes" else draw(st.sampled_from([(), (2,)])),
                null="default" if dtype == "int64" else draw(st.sampled_from(["default", "keep"])),
                max_age_us=draw(st.sampled_from([0, 100, 300])),
            )
        )
    return View(
        "v",
        1,
        "stored",
        {"x": last("x")},
        tuple(features),
        lambda x: {},
        Entity("e", {"id": "int64"}),
        EventLog("log", {"id": "int64", "event_us": "int64", "x": "float64"}),
        max_age_us=draw(st.sampled_from([0, 200])),
        on_missing=draw(st.sampled_from(["default", "fail"])),
        on_stale=draw(st.sampled_from(["default", "fail"])),
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[View, Found, bool]:
    view = view_of(draw)
    rows, width = draw(st.integers(0, 5)), len(view.features)
    found = absent_rows(view, rows, Status.PRESENT)
    statuses = [draw(st.sampled_from(ROWS)) for _ in range(rows)]
    flags = [[draw(st.booleans()) for _ in range(2 * width)] for _ in range(rows)]
    both = np.array(flags, np.bool_).reshape(rows, 2 * width) & draw(st.booleans())
    times = np.array([draw(st.sampled_from([950, 850, 750, 100])) for _ in range(rows)], np.int64)
    for feature in view.features:
        if feature.dtype == "bytes":
            found.values[feature.name] = np.array([b"v"] * rows, object)
        else:
            found.values[feature.name] = np.full((rows, *feature.shape), 3, DTYPES[feature.dtype])
    missing = both[:, width:] if draw(st.booleans()) else None
    made = Found(found.values, both[:, :width], np.array(statuses, np.uint8), times, times, missing)
    return view, made, draw(st.booleans())


def one_by_one(view: View, found: Found, row: int, fail_on_timeout: bool) -> tuple[list[int], list[Any], bool]:
    statuses = []
    for index, feature in enumerate(view.features):
        status = int(found.row_status[row])
        if status == Status.PRESENT:
            age_us = NOW_US - int(found.event_us[row])
            if found.nulls[row, index]:
                status = Status.NULL
            if any(limit and age_us > limit for limit in (view.max_age_us, feature.max_age_us)):
                status = Status.STALE
            if found.missing is not None and found.missing[row, index]:
                status = Status.NOT_FOUND
        statuses.append(int(status))
    refused = (
        Status.FP_MISMATCH in statuses
        or (Status.NOT_FOUND in statuses and view.on_missing == "fail")
        or (Status.STALE in statuses and view.on_stale == "fail")
        or (Status.TIMEOUT in statuses and fail_on_timeout)
    )
    values: list[Any] = []
    for index, feature in enumerate(view.features):
        stands = statuses[index] == Status.PRESENT or (statuses[index] == Status.NULL and feature.null == "keep")
        values.append((b"v" if feature.dtype == "bytes" else 3) if stands else feature.default)
        if not stands and not refused:
            statuses[index] |= DEFAULTED
    return statuses, values, refused


@given(histories())
def test_each_value_is_judged_as_if_it_were_alone(history: tuple[View, Found, bool]) -> None:
    view, found, fail_on_timeout = history
    before = {name: column.copy() for name, column in found.values.items()}
    served = serve(view, found, NOW_US, fail_on_timeout=fail_on_timeout)
    for row in range(len(found.row_status)):
        statuses, values, refused = one_by_one(view, found, row, fail_on_timeout)
        assert served.statuses[row].tolist() == statuses
        assert bool(served.refused[row]) == refused
        for feature, value in zip(view.features, values, strict=True):
            assert np.all(served.values[feature.name][row] == value)
    for feature in view.features:
        assert served.values[feature.name].dtype == DTYPES[feature.dtype]
        assert served.values[feature.name].flags.c_contiguous
        assert np.array_equal(before[feature.name], found.values[feature.name])


def test_the_instant_may_be_each_rows_own() -> None:
    view = View(
        "v",
        1,
        "stored",
        {"x": last("x")},
        (Feature("f", "int64", 0),),
        lambda x: {},
        Entity("e", {"id": "int64"}),
        EventLog("log", {"id": "int64", "event_us": "int64", "x": "float64"}),
        max_age_us=10,
    )
    served = serve(view, absent_rows(view, 2, Status.PRESENT), np.array([10, 11]))
    assert served.statuses.tolist() == [[Status.PRESENT], [Status.STALE | DEFAULTED]]


def test_a_value_is_null_where_it_says_so() -> None:
    texts = np.array([b"", None], object)
    assert nulls_of(Feature("f", "bytes", b""), texts).tolist() == [False, True]
    assert nulls_of(Feature("f", "int64", 0), np.zeros(1, np.int64)).tolist() == [False]
    nan = float("nan")
    pairs = np.array([[nan, nan], [nan, 1.0]])
    assert nulls_of(Feature("f", "float64", 0.0, (2,)), pairs).tolist() == [True, False]
