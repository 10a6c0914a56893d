"""Verdicts: what was found about a version in one window, with every number that it was found by. **Pure.**

Floor 4: values. A person who has a `Finding` can recompute its effect, its p-value, its e-value and its detector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from server.core.versions import VersionKey

Check = Literal["distribution", "missing", "unseen", "out_of_range", "non_finite"]


class DriftState(StrEnum):
    """How it stands with one version and arm. They are distinct on purpose: no data is neither good nor bad."""

    NO_DATA = "no_data"
    LEARNING = "learning"
    OK = "ok"
    DEGRADED = "degraded"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one stream in one window.

    `baseline` and `window`: the counts that were compared: per bin (of a category: other last, then unseen), or of a rate
    `(others, those that are meant)`. `n` and `m`: their sums. `effect`: of a distribution the debiased PSI, of a rate the
    difference of rates. `tolerated`: the effect that is harmless. `statistic` with `df` and `noncentrality` has the probability
    `p` of being this large or larger if the true effect were the tolerated one (of a rate: of so many, `statistic`, under
    the tolerated rate). `e`: p as an e-value. `log_detector`: the logarithm of the Shiryaev-Roberts statistic after this
    window, an alarm by itself from `log_threshold` on. `effects`: further measures, which nothing is decided by.
    """

    stream: str
    check: Check
    baseline: tuple[int, ...]
    window: tuple[int, ...]
    n: int
    m: int
    effect: float
    tolerated: float
    statistic: float
    df: int
    noncentrality: float
    p: float
    e: float
    log_detector: float
    log_threshold: float
    alarm: bool
    effects: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """All checks of one version and arm in one window.

    Units: `start_us`, `end_us` microseconds since 1970, of the window as it was judged (small ones are merged forward).
    `rows`: sampled rows in it. `offered` and `dropped`: rows that were chosen in that time, and those of them that were lost.
    `log_family`: the logarithm of the weighted mean of all detectors; an alarm from `log_threshold` on. `detectors`: how many
    there are; the weight of each is exp(`log_threshold` of the window - `log_threshold` of its finding).
    `reference`: which part of the baseline it was compared with. `edges_digest`: SHA-256 of the frozen bins. `tolerance`: the
    shift that is harmless, in standard deviations; a finding tolerates more where the baseline's own windows differ by more.
    """

    key: VersionKey
    arm: str
    start_us: int
    end_us: int
    rows: int
    offered: int
    dropped: int
    state: DriftState
    findings: tuple[Finding, ...]
    log_family: float
    log_threshold: float
    detectors: int
    baseline_digest: str
    baseline_origin: str
    edges_digest: str
    reference: Literal["all", "hours_of_week"]
    tolerance: float
    alarmed: tuple[str, ...] = ()
    """What an alarm names, as `stream:check`: those with a detector beyond the family's threshold, or else the largest."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One realised or estimated figure of quality, of `rows` rows. `low` and `high` hold at every instant at once."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class RiskReading:
    """Whether the mean loss is worse than the baseline's upper bound by more than is tolerated: the one alarm that may page."""

    loss_mean: float
    loss_low: float
    bound: float
    rows: int
    log_detector: float
    log_threshold: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class QualityReading:
    """What is known of one version's and arm's answers by their outcomes.

    `outcomes`: how many came, by `ReceiptStatus`; those without a prediction are told of the first arm of the version that they
    named. `served`: sampled predictions that could have one by now; `labelled`: those that have. `realised`: metrics by name,
    since the version is served; `recent`: of the last window that has outcomes. `estimated`: without outcomes, from scores
    alone. An estimate cannot see concept drift, and decides nothing.
    """

    key: VersionKey
    arm: str
    outcomes: Mapping[str, int]
    served: int
    labelled: int
    realised: Mapping[str, Metric]
    recent: Mapping[str, Metric]
    recent_start_us: int
    estimated: Mapping[str, Metric]
    risk: RiskReading | None
