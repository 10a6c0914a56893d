"""The baseline: what a version's inputs, features, outputs and quality were on rows that it was validated with. **Pure.**

Floor 4: a value. It is part of its version, written at registration and never changed (`baseline_document`), or learnt from the
first rows that were served where a version brought none (`learning`); which of the two it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from server.monitoring.streams import Counts, Layout, Stream

HOURS = 168
"""Hours of a week, in UTC: 0 is Monday, midnight to one."""


@dataclass(frozen=True, slots=True)
class ReferenceQuality:
    """How good the version was on the baseline's rows, whose outcomes are known.

    `metrics`: by name, as `QualityReading` has them. `loss_mean`: the mean bounded loss that risk is tracked against, of
    `loss_rows` rows, and `loss_upper` its 99.5 % upper confidence bound. `calibration`: of a binary score, pairs of (score,
    calibrated probability) between which is interpolated; empty where calibrating did not help. `loss_scale`: what absolute
    errors of a regression are divided by, and capped at.
    """

    kind: Literal["binary", "multiclass", "regression"]
    rows: int
    metrics: Mapping[str, float]
    loss_mean: float
    loss_upper: float
    loss_rows: int
    calibration: tuple[tuple[float, float], ...] = ()
    loss_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Baseline:
    """What windows of one version are compared with. Arrays have no truth value, so two are told apart by their digests.

    Shapes: `counts` `[layout.size]`; `hourly`: by hour of the week, the same for rows of that hour alone, where the rows had
    timestamps. `latency_us`: the median, 95 % and 99 % quantile of an execution of one row, 0 where it was not measured.
    `variation`: of each stream, the PSI by which its windows differ for being windows; empty where that is not known.
    `rate_variation`: by `stream:check`, the same of rates, in standard deviations of one row; only of those that differ.
    `digest`: the SHA-256 of its document, "" until it has one.
    """

    streams: tuple[Stream, ...]
    counts: Counts
    rows: int
    origin: Literal["registration", "learned"] = "registration"
    hourly: Mapping[int, Counts] = field(default_factory=dict)
    quality: ReferenceQuality | None = None
    latency_us: tuple[float, float, float] = (0.0, 0.0, 0.0)
    variation: tuple[float, ...] = ()
    rate_variation: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""

    @cached_property
    def layout(self) -> Layout:
        """Where things are in `counts`, and in the counts of every window that is compared with them."""
        return Layout(self.streams)
