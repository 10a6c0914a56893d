"""Samples at the completion of a batch: chosen, copied, and offered to every sink.

Floor 4, called on the engines' threads once a batch has been answered: a cost per batch, after the answers have left. Nothing
here waits, and nothing is done for each request.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_US
from server.core.monitoring_settings import ModelMonitoring
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.choose import chosen, draws
from server.monitoring.lane import Lane
from server.monitoring.pace import Pace
from server.monitoring.reading import SamplingReading
from server.monitoring.samples import Samples

_ROW_BYTES = 56
"""Of a sample, beside its columns."""
_SHAPES = 1024
"""Shapes of columns that are remembered; callers choose free dimensions."""


@dataclass(slots=True)
class Served:
    """Requests of one batch that were executed together.

    Shapes: B requests with N rows. `spans` int64 `[B + 1]`: request i owns rows from `spans[i] - spans[0]` up to
    `spans[i + 1] - spans[0]` of `inputs`, `callers`, `outputs` (all `[>= N, ...]`) and `statuses` `[N, F]`; `answered` bool
    `[B]`. `inputs`: what the backend was given; `callers`: what was brought beside that. Ownership: only read, and not kept.
    """

    spans: NDArray[np.int64]
    id_hashes: NDArray[np.uint64]
    arrival_ns: NDArray[np.int64]
    answered: NDArray[np.bool_]
    inputs: Mapping[str, Array]
    callers: Mapping[str, Array]
    outputs: Mapping[str, Array]
    statuses: NDArray[np.uint8] | None
    taken_ns: int
    execute_ns: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How one version is sampled now: in which arm, under which split, by which settings. `features`: in statuses' order."""

    arm: str
    epoch: int
    weight: float
    settings: ModelMonitoring
    features: tuple[str, ...] = ()


@dataclass(slots=True)
class _Source:
    """One version in one arm, for as long as the process lives. `lock` guards `pace`."""

    plan: Plan
    pace: Pace
    lock: threading.Lock = field(default_factory=threading.Lock)
    sampled: dict[tuple[str, tuple[int, ...]], bool] = field(default_factory=dict)

    def columns(self, arrays: Mapping[str, Array], rows: NDArray[np.intp]) -> tuple[dict[str, Array], int]:
        """Copies of these rows of everything that is sampled, and their bytes."""
        made: dict[str, Array] = {}
        nbytes = 0
        for name, array in arrays.items():
            shape = (name, array.shape[1:])
            wanted = self.sampled.get(shape)
            if wanted is None:
                settings = self.plan.settings
                wanted = name not in settings.ignore and prod(shape[1]) <= settings.max_elements
                if len(self.sampled) < _SHAPES:
                    self.sampled[shape] = wanted
            if wanted:
                made[name] = own = array.take(rows, axis=0)
                nbytes += own.nbytes
                if own.dtype == object:
                    nbytes += sum(map(len, own.ravel().tolist()))
        return made, nbytes


