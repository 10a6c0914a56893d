"""From rows as they were found to values as they are served: what is missing, stale or null, and what stands in. **Pure.**

Training and serving call the same function here, so a model is trained on the defaults that it will be served.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import DEFAULTED, DTYPES, Array, Feature, Status
from feature_client.view import View

Statuses = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """Rows of one stored view for N entities, as a store or an event log gave them.

    Shapes: `values` `[N, *shape]` per feature, anything where there is no row; `row_status` uint8 `[N]`: PRESENT, NOT_FOUND,
    TIMEOUT or FP_MISMATCH; `nulls` bool `[N, F]`; times int64 `[N]`, 0 where there is no row. `missing` bool `[N, F]`: values
    that a row lacks, in stores that keep each by itself; None where rows are whole.
    """

    values: dict[str, Array]
    nulls: NDArray[np.bool_]
    row_status: Statuses
    event_us: NDArray[np.int64]
    available_us: NDArray[np.int64]
    missing: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Served:
    """Values that a model is given. Shapes: `values` `[N, *shape]` per feature; `statuses` uint8 `[N, F]` in their order.

    `refused` bool `[N]`: rows that must not be answered from these values. The default stands in there as well, so that their
    neighbours can be computed.
    """

    values: dict[str, Array]
    statuses: Statuses
    refused: NDArray[np.bool_]


def serve(view: View, found: Found, now_us: int | NDArray[np.int64], *, fail_on_timeout: bool = False) -> Served:
    """Apply what a stored view declares. `now_us`: the instant that age is judged at, one for all rows or `[N]`.

    Ownership: `found.values` are not changed; where nothing stands in for them they are passed on.
    """
    count = len(found.row_status)
    statuses = np.repeat(found.row_status[:, None], len(view.features), axis=1)
    here = found.row_status == Status.PRESENT
    age_us = now_us - found.event_us
    values: dict[str, Array] = {}
    stood_in = False
    for index, feature in enumerate(view.features):
        column = statuses[:, index]
        column[here & found.nulls[:, index]] = Status.NULL
        limits = [limit for limit in (feature.max_age_us, view.max_age_us) if limit]
        if limits:
            column[here & (age_us > min(limits))] = Status.STALE
        if found.missing is not None:
            column[here & found.missing[:, index]] = Status.NOT_FOUND
        absent = column != Status.PRESENT
        if feature.null == "keep":
            absent &= column != Status.NULL
        if absent.any():
            stood_in = True
            values[feature.name] = np.ascontiguousarray(_standing_in(feature, found.values[feature.name], absent))
        else:
            values[feature.name] = found.values[feature.name]
    refused = np.zeros(count, dtype=np.bool_)
    if stood_in:
        worst = statuses.max(axis=1)
        refused |= worst == Status.FP_MISMATCH
        for status, fails in (
            (Status.NOT_FOUND, view.on_missing == "fail"),
            (Status.STALE, view.on_stale == "fail"),
            (Status.TIMEOUT, fail_on_timeout),
        ):
            if fails:
                refused |= (statuses == status).any(axis=1)
        kept = np.array([feature.null == "keep" for feature in view.features])
        defaulted = (statuses != Status.PRESENT) & ~((statuses == Status.NULL) & kept) & ~refused[:, None]
        statuses[defaulted] |= DEFAULTED
    return Served(values, statuses, refused)


def nulls_of(feature: Feature, column: Array) -> NDArray[np.bool_]:
    """Where a column has no value. Shapes: `[N]`; a value with a shape is null where all of its elements are."""
    if feature.dtype == "bytes":
        return np.fromiter((value is None for value in column.tolist()), np.bool_, len(column))
    if DTYPES[feature.dtype].kind != "f":
        return np.zeros(len(column), dtype=np.bool_)
    missing: NDArray[np.bool_] = np.all(np.isnan(column).reshape(len(column), feature.elements), axis=1)
    return missing


def absent_rows(view: View, count: int, status: Status) -> Found:
    """What is found where nothing is: N rows of one status. Shapes: as `Found`."""
    values = {each.name: np.zeros((count, *each.shape), dtype=DTYPES[each.dtype]) for each in view.features}
    zeros = np.zeros(count, dtype=np.int64)
    return Found(values, np.zeros((count, len(view.features)), np.bool_), np.full(count, status, np.uint8), zeros, zeros)


def default_of(feature: Feature) -> Array:
    """The default as an array of the feature's shape and type."""
    if feature.dtype == "bytes":
        single = np.empty((), dtype=object)
        single[()] = feature.default
        return single
    return np.full(feature.shape, feature.default, dtype=DTYPES[feature.dtype])


def _standing_in(feature: Feature, column: Array, absent: NDArray[np.bool_]) -> Array:
    where = absent.reshape(len(absent), *(1 for _ in feature.shape))
    return np.where(where, default_of(feature), column)
