"""Compute a batch so that a row whose features cannot be computed fails alone. **Pure.**

A view's function can only say "these rows failed". So failed rows are halved until the one at fault stands by itself. What a
view may do is row by row, so its neighbours get what they would have got together with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_client.feature_set import Assembled, FeatureSet
from feature_client.schema import DTYPES, Columns, Status
from feature_client.served import Served, default_of


@dataclass(frozen=True)
class Given:
    """All that the features of N rows are made of, as `FeatureSet.assemble` takes it."""

    rows: int
    request: Columns
    given: Columns
    stored: Mapping[str, Served]

    def cut(self, first: int, last: int) -> "Given":
        """Some of the rows. Ownership: views of the same arrays."""
        return Given(
            last - first,
            {name: column[first:last] for name, column in self.request.items()},
            {name: column[first:last] for name, column in self.given.items()},
            {
                ref: Served(
                    {name: column[first:last] for name, column in each.values.items()},
                    each.statuses[first:last],
                    each.refused[first:last],
                )
                for ref, each in self.stored.items()
            },
        )


@dataclass(frozen=True)
class Computed:
    """`failed` bool `[N]`: rows that could not be computed; they are refused, and have defaults. `error`: why the first."""

    features: Assembled
    failed: NDArray[np.bool_]
    error: Exception | None


def compute(views: FeatureSet, rows: Given) -> Computed:
    """Every feature of every row that has any. Whatever the functions raise is in `error`."""
    try:
        made = views.assemble(rows.rows, rows.request, rows.given, rows.stored)
        return Computed(made, np.zeros(rows.rows, dtype=np.bool_), None)
    except Exception as error:  # noqa: BLE001 - definitions are other people's code: what they raise concerns their rows only
        # its traceback leads to this frame, which has it: a circle that would hold the batch until a collection
        failure = error.with_traceback(None)
    if rows.rows == 1:
        return Computed(_defaults(views), np.ones(1, dtype=np.bool_), failure)
    middle = rows.rows // 2
    halves = [compute(views, rows.cut(0, middle)), compute(views, rows.cut(middle, rows.rows))]
    parts = [each.features for each in halves]
    features = Assembled(
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        {name: np.concatenate([part.statuses[name] for part in parts]) for name in parts[0].statuses},
        np.concatenate([part.refused for part in parts]),
    )
    return Computed(features, np.concatenate([each.failed for each in halves]), halves[0].error or halves[1].error or failure)


def _defaults(views: FeatureSet) -> Assembled:
    values = {}
    for name, feature in views.features.items():
        values[name] = np.empty((1, *feature.shape), dtype=DTYPES[feature.dtype])
        values[name][...] = default_of(feature)
    statuses = {name: np.full(1, Status.NULL, np.uint8) for name in views.features}
    return Assembled(values, statuses, np.ones(1, dtype=np.bool_))