class Sampler:
    """Thread-safe. Ownership: of the lanes, which lead to the sinks. `wall_us`: microseconds since 1970."""

    def __init__(
        self,
        seed: int,
        lanes: Sequence[Lane],
        now_ns: Callable[[], int] = time.monotonic_ns,
        wall_us: Callable[[], int] = lambda: time.time_ns() // NS_PER_US,
    ) -> None:
        self._seed = seed
        self._lanes = tuple(lanes)
        self._now_ns, self._wall_us = now_ns, wall_us
        self._sources: dict[tuple[VersionKey, str], _Source] = {}
        self._current: Mapping[VersionKey, _Source] = {}

    def follow(self, plans: Mapping[VersionKey, Plan]) -> None:
        """What is served from now on, and how it is sampled. Called by one thread."""
        current = {}
        for key, plan in plans.items():
            before = self._sources.get((key, plan.arm))
            pace = (
                Pace(plan.settings, self._now_ns()) if before is None or before.plan.settings != plan.settings else before.pace
            )
            if before is not None:
                pace.offered = before.pace.offered
            if before is None or before.plan != plan:
                self._sources = {**self._sources, (key, plan.arm): _Source(plan, pace)}
            current[key] = self._sources[key, plan.arm]
        self._current = current

    def wants(self, key: VersionKey) -> bool:
        """Whether any of a version's requests may be sampled."""
        return key in self._current

    def offer(self, key: VersionKey, served: Served) -> None:
        """Sample requests that were answered."""
        source = self._current.get(key)
        if source is None:
            return
        now_ns, spans = self._now_ns(), served.spans
        with source.lock:
            rate = source.pace.served(int(spans[-1] - spans[0]), now_ns)
        picked = chosen(draws(served.id_hashes, served.arrival_ns, self._seed), rate)
        picked &= served.answered
        requests = picked.nonzero()[0]
        if not len(requests):
            return
        owners, rows, numbers = rows_of(requests, spans)
        with source.lock:
            room = source.pace.take(len(rows), now_ns)
        if room < len(rows):
            for lane in self._lanes:
                lane.lose(key, source.plan.arm, len(rows) - room, self._wall_us(), "budget")
            owners, rows, numbers = owners[:room], rows[:room], numbers[:room]
        if room:
            samples, nbytes = self._copied(key, source, served, (owners, rows, numbers), rate)
            for lane in self._lanes:
                lane.offer(samples, room, nbytes)

    def _copied(
        self,
        key: VersionKey,
        source: _Source,
        served: Served,
        where: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]],
        rate: float,
    ) -> tuple[Samples, int]:
        owners, rows, numbers = where
        plan, count = source.plan, len(rows)
        time_us = _same(count, self._wall_us())
        stated = plan.settings.time_input
        if stated:
            array = served.callers.get(stated, served.inputs.get(stated))
            if array is not None and array.dtype == np.int64 and array.size == len(array):
                time_us = array.reshape(-1)[rows].astype(np.int64)
        inclusion = np.empty(count)
        inclusion.fill(rate)  # np.full takes twice as long
        inputs, inputs_bytes = source.columns(served.inputs, rows)
        callers, callers_bytes = source.columns(served.callers, rows)
        outputs, outputs_bytes = source.columns(served.outputs, rows)
        samples = Samples(
            key=key,
            arm=plan.arm,
            epoch=plan.epoch,
            weight=plan.weight,
            time_us=time_us,
            id_hash=served.id_hashes.take(owners),
            row=numbers,
            inclusion=inclusion,
            queue_us=(served.taken_ns - served.arrival_ns.take(owners)) // NS_PER_US,
            execute_us=_same(count, served.execute_ns // NS_PER_US),
            inputs=inputs,
            callers=callers,
            outputs=outputs,
            features=plan.features if served.statuses is not None else (),
            statuses=np.empty((count, 0), dtype=np.uint8) if served.statuses is None else served.statuses.take(rows, axis=0),
        )
        return samples, count * _ROW_BYTES + inputs_bytes + callers_bytes + outputs_bytes

    def reading(self) -> SamplingReading:
        """Counts since the process started."""
        sources = self._sources
        dropped: dict[tuple[str, str], int] = {}
        written, waiting = {}, {}
        for lane in self._lanes:
            written[lane.name], waiting[lane.name], lost = lane.counts()
            dropped |= {(lane.name, reason): rows for reason, rows in lost.items()}
        return SamplingReading(
            offered={name: source.pace.offered for name, source in sources.items()},
            rates={name: source.pace.rate for name, source in sources.items() if self._current.get(name[0]) is source},
            dropped=dropped,
            written=written,
            waiting=waiting,
        )

    def lag_s(self) -> float:
        """How long the oldest sample has waited for its sink."""
        return max((lane.lag_s() for lane in self._lanes), default=0.0)

    def close(self) -> None:
        """Hand over what waits, and close every sink. Idempotent."""
        for lane in self._lanes:
            lane.close()


def _same(count: int, value: int) -> NDArray[np.int64]:
    made = np.empty(count, dtype=np.int64)
    made.fill(value)
    return made


def rows_of(
    requests: NDArray[np.intp], spans: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """The rows that some requests own: for each its request, its place from the first row on, and its number in its request.

    >>> [part.tolist() for part in rows_of(np.array([0, 2]), np.array([4, 6, 9, 10]))]
    [[0, 0, 2], [0, 1, 5], [0, 1, 0]]
    """
    if int(spans[-1] - spans[0]) == len(spans) - 1:  # a request has at least one row: each has just one
        return requests, requests, np.zeros(len(requests), dtype=np.int32)
    starts, counts = spans[requests] - spans[0], spans[requests + 1] - spans[requests]
    owners = np.repeat(requests, counts)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, np.repeat(starts, counts) + numbers, numbers.astype(np.int32)
