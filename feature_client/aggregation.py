"""What a stored view can be given of an event log: windowed counts, sums, means, rates, and last values. **Pure.**

Sums are kept as integers (fixed point), so that neither order nor the number of events computed at once can change a bit.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from feature_client.errors import DefinitionError

Kind = Literal["count", "sum", "mean", "rate", "last"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RESOLUTION = 2.0**-20
"""What sums and means of float64 columns are exact to, unless stated: about 1e-6 of the column's unit."""


@dataclass(frozen=True)
class Aggregation:
    """One input of a stored view's function, of the events of one entity that are known at some instant.

    The window reaches from the newest event known back for `window_us` microseconds, which is where it ends: an event exactly
    that old is outside. `last` has no window: it is the column of the newest event, missing where that is missing.
    `count` counts events, the others those whose column is not missing; without any, a mean or rate is NaN and a sum 0.
    """

    kind: Kind
    column: str = ""
    window_us: int = 0
    resolution: float = RESOLUTION

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DefinitionError(f"there is no aggregation '{self.kind}'; there are {', '.join(KINDS)}")
        if self.kind == "last" and self.window_us:
            raise DefinitionError("'last' has no window")
        if self.kind != "last" and not (isinstance(self.window_us, int) and 0 < self.window_us < 2**62):
            raise DefinitionError(f"the window of '{self.kind}' must be longer than nothing, in whole microseconds")
        if not 0 < self.resolution < inf:
            raise DefinitionError("the resolution of a sum must be above 0, and finite")


def count(window_us: int) -> Aggregation:
    """How many events: int64."""
    return Aggregation("count", "", window_us)


def total(column: str, window_us: int, resolution: float = RESOLUTION) -> Aggregation:
    """Sum of a float64, int64 or bool column: float64."""
    return Aggregation("sum", column, window_us, resolution)


def mean(column: str, window_us: int, resolution: float = RESOLUTION) -> Aggregation:
    """Mean of a float64, int64 or bool column: float64."""
    return Aggregation("mean", column, window_us, resolution)


def rate(column: str, window_us: int) -> Aggregation:
    """Part of the events whose bool column is true: float64."""
    return Aggregation("rate", column, window_us)


def last(column: str) -> Aggregation:
    """The column of the newest event, in its own type."""
    return Aggregation("last", column)
