"""Training sets: for each label the features that serving would have read at its instant. **Pure.**

As known at that instant: an event counts from the later of its own time and the time it became known. No label is dropped,
their order is kept, and where a row is missing or too old the same default stands in as when serving.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import EventError
from feature_client.feature_set import Assembled, FeatureSet
from feature_client.schema import DTYPES, Array, Columns, EventLog, Status
from feature_client.served import Found, absent_rows, nulls_of, serve
from feature_client.view import View
from feature_client.windows import Ints, Rows, codes_of, rows_of


@dataclass(frozen=True)
class History:
    """All rows that a stored view went through, and where each entity's lie.

    `index` has the code of an entity by its join keys' values; its rows are those of `rows` with that code.
    """

    view: View
    rows: Rows
    index: Mapping[tuple[object, ...], int]


def history_of(view: View, events: Columns) -> History:
    """Every row of a stored view. `events`: the columns of its source, in the order of the log.

    Raises: EventError where they are not what the source declares.
    """
    if view.source is None or view.entity is None:
        raise EventError(f"'{view.ref}' is no stored view: it has no history")
    check_events(view.source, events)
    source = view.source
    entity, combinations = codes_of([events[key] for key in view.entity.keys])
    created = events[source.created_time] if source.created_time else events[source.event_time]
    ids = codes_of([events[source.event_id]])[0] if source.event_id else None
    aggregations = {name: each for name, each in view.inputs.items() if not isinstance(each, str)}
    rows = rows_of(entity, events[source.event_time], created, events, aggregations, ids)
    return History(view, rows, {combination: code for code, combination in enumerate(combinations)})


def check_events(source: EventLog, events: Columns) -> None:
    """Raises: EventError for columns that are missing, of another type, or of different lengths."""
    lengths = set()
    for name, dtype in source.columns.items():
        column = events.get(name)
        if column is None:
            raise EventError(f"the event log '{source.name}' has no column '{name}'")
        if column.ndim != 1 or column.dtype != DTYPES[dtype]:
            raise EventError(f"the column '{name}' of '{source.name}' is {column.dtype} {list(column.shape)}, not {dtype} [N]")
        lengths.add(len(column))
    if len(lengths) > 1:
        raise EventError(f"the columns of the event log '{source.name}' have different lengths: {sorted(lengths)}")


def find(history: History, keys: Columns, as_of_us: Ints) -> Found:
    """What a store that was filled by `history` holds at each instant. Shapes: keys `[N]` each, `as_of_us` int64 `[N]`."""
    view, rows = history.view, history.rows
    count = len(as_of_us)
    names = () if view.entity is None else tuple(view.entity.keys)
    lists = [keys[name].tolist() for name in names]
    codes = np.fromiter((history.index.get(each, -1) for each in zip(*lists, strict=True)), np.int64, count)
    at = _last_before(rows, codes, as_of_us)
    there = at >= 0
    if not len(rows.entity):
        return absent_rows(view, count, Status.NOT_FOUND)
    chosen = np.where(there, at, 0)
    used, position = np.unique(chosen, return_inverse=True)  # each row's features once, however many labels read it
    made = view.compute({name: column[used] for name, column in rows.inputs.items()})
    nulls = np.stack([nulls_of(feature, made[feature.name]) for feature in view.features], axis=1)
    values: dict[str, Array] = {name: column[position] for name, column in made.items()}
    status = np.where(there, Status.PRESENT, Status.NOT_FOUND).astype(np.uint8)
    return Found(
        values,
        nulls[position] & there[:, None],
        status,
        np.where(there, rows.event_us[chosen], 0),
        np.where(there, rows.available_us[chosen], 0),
    )


def training_set(
    features: FeatureSet,
    events: Mapping[str, Columns],
    as_of_us: Ints,
    keys: Columns,
    request: Columns | None = None,
) -> Assembled:
    """The features of N labels, in their order.

    `events`: columns by the name of the event log. `keys`: the join keys `[N]`, `request`: what calls bring, `[N]`.
    Raises: EventError, DefinitionError.
    """
    check_labels(features, as_of_us, keys)
    served = {}
    for view in features.stored:
        source = "" if view.source is None else view.source.name
        if source not in events:
            raise EventError(f"no events of '{source}' were given, which '{view.ref}' is computed from")
        served[view.ref] = serve(view, find(history_of(view, events[source]), keys, as_of_us), as_of_us)
    return features.assemble(len(as_of_us), request or {}, {}, served)


def check_labels(features: FeatureSet, as_of_us: Ints, keys: Columns) -> None:
    """Raises: EventError for join keys that are missing, of another type, or not one for each instant."""
    if as_of_us.dtype != np.int64 or as_of_us.ndim != 1:
        raise EventError("the instants of labels must be int64 microseconds, [N]")
    for key, dtype in features.keys.items():
        column = keys.get(key)
        if column is None or column.dtype != DTYPES[dtype] or column.shape != as_of_us.shape:
            raise EventError(f"labels need the join key '{key}': {dtype}, [{len(as_of_us)}]")


def _last_before(rows: Rows, codes: Ints, as_of_us: Ints) -> NDArray[np.int64]:
    """The position of the last row of each entity that was available by an instant, inclusive; -1 where there is none."""
    instants, rank = np.unique(rows.available_us, return_inverse=True)
    packed = rows.entity * (len(instants) + 1) + rank
    until = np.searchsorted(instants, as_of_us, side="right") - 1
    at = np.searchsorted(packed, codes * (len(instants) + 1) + until, side="right") - 1
    known = (codes >= 0) & (until >= 0) & (at >= 0)
    known[known] = rows.entity[at[known]] == codes[known]
    return np.where(known, at, -1)
