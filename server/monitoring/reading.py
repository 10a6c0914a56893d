"""What monitoring tells of itself at one instant: to the RPC, to a scrape, to plots. **Pure.**

Floor 4: values, made under the monitors' lock and handed out; nobody changes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.verdict import DriftState, QualityReading, WindowVerdict

KEPT_WINDOWS = 336
"""Verdicts that are kept of each version and arm, the newest first: two weeks of hours."""


@dataclass(frozen=True, slots=True)
class VersionReading:
    """One version in one arm. `windows`: the newest first. `open_rows`: rows of windows that have not been judged yet.

    `learned_rows` of `learning_rows`, while it has no baseline. `late_rows`: rows that came after their window had been judged;
    `misdated_rows`: rows that claim to be of the future, or from before 1970. `alarms`: how many were raised, the last of them
    by `last_alarm`; the state ALARM lasts as long as what it named is suspicious.
    """

    key: VersionKey
    arm: str
    state: DriftState
    baseline: Baseline | None
    windows: tuple[WindowVerdict, ...]
    open_rows: int
    learned_rows: int
    learning_rows: int
    late_rows: int = 0
    misdated_rows: int = 0
    alarms: int = 0
    last_alarm: WindowVerdict | None = None
    quality: QualityReading | None = None


@dataclass(frozen=True, slots=True)
class SamplingReading:
    """What became of rows since the process started. `offered`: rows of answers that were chosen, by version and arm; `rates`:
    the probability with which they are chosen now. `dropped`: chosen rows that a sink never got, by sink and reason; `written`
    and `waiting` rows by sink.
    """

    offered: Mapping[tuple[VersionKey, str], int]
    rates: Mapping[tuple[VersionKey, str], float]
    dropped: Mapping[tuple[str, str], int]
    written: Mapping[str, int]
    waiting: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class MonitoringReading:
    """Everything. `events`: retrain events by model, reason and what became of them. `lag_s`: how old the oldest row is that
    waits to be counted.
    """

    versions: tuple[VersionReading, ...] = ()
    sampling: SamplingReading | None = None
    lag_s: float = 0.0
    events: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
