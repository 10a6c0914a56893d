"""From rows as they were found to values as they are served: what is missing, stale or null, and what stands in. **Pure.**

Training and serving call the same function here, so a model is trained on the defaults that it will be served.
"""

from dataclasses import dataclass
from functools import lru_cache

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
    statuses = _judged(view, found, now_us)
    refused = np.zeros(len(statuses), dtype=np.bool_)
    absent = statuses != Status.PRESENT
    # most batches are whole: then nothing below costs a thing per feature
    if not absent.any():
        return Served(dict(found.values), statuses, refused)
    kept = np.array([feature.null == "keep" for feature in view.features])
    absent &= ~((statuses == Status.NULL) & kept)
    values = dict(found.values)
    for index in np.flatnonzero(absent.any(axis=0)).tolist():
        feature = view.features[index]
        values[feature.name] = np.ascontiguousarray(_standing_in(feature, found.values[feature.name], absent[:, index]))
    refused |= (statuses == Status.FP_MISMATCH).any(axis=1)
    for status, fails in (
        (Status.NOT_FOUND, view.on_missing == "fail"),
        (Status.STALE, view.on_stale == "fail"),
        (Status.TIMEOUT, fail_on_timeout),
    ):
        if fails:
            refused |= (statuses == status).any(axis=1)
    statuses[absent & ~refused[:, None]] |= DEFAULTED
    return Served(values, statuses, refused)


def _judged(view: View, found: Found, now_us: int | NDArray[np.int64]) -> Statuses:
    """What is known of each value, before anything stands in. Shapes: `[N, F]`."""
    statuses = np.repeat(found.row_status[:, None], len(view.features), axis=1)
    here = (found.row_status == Status.PRESENT)[:, None]
    if found.nulls.any():
        statuses[here & found.nulls] = Status.NULL
    limits = _age_limits(view)
    age_us = np.asarray(now_us - found.event_us)
    if age_us.size and age_us.max() > limits.min():
        statuses[here & (age_us[:, None] > limits)] = Status.STALE
    if found.missing is not None:
        statuses[here & found.missing] = Status.NOT_FOUND
    return statuses


@lru_cache(maxsize=1024)
def _age_limits(view: View) -> NDArray[np.int64]:
    """How old each feature's row may be; more than any age where it may have any. Shapes: `[F]`."""
    limits = [[limit for limit in (each.max_age_us, view.max_age_us) if limit] for each in view.features]
    return np.array([min(each, default=np.iinfo(np.int64).max) for each in limits], dtype=np.int64)


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
