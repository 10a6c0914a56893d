"""All that is measured in this process, and its rendering for a scrape.

Floor 2: the steward of versions adds and removes them and reports loads, the side port calls `render`. Totals never fall: a
version that is removed keeps its recorder, and the same version coming back goes on counting where it stopped. Never
touched per request.
"""

import platform
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.core.versions import VersionKey
from server.telemetry.door_families import door_families
from server.telemetry.families import (
    access_family,
    build_family,
    consumer_family,
    feature_families,
    ledger_families,
    load_families,
    restart_family,
    trace_families,
    version_families,
)
from server.telemetry.monitoring_families import MonitoringFamilies, invalid_family
from server.telemetry.monitoring_readings import MonitoringReading, Objective
from server.telemetry.readings import (
    CacheLevels,
    ConsumerReading,
    DeviceReading,
    DoorReading,
    FeatureReading,
    LedgerReading,
    LoadReading,
    NoLedger,
    QueueLevels,
    TraceReading,
    VersionReading,
)
from server.telemetry.recorder import VersionRecorder
from server.telemetry.triton_text import triton_text

KEPT_VERSIONS = 16
"""Removed versions whose totals are kept and rendered: about 150 lines each. The longest removed is forgotten first."""
KEPT_LOADS = 1024
"""Versions and results of which loads are counted; the one attempted longest ago is forgotten first."""


class Metrics:
    """The recorders of all versions, and the text of everything they hold. Thread-safe.

    `queues` tells a version's queue at this instant (`DataPlane.snapshot`), `devices` reads the GPUs
    (`device_metrics.open_devices`), `caches` tells a version's response cache, `places` its devices, and where it serves,
    `consumers` who asked which version, `traces` what became of traced requests (`Tracer.reading`), `features` what the feature
    store has to say, None where there is none, `door` what the native one does, None for grpcio's, `ledger` who holds which
    device's memory, `monitoring` what has been found, None where nothing is sampled, and `objectives` what versions are to
    reach; all are called on the thread that renders. `settle`: see `VersionRecorder`. `build` is the program's
    version, `device_restarts` how often this process has begun anew.
    """

    def __init__(
        self,
        *,
        build: str,
        queues: Callable[[VersionKey], QueueLevels | None],
        devices: Callable[[], Sequence[DeviceReading]] = tuple,
        caches: Callable[[VersionKey], CacheLevels | None] = lambda key: None,
        places: Callable[[VersionKey], Mapping[str, bool]] = lambda key: {},
        consumers: Callable[[], Sequence[ConsumerReading]] = tuple,
        traces: Callable[[], TraceReading] = TraceReading,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        refusals: Callable[[], Iterable[tuple[str, str, int]]] = tuple,
        features: Callable[[], FeatureReading | None] = lambda: None,
        door: Callable[[], DoorReading | None] = lambda: None,
        ledger: Callable[[], LedgerReading] = NoLedger,
        monitoring: Callable[[], MonitoringReading | None] = lambda: None,
        objectives: Callable[[], Mapping[VersionKey, Objective]] = dict,
        settle: Callable[[], None] = lambda: None,
        device_restarts: int = 0,
    ) -> None:
        self._queues = queues
        self._devices = devices
        self._caches = caches
        self._places = places
        self._consumers = consumers
        self._traces = traces
        self._refusals = refusals
        self._features = features
        self._door = door
        self._ledger = ledger
        self._monitoring = monitoring
        self._objectives = objectives
        self._monitoring_families = MonitoringFamilies()
        self._settle = settle
        self._wall_clock_ns = wall_clock_ns
        self._lock = threading.Lock()
        self._active: dict[VersionKey, VersionRecorder] = {}
        self._ready: set[VersionKey] = set()
        self._removed: OrderedDict[VersionKey, VersionRecorder] = OrderedDict()
        self._loads: OrderedDict[tuple[VersionKey, str], tuple[int, float]] = OrderedDict()
        self._process = ProcessCollector(registry=None)
        self._build = build_family(build, platform.python_version())
        self._restarts = restart_family(device_restarts)

    def add(self, key: VersionKey) -> VersionRecorder:
        """Begin, or go on, to record a version; it is not ready yet. The same recorder while the version is there."""
        with self._lock:
            recorder = self._active.get(key) or self._removed.pop(key, None)
            if recorder is None:
                recorder = VersionRecorder(key, self._wall_clock_ns, self._settle)
            self._active[key] = recorder
            return recorder

    def remove(self, key: VersionKey) -> None:
        """End a version's gauges and keep its totals. Idempotent."""
        with self._lock:
            recorder = self._active.pop(key, None)
            self._ready.discard(key)
            if recorder is None:
                return
            recorder.hold_memory(0)
            self._removed[key] = recorder
            if len(self._removed) > KEPT_VERSIONS:
                self._removed.popitem(last=False)

    def find(self, key: VersionKey) -> VersionRecorder | None:
        """The recorder of a version that was added and not removed."""
        with self._lock:
            return self._active.get(key)

    def mark_ready(self, key: VersionKey, ready: bool) -> None:
        """State whether a version serves. Raises: KeyError for a version that was not added."""
        with self._lock:
            if key not in self._active:
                raise KeyError(f"{key} was not added")
            if ready:
                self._ready.add(key)
            else:
                self._ready.discard(key)

    def record_load(self, key: VersionKey, seconds: float, ok: bool) -> None:
        """Record one attempt to load a version, whether or not it was ever added."""
        entry = key, "ok" if ok else "failed"
        with self._lock:
            count, _ = self._loads.pop(entry, (0, 0.0))
            self._loads[entry] = count + 1, seconds
            if len(self._loads) > KEPT_LOADS:
                self._loads.popitem(last=False)

    def render(self) -> bytes:
        """Everything in the Prometheus text format 0.0.4. Takes milliseconds: not for the event loop's thread.

        All families of one version are of the same instant, under Podium's names and under Triton's.
        """
        readings = self._read()
        return generate_latest(_Scrape(self._families(readings))) + triton_text(readings, self._devices()).encode()

    def _families(self, readings: Sequence[VersionReading]) -> Iterator[Metric]:
        yield from version_families(readings)
        yield invalid_family((each.stats.key, each.stats.invalid) for each in readings)
        yield from load_families(self._read_loads())
        yield from ledger_families(self._ledger())
        yield consumer_family(self._consumers())
        yield from trace_families(self._traces())
        yield access_family(self._refusals())
        if (features := self._features()) is not None:
            yield from feature_families(features)
        if (door := self._door()) is not None:
            yield from door_families(door)
        if (monitoring := self._monitoring()) is not None:
            yield from self._monitoring_families.render(monitoring, self._objectives())
        yield self._build
        yield self._restarts
        yield from self._process.collect()

    def _read(self) -> list[VersionReading]:
        with self._lock:
            # removed versions are rendered too: what they counted after the last scrape would be lost otherwise
            recorders = sorted((*self._active.items(), *self._removed.items()))
            readiness = {key: key in self._ready for key in self._active}
        return [
            VersionReading(
                recorder.snapshot(),
                readiness.get(key),
                self._queues(key) if key in readiness else None,
                self._caches(key) if key in readiness else None,
                self._places(key) if key in readiness else {},
            )
            for key, recorder in recorders
        ]

    def _read_loads(self) -> list[LoadReading]:
        with self._lock:
            return [LoadReading(key, result, *numbers) for (key, result), numbers in sorted(self._loads.items())]


class _Scrape(Collector):
    """The families of one scrape, as prometheus_client wants them handed over."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families
