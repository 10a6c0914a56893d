"""Training sets: for each label the features that serving would have read at its instant. **Pure.**

As known at that instant: an event counts from the later of its own time and the time it became known. No label is dropped,
their order is kept, and where a row is missing or too old the same default stands in as when serving.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_client.errors import EntityError, EventError
from feature_client.feature_set import Assembled, FeatureSet
from feature_client.keys import MAX_VALUE_BYTES
from feature_client.schema import DTYPES, Array, Columns, EventLog, Status, stray
from feature_client.served import Found, Served, absent_rows, nulls_of, serve
from feature_client.timelines import Ints, Timelines, search
from feature_client.view import View
from feature_client.windows import Rows, codes_of, rows_of

_INSTANT_LIMIT = 2**62


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

    An event without a value of a join key is about no entity. Raises: EventError where events are not what the source declares;
    EntityError for a join key that is too long to be stored: serving would never find what training had.
    """
    if view.source is None or view.entity is None or not view.inputs:
        raise EventError(f"'{view.ref}' is no stored view: it is not computed from events")
    check_events(view.source, events)
    source = view.source
    entity, combinations = codes_of([events[key] for key in view.entity.keys])
    created = events[source.created_time] if source.created_time else events[source.event_time]
    ids = codes_of([events[source.event_id]])[0] if source.event_id else None
    aggregations = {name: each for name, each in view.inputs.items() if not isinstance(each, str)}
    rows = rows_of(entity, events[source.event_time], created, events, aggregations, ids)
    return _of_entities(view, rows, combinations)


def _of_entities(view: View, rows: Rows, combinations: Sequence[tuple[object, ...]]) -> History:
    index = {each: code for code, each in enumerate(combinations) if None not in each}
    if long := next(
        (value for each in index for value in each if isinstance(value, bytes) and len(value) > MAX_VALUE_BYTES), b""
    ):
        raise EntityError(f"a join key of '{view.ref}' has {len(long)} bytes; {MAX_VALUE_BYTES} at most: {long[:20]!r}...")
    if len(index) < len(combinations):
        codes = np.full(len(combinations), -1)
        codes[list(index.values())] = np.arange(len(index))
        kept = codes[rows.entity] >= 0
        inputs = {name: column[kept] for name, column in rows.inputs.items()}
        entity = codes[rows.entity[kept]]
        rows = Rows(entity, rows.event_us[kept], rows.available_us[kept], rows.event[kept], inputs)
        index = {each: code for code, each in enumerate(index)}
    return History(view, rows, index)


def check_events(source: EventLog, events: Columns) -> None:
    """Raises: EventError for columns that are missing, of another type, or of different lengths, and for impossible values."""
    lengths = set()
    for name, dtype in source.columns.items():
        if name not in events:
            raise EventError(f"the event log '{source.name}' has no column '{name}'")
        lengths.add(len(_checked(f"the column '{name}' of the event log '{source.name}'", events[name], dtype)))
    if len(lengths) > 1:
        raise EventError(f"the columns of the event log '{source.name}' have different lengths: {sorted(lengths)}")
    for name in filter(None, (source.event_time, source.created_time)):
        _check_instants(f"the column '{name}' of the event log '{source.name}'", events[name])
    if source.event_id and source.columns[source.event_id] == "bytes" and None in events[source.event_id].tolist():
        raise EventError(f"an event of '{source.name}' has no '{source.event_id}'")


def _checked(what: str, column: Array, dtype: str) -> Array:
    if not isinstance(column, np.ndarray) or column.ndim != 1:
        shape = list(column.shape) if isinstance(column, np.ndarray) else type(column).__name__
        raise EventError(f"{what} is {shape}, not a numpy array [N]")
    if column.dtype != DTYPES[dtype]:
        way = ".astype('datetime64[us]')" if column.dtype.kind == "M" else ""
        way = (
            f"`column{way}.astype(np.{dtype})`" if dtype != "bytes" else "make it an array of objects: bytes, text as its UTF-8"
        )
        raise EventError(f"{what} is {column.dtype}, not {dtype}; {way}, or let `columns.from_arrow` convert it")
    if (at := stray(column)) is not None:
        raise EventError(f"{what} has {type(column[at]).__name__} in row {at}, not bytes or None: text is given as its UTF-8")
    return column


