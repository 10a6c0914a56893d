"""Samples at the completion of batches: chosen, copied, and offered to every sink.

Floor 4, called on the engines' threads once a batch has been answered: a cost per batch, after the answers have left. Nothing
here waits, and nothing is done for each request. Small batches are held until there are enough of them: choosing costs about as
much among a thousand requests as among ten.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from server.core.clock import NS_PER_US
from server.core.monitoring_settings import ModelMonitoring
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.monitoring.choose import chosen, draws
from server.monitoring.lane import Lane
from server.monitoring.pace import Pace
from server.monitoring.picked import Held, Served, Stamp, copied
from server.monitoring.reading import SamplingReading

_log = logging.getLogger("podium.monitoring")
_SHAPES = 1024
"""Shapes of columns that are remembered; callers choose free dimensions."""
HELD_ROWS, HELD_BYTES = 4096, 2**20
"""Rows that are held before it is chosen among them, and their bytes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one version is sampled now: in which arm, under which split, by which settings. `features`: in statuses' order.

    `row_bytes`: what a row brings and gets; 0: it is not the same for all rows, and no batch is held.
    """

    arm: str
    epoch: int
    weight: float
    settings: ModelMonitoring
    features: tuple[str, ...] = ()
    row_bytes: int = 0

    @property
    def held_rows(self) -> int:
        """From how many rows on it is chosen among them."""
        return min(HELD_ROWS, HELD_BYTES // self.row_bytes) if self.row_bytes else 1


@dataclass(slots=True)
class _Source:
    """One version in one arm, for as long as the process lives. `lock` guards `pace` and what is held."""

    plan: Plan
    pace: Pace
    enough: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    held: list[Served] = field(default_factory=list)
    held_rows: int = 0
    sampled: dict[tuple[str, tuple[int, ...]], bool] = field(default_factory=dict)

    def take_held(self) -> list[Served]:
        """What was held, and is not any more. The caller has the lock."""
        held, self.held, self.held_rows = self.held, [], 0
        return held

    def wants(self, name: str, array: Array) -> bool:
        """Whether a column is sampled."""
        shape = (name, array.shape[1:])
        wanted = self.sampled.get(shape)
        if wanted is None:
            settings = self.plan.settings
            wanted = name not in settings.ignore and prod(shape[1]) <= settings.max_elements
            if len(self.sampled) < _SHAPES:
                self.sampled[shape] = wanted
        return wanted


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
        for lane in self._lanes:
            # what is held must not wait for traffic that may never come
            lane.before = self.flush

    def follow(self, plans: Mapping[VersionKey, Plan]) -> None:
        """What is served from now on, and how it is sampled. Called by one thread."""
        current = {}
        for key, plan in plans.items():
            before = self._sources.get((key, plan.arm))
            if before is None or before.plan != plan:
                pace = Pace(plan.settings, self._now_ns())
                if before is not None:
                    pace = before.pace if before.plan.settings == plan.settings else pace
                    pace.offered = before.pace.offered
                self._sources = {**self._sources, (key, plan.arm): _Source(plan, pace, plan.held_rows)}
            current[key] = self._sources[key, plan.arm]
        left, self._current = self._current, current
        for key, source in left.items():
            if current.get(key) is not source:
                self._flush(key, source)

    def wants(self, key: VersionKey) -> bool:
        """Whether any of a version's requests may be sampled."""
        return key in self._current

    def may_be_sampled(self, model: str, id_hash: int) -> bool:
        """Whether a prediction of this model, of which an outcome was reported just now, can have been sampled."""
        peaks = [source.pace.peak for key, source in self._current.items() if key.model == model]
        return not peaks or (id_hash ^ self._seed) < max(peaks) * 2**64

    def offer(self, key: VersionKey, served: Served) -> None:
        """Sample requests that were answered, now or a moment later."""
        source = self._current.get(key)
        if source is None:
            return
        with source.lock:
            before = source.held
            if before and not served.alike(before[-1]):
                source.take_held()
            else:
                before = []
            source.held.append(served)
            source.held_rows += served.rows
            held = source.take_held() if source.held_rows >= source.enough else []
        for batches in (before, held):
            if batches:
                self._sample(key, source, batches)

    def flush(self) -> None:
        """Choose among all that is held."""
        for key, source in self._current.items():
            self._flush(key, source)

    def _flush(self, key: VersionKey, source: _Source) -> None:
        if source.held:
            with source.lock:
                held = source.take_held()
            if held:
                self._sample(key, source, held)

    def _sample(self, key: VersionKey, source: _Source, batches: Sequence[Served]) -> None:
        held, plan, now_ns, now_us = Held.of(batches), source.plan, self._now_ns(), self._wall_us()
        with source.lock:
            rate = source.pace.served(held.rows, now_ns)
        who = chosen(draws(held.id_hashes, held.arrival_ns, self._seed), rate)
        who &= held.answered
        requests = who.nonzero()[0]
        if not len(requests):
            return
        picked = held.picked(requests)
        rows = len(picked.owners)
        with source.lock:
            room = source.pace.take(rows, now_ns)
        if room < rows:
            for lane in self._lanes:
                lane.lose(key, plan.arm, rows - room, now_us, "budget")
            picked = picked.first(room)
        if room:
            stamp = Stamp(key, plan.arm, plan.epoch, plan.weight, rate, plan.features, plan.settings.time_input, now_us)
            try:
                samples, nbytes = copied(held, picked, stamp, source.wants)
            except Exception:  # noqa: BLE001 - no memory, say: everybody has been answered, and nothing must end for a sample
                _log.exception("rows could not be copied", extra={"model": str(key)})
                for lane in self._lanes:
                    lane.lose(key, plan.arm, room, now_us, "not_copied")
                return
            for lane in self._lanes:
                lane.offer(samples, room, nbytes)

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
        self.flush()
        for lane in self._lanes:
            lane.close()
