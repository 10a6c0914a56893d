"""What telemetry needs of monitoring, which stands above it. Pure: names, no behaviour.

Floor 2. `server.monitoring.reading` has the real ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.core.versions import VersionKey


@dataclass(frozen=True, slots=True)
class Objective:
    """What a version's owner wants of it: a metric that must be at least, or at most, `value`."""

    metric: str
    bound: Literal["at_least", "at_most"]
    value: float


class Finding(Protocol):
    """One check of one stream in one window."""

    @property
    def stream(self) -> str:
        """Its name."""
        ...

    @property
    def check(self) -> str:
        """What was looked at."""
        ...

    @property
    def window(self) -> Sequence[int]:
        """Counts; of a rate (others, those that are meant)."""
        ...

    @property
    def m(self) -> int:
        """Their sum."""
        ...

    @property
    def effect(self) -> float:
        """Of a distribution the debiased PSI."""
        ...

    @property
    def p(self) -> float:
        """The evidence in this window."""
        ...

    @property
    def log_detector(self) -> float:
        """The evidence of all windows."""
        ...


class WindowVerdict(Protocol):
    """All checks of one window."""

    @property
    def start_us(self) -> int:
        """When it began."""
        ...

    @property
    def end_us(self) -> int:
        """When it ended."""
        ...

    @property
    def rows(self) -> int:
        """Sampled rows in it."""
        ...

    @property
    def state(self) -> str:
        """The verdict in one word."""
        ...

    @property
    def findings(self) -> Sequence[Finding]:
        """One for each check."""
        ...

    @property
    def log_family(self) -> float:
        """The evidence of all streams together."""
        ...

    @property
    def log_threshold(self) -> float:
        """From where on that is an alarm."""
        ...


class Metric(Protocol):
    """One figure of quality."""

    @property
    def value(self) -> float:
        """The figure."""
        ...

    @property
    def low(self) -> float:
        """Its lower bound."""
        ...

    @property
    def high(self) -> float:
        """Its upper bound."""
        ...


class RiskReading(Protocol):
    """Whether the loss is worse than is tolerated."""

    @property
    def log_detector(self) -> float:
        """The evidence that it is."""
        ...

    @property
    def log_threshold(self) -> float:
        """From where on that is an alarm."""
        ...

    @property
    def alarm(self) -> bool:
        """Whether it has been reached."""
        ...


class QualityReading(Protocol):
    """What is known by outcomes."""

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many came, by what became of them."""
        ...

    @property
    def served(self) -> int:
        """Sampled predictions that could have one."""
        ...

    @property
    def labelled(self) -> int:
        """Those that have."""
        ...

    @property
    def realised(self) -> Mapping[str, Metric]:
        """Since the version is served."""
        ...

    @property
    def recent(self) -> Mapping[str, Metric]:
        """Of the last window that has outcomes."""
        ...

    @property
    def estimated(self) -> Mapping[str, Metric]:
        """Without outcomes."""
        ...

    @property
    def risk(self) -> RiskReading | None:
        """None where nothing is known to compare the loss with."""
        ...


class VersionReading(Protocol):
    """One version in one arm."""

    @property
    def key(self) -> VersionKey:
        """Model and version."""
        ...

    @property
    def arm(self) -> str:
        """As what it serves."""
        ...

    @property
    def state(self) -> str:
        """How it stands now."""
        ...

    @property
    def windows(self) -> Sequence[WindowVerdict]:
        """The newest first."""
        ...

    @property
    def open_rows(self) -> int:
        """Rows that were not judged yet."""
        ...

    @property
    def learned_rows(self) -> int:
        """Rows of a baseline that is being learnt."""
        ...

    @property
    def learning_rows(self) -> int:
        """How many it wants."""
        ...

    @property
    def late_rows(self) -> int:
        """Rows that came too late."""
        ...

    @property
    def misdated_rows(self) -> int:
        """Rows that claim a time that cannot be."""
        ...

    @property
    def alarms(self) -> int:
        """How many were raised."""
        ...

    @property
    def quality(self) -> QualityReading | None:
        """None where no outcomes are asked for."""
        ...


class SamplingReading(Protocol):
    """What became of rows that were chosen."""

    @property
    def offered(self) -> Mapping[tuple[VersionKey, str], int]:
        """How many were, by version and arm."""
        ...

    @property
    def rates(self) -> Mapping[tuple[VersionKey, str], float]:
        """With which probability they are."""
        ...

    @property
    def dropped(self) -> Mapping[tuple[str, str], int]:
        """Those that were lost, by sink and reason."""
        ...

    @property
    def written(self) -> Mapping[str, int]:
        """Those that a sink has."""
        ...

    @property
    def waiting(self) -> Mapping[str, int]:
        """Those that wait for one."""
        ...


class MonitoringReading(Protocol):
    """Everything that monitoring tells of itself."""

    @property
    def versions(self) -> Sequence[VersionReading]:
        """By version and arm."""
        ...

    @property
    def sampling(self) -> SamplingReading | None:
        """None in a process that samples nothing."""
        ...

    @property
    def lag_s(self) -> float:
        """How old the oldest row is that waits to be counted."""
        ...

    @property
    def events(self) -> Mapping[tuple[str, str, str], int]:
        """Retrain events by model, reason and what became of them."""
        ...
