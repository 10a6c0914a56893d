"""What a scrape is made of: the states of versions, loads and devices at one instant. Pure: names, no behaviour.

Floor 2, between those who measure (recorder, the data plane above, a device library) and those who write text. Keeps the
text writers free of locks, clocks and NVML, and telemetry free of an import of the data plane above it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.core.versions import VersionKey
from server.telemetry.recorder import VersionStats


class QueueLevels(Protocol):
    """What telemetry needs of the data plane's `QueueSnapshot`."""

    @property
    def waiting_requests(self) -> int:
        """Requests admitted and not yet in a batch."""
        ...

    @property
    def waiting_rows(self) -> int:
        """Their rows."""
        ...

    @property
    def open_requests(self) -> int:
        """Requests admitted and not yet ended: waiting or executing."""
        ...


class CacheLevels(Protocol):
    """What telemetry needs of the lifecycle's `AnswerCache`."""

    @property
    def held_bytes(self) -> int:
        """Memory of everything it remembers."""
        ...

    def __len__(self) -> int:
        """Answers it remembers."""
        ...


class FeatureReading(Protocol):
    """What telemetry needs of the server's features, all versions together, since the process started."""

    @property
    def values(self) -> Mapping[tuple[str, str], int]:
        """Values that were served, by view and status."""
        ...

    @property
    def contracts(self) -> Mapping[tuple[str, int], bool]:
        """Whether what is installed is what a version was trained on, by model and version."""
        ...

    @property
    def calls(self) -> int:
        """How often the store was asked."""
        ...

    @property
    def failures(self) -> Mapping[str, int]:
        """How often rows were served without the store, or a part of it, by kind."""
        ...

    @property
    def keys(self) -> int:
        """Rows that were wanted."""
        ...

    @property
    def cached_keys(self) -> int:
        """Those of them that were remembered."""
        ...

    @property
    def breaker_open(self) -> bool:
        """Whether the store is not asked now, because it has failed."""
        ...

    @property
    def samples_dropped(self) -> int:
        """Rows chosen for the audit that were lost on the way to its file."""
        ...


class MemoryHolding(Protocol):
    """What the replicas of one version hold of one device's memory."""

    @property
    def key(self) -> VersionKey:
        """Model and version."""
        ...

    @property
    def device(self) -> str:
        """The device's name."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """What counts against the budget."""
        ...

    @property
    def measured_bytes(self) -> int:
        """What the device's driver said that those which are loaded took."""
        ...


class MemoryBudget(Protocol):
    """What versions may hold of one device's memory."""

    @property
    def device(self) -> str:
        """The device's name."""
        ...

    @property
    def budget_bytes(self) -> int:
        """How much of it may be in use, by whomever."""
        ...

    @property
    def unreturned_bytes(self) -> int:
        """What unloads have not given back since the process started."""
        ...


class LedgerReading(Protocol):
    """What telemetry needs of the lifecycle's ledger."""

    @property
    def holdings(self) -> Sequence[MemoryHolding]:
        """By version and device."""
        ...

    @property
    def budgets(self) -> Sequence[MemoryBudget]:
        """By device."""
        ...


@dataclass(frozen=True, slots=True)
class NoLedger:
    """The books of a server on whose devices nothing was ever reserved: empty ones."""

    holdings: tuple[MemoryHolding, ...] = ()
    budgets: tuple[MemoryBudget, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionReading:
    """One version. `ready` None: removed, only its totals are left. `queue` None: it has no open queue. `cache` None: it has no
    response cache. `devices`: those it was loaded on, and whether it serves there.
    """

    stats: VersionStats
    ready: bool | None
    queue: QueueLevels | None
    cache: CacheLevels | None = None
    devices: Mapping[str, bool] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, str]:
        """Values of the labels model and version."""
        return self.stats.key.model, str(self.stats.key.version)

    @property
    def cached(self) -> bool:
        """Whether there is, or was, a response cache to speak of."""
        return self.cache is not None or any(self.stats.durations[part][0] for part in ("cache_hit", "cache_miss"))


@dataclass(frozen=True, slots=True)
class ConsumerReading:
    """How many requests of one consumer reached one version since the process started."""

    key: VersionKey
    consumer: str
    requests: int


@dataclass(frozen=True, slots=True)
class LoadReading:
    """All attempts to load one version that ended the same way ("ok" or "failed"), and the time the last one took."""

    key: VersionKey
    result: str
    count: int
    last_s: float


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One GPU. None where the device cannot tell. Energy is counted from the opening of the devices."""

    gpu_uuid: str
    utilization_ratio: float | None = None
    power_usage_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DoorReading:
    """What the native door and plane have counted since they were made, by the names they have for it.

    `sockets`: HttpCounters (server/dataplane/native/src/http2.h). `copies`: bytes, see Traffic in plane.h. `infer_calls`: calls
    of ModelInfer by who answered them, "fast" or "handlers".
    """

    sockets: Mapping[str, int]
    copies: Mapping[str, int]
    infer_calls: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TraceReading:
    """Traced requests that were written or sent, and those that were lost on the way there."""

    written: int = 0
    dropped: int = 0