def _check_instants(what: str, instants: Ints) -> None:
    # half of int64, so that differences and windows fit; NaT, which becomes the least int64, is none of these
    if len(wrong := np.flatnonzero((instants <= -_INSTANT_LIMIT) | (instants >= _INSTANT_LIMIT))):
        raise EventError(f"{what} has {instants[wrong[0]]} in row {wrong[0]}, which is no instant (NaT?)")


def find(history: History, keys: Columns, as_of_us: Ints) -> Found:
    """What a store that was filled by `history` holds at each instant. Shapes: keys `[N]` each, `as_of_us` int64 `[N]`."""
    view, rows = history.view, history.rows
    count = len(as_of_us)
    if not len(rows.entity) or not count:
        return absent_rows(view, count, Status.NOT_FOUND)
    wanted, combinations = codes_of([keys[name] for name in (view.entity.keys if view.entity else ())])
    codes = np.fromiter((history.index.get(each, -1) for each in combinations), np.int64, len(combinations))[wanted]
    at = _last_before(rows, codes, as_of_us)
    there = at >= 0
    chosen = np.where(there, at, 0)
    # no row's features more than once, however many labels read it, and of no more rows than there are labels
    few = count < len(rows.entity)
    made = view.compute({name: column[chosen] for name, column in rows.inputs.items()} if few else rows.inputs)
    nulls = np.stack([nulls_of(feature, made[feature.name]) for feature in view.features], axis=1)
    if not few:
        made, nulls = {name: column[chosen] for name, column in made.items()}, nulls[chosen]
    return Found(
        made,
        nulls & there[:, None],
        np.where(there, Status.PRESENT, Status.NOT_FOUND).astype(np.uint8),
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
    served = _served(features, events, as_of_us, keys)
    return features.assemble(len(as_of_us), request or {}, {}, served)


def fitted(
    views: Sequence[View],
    events: Mapping[str, Columns],
    as_of_us: Ints,
    keys: Columns,
    request: Columns | None = None,
) -> FeatureSet:
    """The views, with the states that `fit` of the model views learns from the rows of these labels.

    Each is given its inputs as serving would give them, of model views it takes those that are learnt already. The result is
    what `training_set` and `write_contract` take. Raises: as `training_set`; DefinitionError for what is no state; whatever
    `fit` raises.
    """
    every, states = FeatureSet(views), dict[str, Columns]()
    served = _served(every, events, as_of_us, keys)
    rows, brought = len(as_of_us), request or {}
    for place, view in enumerate(every.computed):
        if view.fit is not None:
            before = FeatureSet([*every.stored, *every.computed[:place]], states)
            values = before.assemble(rows, brought, {}, served).values
            states[view.ref] = view.fit(**every.inputs_of(view, rows, brought, values))
    return FeatureSet(views, states)


def _served(features: FeatureSet, events: Mapping[str, Columns], as_of_us: Ints, keys: Columns) -> dict[str, Served]:
    check_labels(features, as_of_us, keys)
    served = {}
    for view in features.stored:
        source = "" if view.source is None else view.source.name
        if source not in events:
            raise EventError(f"no events of '{source}' were given, which '{view.ref}' is computed from")
        served[view.ref] = serve(view, find(history_of(view, events[source]), keys, as_of_us), as_of_us)
    return served


def check_labels(features: FeatureSet, as_of_us: Ints, keys: Columns) -> None:
    """Raises: EventError for join keys that are missing, of another type, or not one for each instant.

    A key of None is one that no event has: its rows are NOT_FOUND.
    """
    _check_instants("the instants of labels", _checked("the instants of labels", as_of_us, "int64"))
    for key, dtype in features.keys.items():
        if key not in keys or len(_checked(f"the join key '{key}' of labels", keys[key], dtype)) != len(as_of_us):
            raise EventError(f"labels need the join key '{key}': {dtype}, [{len(as_of_us)}]")


def _last_before(rows: Rows, codes: Ints, as_of_us: Ints) -> Ints:
    """The position of the last row of each entity that was available by an instant, inclusive; -1 where there is none."""
    timelines = Timelines(rows.entity, rows.available_us)
    at = search(timelines.pack(rows.entity, rows.available_us), timelines.pack(codes, as_of_us)) - 1
    known = (codes >= 0) & (at >= 0)
    known[known] = rows.entity[at[known]] == codes[known]
    return np.where(known, at, -1)
