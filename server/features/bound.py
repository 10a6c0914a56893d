"""The features of one version in service: found, computed and bound for whole batches.

Floor 2, on the engine's threads: a cost per batch, not per request. Its parts are pure (`needed`, `columns`, `apart`); this
file has the order they go in, the clock, the store and the log.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feature_client.errors import FeatureError
from feature_client.feast import FeastReader
from feature_client.feast_view import FeastView
from feature_client.feature_set import Assembled
from feature_client.reader import Reader, Wanted
from feature_client.samples import Sampled, SampleWriter
from feature_client.schema import Columns, Status
from feature_client.served import Found, absent_rows, serve
from feature_client.view import View
from server.core.errors import FeaturesUnavailable
from server.core.signature import Signature
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.features.apart import Computed, Given, compute
from server.features.binding import Binding
from server.features.columns import given, key_columns, keys_of, model_inputs, scalars, stated
from server.features.counts import Counts
from server.features.feast_rows import read_feast
from server.features.interface import Joined
from server.features.needed import Needed, needed

_log = logging.getLogger("podium.features")
KEPT_SETS = 256
"""Sets of input names whose needs are remembered; callers choose them, so they are bounded."""


@dataclass(frozen=True)
class Supply:
    """What all versions of a server share. `now_us`: the wall clock, in microseconds since 1970."""

    reader: Reader
    project: str
    now_us: Callable[[], int]
    sampler: SampleWriter | None = None
    feast: FeastReader | None = None


class Bound:
    """Implements `Features`. Ownership: of nothing; what it reads from is the server's.

    `stamps`: for each stored view, what its rows must be stamped with. `counts`: where its values are counted.
    """

    def __init__(
        self,
        key: VersionKey,
        binding: Binding,
        supply: Supply,
        stamps: Mapping[str, int],
        counts: Counts,
        *,
        fail_on_timeout: bool = False,
    ) -> None:
        self.signature: Signature = binding.signature
        self.names = binding.names
        self._key = key
        self._binding = binding
        self._supply = supply
        self._stamps = stamps
        self._fail_on_timeout = fail_on_timeout
        self._counter = counts.counter(binding.features.view_of, self.names)
        self._known: dict[frozenset[str], Needed] = {}
        self._lock = threading.Lock()
        self._told = False
        # what Feast computed cannot be computed again: samples of it would prove nothing
        self._audited = not any(isinstance(view, FeastView) for view in binding.features.stored)

    def check(self, given: frozenset[str]) -> None:
        """Raises: InvalidRequest, with what is missing and what could be given in its place."""
        self._needed(given)

    def join(self, inputs: Mapping[str, Array], rows: int, budget_s: float) -> Joined:
        """See `Features.join`. A single row that cannot be computed raises; among others it is refused."""
        wanted, binding = self._needed(frozenset(inputs)), self._binding
        views = wanted.views
        stated = binding.as_of in inputs
        now_us: int | NDArray[np.int64] = scalars(inputs[binding.as_of], rows) if stated else self._supply.now_us()
        keys = key_columns(inputs, binding, views.keys, rows)
        # what is remembered was true a moment ago; who asks for an instant wants what the store says
        found = self._find(views.stored, keys, rows, budget_s, remembered=not stated)
        served = {
            view.ref: serve(view, found[view.ref], now_us, fail_on_timeout=self._fail_on_timeout) for view in views.stored
        }
        brought = Given(
            rows,
            {name: scalars(inputs[name], rows) for name in views.request},
            {name: given(inputs, views.features[name], rows) for name in wanted.given},
            served,
        )
        computed = compute(views, brought)
        if computed.error is not None:
            self._tell(computed, rows)
        features = computed.features
        statuses = np.full((len(self.names), rows), Status.GIVEN, dtype=np.uint8)
        for index, name in enumerate(self.names):
            if name in features.statuses:
                statuses[index] = features.statuses[name]
        self._counter.add(statuses)
        if self._supply.sampler is not None and views.views and self._audited:
            sampled = self._sampled(inputs, brought, features, keys, found, now_us)
            # nobody was served a row that could not be computed, nor could it be computed again
            self._supply.sampler.offer(sampled if computed.error is None else sampled.part(np.flatnonzero(~computed.failed)))
        bound = model_inputs(inputs, binding, features.values, rows)
        return Joined(bound, np.ascontiguousarray(statuses.T), features.refused)

    def _needed(self, names: frozenset[str]) -> Needed:
        known = self._known.get(names)
        if known is None:
            known = needed(self._binding, names)
            with self._lock:
                if len(self._known) >= KEPT_SETS:
                    self._known.pop(next(iter(self._known)))
                self._known[names] = known
        return known

    def _find(self, views: Sequence[View], keys: Columns, rows: int, budget_s: float, *, remembered: bool) -> dict[str, Found]:
        """The rows of every stored view, in one round trip, and one for each of Feast's.

        What can be no entity is not found, and fails no other.
        """
        asked: list[Wanted] = []
        wrong: dict[str, list[int]] = {}
        of_feast: dict[str, Found] = {}
        until_s = time.monotonic() + budget_s
        for view in views:
            own = {} if view.entity is None else {key: keys[key] for key in view.entity.keys}
            if isinstance(view, FeastView) and self._supply.feast is not None:
                of_feast[view.ref] = read_feast(self._supply.feast, view, own, rows, until_s - time.monotonic())
                continue
            row_keys, wrong[view.ref] = keys_of(self._supply.project, view, own)
            if row_keys:
                asked.append(Wanted(view, self._stamps[view.ref], row_keys))
        left_s = until_s - time.monotonic() if of_feast else budget_s
        answers = self._supply.reader.read(asked, left_s, remembered=remembered) if asked else []
        found = of_feast | {each.view.ref: answer for each, answer in zip(asked, answers, strict=True)}
        for view in views:
            if view.ref in of_feast:
                continue
            if view.ref not in found:
                found[view.ref] = absent_rows(view, rows, Status.NOT_FOUND)
            elif wrong[view.ref]:
                status = found[view.ref].row_status.copy()
                status[wrong[view.ref]] = Status.NOT_FOUND
                found[view.ref] = replace(found[view.ref], row_status=status)
        return found

    def _tell(self, computed: Computed, rows: int) -> None:
        """Say once a load that a definition fails; a single row says so to its caller. Raises: FeaturesUnavailable."""
        error = computed.error
        if not self._told:
            self._told = True
            failed = int(computed.failed.sum())
            text = f"{type(error).__name__}: {error}"
            _log.error("features cannot be computed", extra={"model": str(self._key), "rows": failed, "reason": text})
        if rows == 1:
            # what other people's code raises is for the log: its text may hold another caller's values
            why = str(error) if isinstance(error, FeatureError) else type(error).__name__
            raise FeaturesUnavailable(f"the features of '{self._key.model}' cannot be computed: {why}")

    def _sampled(
        self,
        inputs: Mapping[str, Array],
        brought: Given,
        made: Assembled,
        keys: Columns,
        found: Mapping[str, Found],
        now_us: int | NDArray[np.int64],
    ) -> Sampled:
        """What was served, as features of all views: those that nobody computed count as the call's own."""
        rows, every = brought.rows, self._binding.features
        own = {
            name: stated(inputs, self._binding, each, rows) for name, each in every.features.items() if name not in made.values
        }
        return Sampled(
            origin=str(self._key),
            views=tuple(view.ref for view in every.views),
            as_of_us=np.broadcast_to(np.asarray(now_us, dtype=np.int64), (rows,)),
            keys=keys,
            request={name: column for name, column in brought.request.items() if name not in every.features},
            values={**made.values, **own},
            statuses={**made.statuses, **{name: np.full(rows, Status.GIVEN, np.uint8) for name in own}},
            available_us={ref: each.available_us for ref, each in found.items()},
            given=tuple(name for name in self.names if name in own or name in brought.given),
        )
