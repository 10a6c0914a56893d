"""The monitors of all versions and arms: fed by a sink, asked by calls and scrapes, remembered on disk.

Floor 4: a dull loop around `monitor`. One lock guards everything; files are written outside it.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.core.clock import NS_PER_US
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import with_digest
from server.monitoring.monitor import Memory, Monitor
from server.monitoring.reading import VersionReading
from server.monitoring.samples import Samples
from server.monitoring.state_document import Packer, Saved, judged_by
from server.monitoring.state_files import StateFiles
from server.monitoring.verdict import DriftState, WindowVerdict
from server.monitoring.windows import Windows

KEPT_VERSIONS = 16
"""Versions that are no longer served and can still be read, and go on where they were if they are served again."""
MAX_ARMS = 16
"""Of one version; rows of more are counted as unknown."""
MAX_UNKNOWN = 1024
"""Versions that unknown rows are told apart by."""
_log = logging.getLogger("podium.monitoring")


@dataclass(slots=True)
class _Version:
    """One version. `served`: the arms it is served in now; `arms`: those that have a monitor."""

    settings: ModelSettings
    baseline: Baseline | None
    served: tuple[str, ...]
    position: str = ""
    arms: dict[str, Monitor] = field(default_factory=dict)


class Monitors:
    """Thread-safe. `folder`: where they remember, None nowhere. `wall_us`: microseconds since 1970.

    Ownership: whoever makes it calls `tick` at least once a second, and `save` now and then and at the end.
    """

    def __init__(self, folder: Path | None = None, wall_us: Callable[[], int] = lambda: time.time_ns() // NS_PER_US) -> None:
        self._wall_us = wall_us
        self._files = None if folder is None else StateFiles(folder, wall_us() / 1_000_000)
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # taken before `_lock`: guards `_packer` and the files
        self._packer = Packer()
        self._versions: dict[VersionKey, _Version] = {}
        self._left: OrderedDict[VersionKey, _Version] = OrderedDict()
        self._unknown: Counter[VersionKey] = Counter()

    def serve(
        self, key: VersionKey, settings: ModelSettings, baseline: Baseline | None, arms: Sequence[str] = ("champion",)
    ) -> None:
        """A version is served from now on, in these arms, with these settings: also said again when any of them changes.

        It goes on where it was, also from its file, as long as it is compared with the same baseline under the same settings;
        with others it begins anew, and that is logged. `baseline` None: it learns one, once.
        """
        if baseline is not None and not baseline.digest:
            baseline = with_digest(baseline)
        with self._writing:
            with self._lock:
                known = self._versions.get(key) or self._left.get(key)
            saved = self._files.read(key) if known is None and self._files is not None else None
            with self._lock:
                before = _saved(key, known) if known is not None else saved
                version = _Version(settings, baseline, tuple(arms))
                if before is not None:
                    version.position = before.position
                    for arm, memory in before.arms.items():
                        continued = _continued(key, arm, memory, before, settings, baseline)
                        if continued is not None:
                            version.arms[arm] = Monitor(key, arm, settings, continued)
                for arm in arms:
                    self._monitor(key, version, arm)
                self._left.pop(key, None)
                self._versions[key] = version

    def leave(self, key: VersionKey) -> None:
        """A version is no longer served. What was found stays readable, of the last `KEPT_VERSIONS`."""
        with self._lock:
            version = self._versions.pop(key, None)
            if version is not None:
                self._left[key] = version
                while len(self._left) > KEPT_VERSIONS:
                    self._left.popitem(last=False)

    def add(self, samples: Iterable[Samples]) -> None:
        """Count rows. Those of versions that are not served here are only counted as `unknown_rows`."""
        with self._lock:
            now_us = self._wall_us()
            for each in samples:
                version = self._versions.get(each.key)
                monitor = None if version is None else self._monitor(each.key, version, each.arm)
                if monitor is None:
                    known = each.key in self._unknown or len(self._unknown) < MAX_UNKNOWN
                    self._unknown[each.key if known else VersionKey("", 0)] += each.rows
                    continue
                learning = monitor.memory.baseline is None
                monitor.add(each, now_us)
                if learning and (monitor.memory.baseline is not None or monitor.memory.refused):
                    _log_learnt(monitor)

    def count(self, key: VersionKey, arm: str, offered: int, dropped: int, time_us: int) -> None:
        """Rows that were chosen at about `time_us` beside those that are added, and how many of them were lost."""
        with self._lock:
            version = self._versions.get(key)
            monitor = None if version is None else self._monitor(key, version, arm)
            if monitor is not None:
                monitor.count(offered, dropped, time_us, self._wall_us())

    def tick(self, now_us: int) -> list[WindowVerdict]:
        """Judge what is complete. `now_us`: all rows that were served before it have been added, but for the grace: the wall
        clock, or, of a stream that is behind, how far it has been read.
        """
        verdicts = []
        with self._lock:
            for version in self._versions.values():
                for arm, monitor in version.arms.items():
                    # an arm that is no longer served is not missed
                    if arm in version.served or monitor.memory.windows.open_rows:
                        verdicts += monitor.tick(now_us)
        for verdict in verdicts:
            if verdict.alarmed:
                _log.warning(
                    "drift", extra={"model": str(verdict.key), "arm": verdict.arm, "checks": list(verdict.alarmed[:20])}
                )
        return verdicts

    def versions(self) -> tuple[VersionReading, ...]:
        """What there is to tell: of versions that are served, then of those that were, the last first."""
        with self._lock:
            versions = [*self._versions.values(), *reversed(self._left.values())]
            return tuple(monitor.reading() for version in versions for monitor in version.arms.values())

    def unknown_rows(self) -> Mapping[VersionKey, int]:
        """Rows of versions that were not served here when they came; beyond `MAX_UNKNOWN` versions under no name."""
        with self._lock:
            return dict(self._unknown)

    def positions(self) -> Mapping[VersionKey, str]:
        """How far the stream had been read when each version was saved last: what comes after it is not in its counts."""
        with self._lock:
            return {key: version.position for key, version in self._versions.items()}

    def save(self, position: str = "") -> bool:
        """Write everything, with how far the stream has been read that `add` was fed from; whether it is on disk.

        Nobody may add rows from that stream meanwhile: they would be in counts that do not say so.
        """
        if self._files is None:
            return False
        with self._writing:
            with self._lock:
                known = [*self._left.items(), *self._versions.items()]
                for _, version in known:
                    version.position = position
                documents = self._packer.pack(_saved(key, version) for key, version in known)
            return self._files.write(documents)

    def _monitor(self, key: VersionKey, version: _Version, arm: str) -> Monitor | None:
        monitor = version.arms.get(arm)
        if monitor is None and len(version.arms) < MAX_ARMS:
            monitor = version.arms[arm] = Monitor(key, arm, version.settings)
            if version.baseline is not None:
                monitor.compare_with(version.baseline)
        return monitor


def _saved(key: VersionKey, version: _Version) -> Saved:
    memories = {arm: monitor.memory for arm, monitor in version.arms.items()}
    return Saved(key, judged_by(version.settings.monitoring), version.position, memories)


def _continued(
    key: VersionKey, arm: str, memory: Memory, before: Saved, settings: ModelSettings, baseline: Baseline | None
) -> Memory | None:
    """What a monitor goes on with: all that is remembered; of what would be judged otherwise only what it has learnt, or
    None."""
    own = memory.baseline
    learnt = own is None or own.origin == "learned"
    same = learnt if baseline is None else own is not None and own.digest == baseline.digest
    if same and before.judged_by == judged_by(settings.monitoring):
        return memory
    reason = "settings" if same else "baseline"
    _log.warning("a monitor begins anew", extra={"model": str(key), "arm": arm, "changed": reason})
    if not (same and baseline is None):
        return None
    state = DriftState.LEARNING if own is None else DriftState.NO_DATA
    windows = Windows.of(settings.monitoring)
    return Memory(windows, own, learned=memory.learned, learned_rows=memory.learned_rows, refused=memory.refused, state=state)


def _log_learnt(monitor: Monitor) -> None:
    memory, version = monitor.memory, {"model": str(monitor.key), "arm": monitor.arm}
    if memory.refused:
        _log.warning("there is nothing to monitor", extra={**version, "reason": memory.refused})
    else:
        _log.info("a baseline was learnt", extra={**version, "rows": memory.learned_rows})
