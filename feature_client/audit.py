"""Whether what was served is what the training path makes of the event log: bit for bit, feature by feature. **Pure.**

Two questions, kept apart. *Skew*: given the row that was served, and the instant from which it was known, are the values and
statuses those that a training set has? *Lag*: did the log know a newer row by then than the one that was served? Lag is how
fast rows come to the store, and is in no value's bits; skew is a mistake.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import EventError
from feature_client.feature_set import Assembled, FeatureSet
from feature_client.golden_rows import ulps_apart, unequal
from feature_client.point_in_time import History, find, history_of
from feature_client.samples import Sampled
from feature_client.schema import DTYPES, Columns, Status
from feature_client.served import Found, Served, serve
from feature_client.timelines import Ints
from feature_client.view import View
from feature_client.windows import Rows

_RANK = 0x7F
_NEVER, _EVER = 2**62, -(2**62)
"""Instants after and before all others, far enough from the ends of int64 to be subtracted from."""
_UNANSWERED = (Status.TIMEOUT, Status.FP_MISMATCH)
_ABSENT = (Status.NOT_FOUND, *_UNANSWERED)


@dataclass(frozen=True)
class Example:
    """One value that differs. `known_us`: from when on the row was known that it came from, 0 where there was none.

    `ulps`: how many floats lie between the two, None where that is no number. Statuses are as they were served.
    """

    origin: str
    keys: dict[str, Any]
    as_of_us: int
    known_us: int
    served: Any
    recomputed: Any
    ulps: int | None
    served_status: int
    recomputed_status: int


@dataclass
class FeatureAudit:
    """One feature of one origin: rows compared, rows that differ in a bit or a status, and the first of them.

    All NaNs are one: which of them an operation gives is not for definitions to say.
    """

    origin: str
    view: str
    feature: str
    rows: int = 0
    mismatches: int = 0
    example: Example | None = None


@dataclass
class AuditReport:
    """What an audit found. Rows are rows of samples; a row of a model has a row of each stored view that was read.

    `unanswered`: rows with a value that the store did not bring (in time, or undamaged); their defaults are compared all the
    same. `reads`: rows of stored views that were compared. `delays_us`: for each of them that the log knew a newer row for, how
    long it had known the first newer one; `ahead_us`: for each that was known only after the instant it was served as of, by
    how much. `unknown`: served rows that the log never made. `max_lag_us`: beyond which delays are mismatches, None never.
    """

    max_lag_us: int | None = None
    rows: int = 0
    unanswered: int = 0
    reads: int = 0
    unknown: int = 0
    features: list[FeatureAudit] = field(default_factory=list)
    delays_us: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    ahead_us: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def too_late(self) -> int:
        """How many rows of stored views were further from their instant than the limit allows, behind or ahead."""
        if self.max_lag_us is None:
            return 0
        return int((self.delays_us > self.max_lag_us).sum() + (self.ahead_us > self.max_lag_us).sum())

    @property
    def mismatches(self) -> int:
        """All that is wrong: values, rows that the log never made, delays beyond the limit."""
        return sum(each.mismatches for each in self.features) + self.unknown + self.too_late


def audit(
    samples: Iterable[Sampled],
    feature_sets: Mapping[str, FeatureSet],
    events: Mapping[str, Columns],
    max_lag_us: int | None = None,
) -> AuditReport:
    """Recompute what was served. `feature_sets`: by origin, with the states of that version; `events`: by event log.

    Raises: EventError for samples of an unknown origin or of other views than its own, and for logs that are missing or lack
    columns; DefinitionError.
    """
    histories: dict[str, History] = {}
    for features in feature_sets.values():
        for view in features.stored:
            source = "" if view.source is None else view.source.name
            if source not in events:
                raise EventError(f"no events of '{source}' were given, which '{view.ref}' is computed from")
            if view.ref not in histories:
                histories[view.ref] = history_of(view, events[source])
    report = AuditReport(max_lag_us)
    found: dict[tuple[str, str], FeatureAudit] = {}
    for sampled in _joined(samples):
        features = _features_of(sampled, feature_sets)
        _compare(report, found, sampled, features, _recomputed(report, sampled, features, histories))
    report.features = list(found.values())
    return report


def _joined(samples: Iterable[Sampled]) -> Iterable[Sampled]:
    """Samples with the same columns as one: recomputing costs by call, not by row."""
    alike: defaultdict[object, list[Sampled]] = defaultdict(list)
    for each in samples:
        parts = (each.keys, each.request, each.values, each.statuses, each.available_us)
        shapes = tuple(tuple((name, column.dtype.str, column.shape[1:]) for name, column in part.items()) for part in parts)
        alike[each.origin, each.views, each.given, shapes].append(each)
    for group in alike.values():
        first = group[0]
        as_of_us = np.concatenate([each.as_of_us for each in group])
        keys, request, values, statuses, available_us = (
            {name: np.concatenate([getattr(each, part)[name] for each in group]) for name in getattr(first, part)}
            for part in ("keys", "request", "values", "statuses", "available_us")
        )
        yield Sampled(first.origin, first.views, as_of_us, keys, request, values, statuses, available_us, first.given)


def _features_of(sampled: Sampled, feature_sets: Mapping[str, FeatureSet]) -> FeatureSet:
    features = feature_sets.get(sampled.origin)
    if features is None:
        raise EventError(f"there are samples of '{sampled.origin}', but no views of it; there are: {', '.join(feature_sets)}")
    wanted = {view.ref for view in features.views}
    if wanted != set(sampled.views):
        other = ", ".join(sorted(wanted ^ set(sampled.views)))
        raise EventError(f"the samples of '{sampled.origin}' are of other views than were given for it: {other}")
    for view in features.stored:
        for key, dtype in ({} if view.entity is None or view.ref not in sampled.available_us else view.entity.keys).items():
            if key not in sampled.keys or sampled.keys[key].dtype != DTYPES[dtype]:
                raise EventError(f"the samples of '{sampled.origin}' lack the join key '{key}' ({dtype}) of '{view.ref}'")
    for name, feature in features.features.items():
        column = sampled.values.get(name)
        if column is None or column.dtype != DTYPES[feature.dtype] or column.shape[1:] != feature.shape:
            raise EventError(f"the samples of '{sampled.origin}' lack '{name}' ({feature.dtype} {list(feature.shape)})")
        if name not in sampled.statuses:
            raise EventError(f"the samples of '{sampled.origin}' lack the statuses of '{name}'")
    return features


def _recomputed(report: AuditReport, sampled: Sampled, features: FeatureSet, histories: Mapping[str, History]) -> Assembled:
    count = len(sampled.as_of_us)
    served: dict[str, Served] = {}
    unanswered = np.zeros(count, np.bool_)
    for view in features.stored:
        asked = [name for name in view.names if name not in sampled.given]
        if view.ref not in sampled.available_us or not asked:
            continue
        # where there is no row, all features of the view have its status; where there is one, none has such a status
        rank = sampled.statuses[asked[0]] & _RANK
        absent, unanswered_here = np.isin(rank, _ABSENT), np.isin(rank, _UNANSWERED)
        unanswered |= unanswered_here
        known_us = np.where(absent, _EVER, sampled.available_us[view.ref])
        found = find(histories[view.ref], sampled.keys, known_us)
        report.unknown += int((~absent & (found.available_us != known_us)).sum())
        report.reads += count
        _measure(report, histories[view.ref], sampled, known_us, ~unanswered_here)
        row_status = np.where(absent, rank, found.row_status)
        found = Found(found.values, found.nulls, row_status, found.event_us, found.available_us)
        served[view.ref] = serve(view, found, sampled.as_of_us)
    report.rows += count
    report.unanswered += int(unanswered.sum())
    given = {name: sampled.values[name] for name in sampled.given}
    return features.assemble(count, sampled.request, given, served)


def _measure(report: AuditReport, history: History, sampled: Sampled, known_us: Ints, answered: NDArray[np.bool_]) -> None:
    """How far rows were behind the log, or ahead of the instant that they were asked for."""
    view, rows, as_of_us = history.view, history.rows, sampled.as_of_us
    report.ahead_us = np.concatenate([report.ahead_us, (known_us - as_of_us)[answered & (known_us > as_of_us)]])
    names = () if view.entity is None else tuple(view.entity.keys)
    lists = [sampled.keys[name].tolist() for name in names]
    codes = np.fromiter((history.index.get(each, -1) for each in zip(*lists, strict=True)), np.int64, len(as_of_us))
    newer_us = _first_after(rows, codes, known_us)
    behind = np.flatnonzero(answered & (newer_us <= as_of_us))
    if view.max_age_us:
        # the store forgets a row that is too old to be served: that it has none then is no delay
        there = find(history, {name: sampled.keys[name][behind] for name in names}, as_of_us[behind])
        behind = behind[(known_us[behind] != _EVER) | (as_of_us[behind] - there.event_us <= view.max_age_us)]
    report.delays_us = np.concatenate([report.delays_us, as_of_us[behind] - newer_us[behind]])


def _first_after(rows: Rows, codes: Ints, after_us: Ints) -> Ints:
    """From when on the first row of each entity was available that came after an instant."""
    if not len(rows.entity):
        return np.full(len(codes), _NEVER)
    instants, rank = np.unique(rows.available_us, return_inverse=True)
    packed = rows.entity * (len(instants) + 1) + rank
    wanted = codes * (len(instants) + 1) + np.searchsorted(instants, after_us, side="right")
    at = np.minimum(np.searchsorted(packed, wanted, side="left"), len(packed) - 1)
    there = (rows.entity[at] == codes) & (packed[at] >= wanted)
    return np.where(there, rows.available_us[at], _NEVER)


def _compare(
    report: AuditReport,
    found: dict[tuple[str, str], FeatureAudit],
    sampled: Sampled,
    features: FeatureSet,
    recomputed: Assembled,
) -> None:
    for name, view in features.view_of.items():
        if name in sampled.given:
            continue
        result = found.setdefault((sampled.origin, name), FeatureAudit(sampled.origin, view.ref, name))
        result.rows += len(sampled.as_of_us)
        served, made = sampled.statuses[name], recomputed.statuses[name]
        # whether a default stands in for what came too late is the server's to say, not the definition's
        timed_out = served & _RANK == Status.TIMEOUT
        other_status = np.where(timed_out, (served ^ made) & _RANK, served ^ made) != 0
        differs = np.flatnonzero(other_status | unequal(sampled.values[name], recomputed.values[name]))
        result.mismatches += len(differs)
        if len(differs) and result.example is None:
            result.example = _example(sampled, view, name, recomputed, int(differs[0]))


def _example(sampled: Sampled, view: View, name: str, recomputed: Assembled, row: int) -> Example:
    mine, its = sampled.values[name][row : row + 1], recomputed.values[name][row : row + 1]
    return Example(
        sampled.origin,
        {key: column[row : row + 1].tolist()[0] for key, column in sampled.keys.items()},
        int(sampled.as_of_us[row]),
        int(sampled.available_us[view.ref][row]) if view.ref in sampled.available_us else 0,
        mine.tolist()[0],
        its.tolist()[0],
        ulps_apart(mine, its)[0] if mine.dtype.kind == "f" else None,
        int(sampled.statuses[name][row]),
        int(recomputed.statuses[name][row]),
    )
