"""The mean of values in [0, 1], known at every instant at once: a confidence sequence, and a detector of harm. **Pure.**

Floor 1: frozen values of constant size. Both may be looked at after every value, and stopped at will; values may depend on what
came before them, as long as their conditional mean is what is asked about. What `add` gives does not depend on how values are
cut into pieces, to the bit: every sum is a cumulative one (numpy's are sequential) that begins with the sum so far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
LARGEST_BET = 0.5
"""Bets of the confidence sequence stay below it: Waudby-Smith and Ramdas recommend 1/2 or 3/4."""


def checked(values: ArrayLike) -> Values:
    """Values as float64 `[N]`. Raises ValueError where one is outside [0, 1] or not a number."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError("a value is not in [0, 1]")
    return array


def numbers(document: Sequence[float], sizes: tuple[int, ...]) -> list[float]:
    """A state's numbers, all finite. Raises ValueError where they are not, or are another number than any state has."""
    found = [float(each) for each in document]
    if len(found) not in sizes or not all(map(math.isfinite, found)):
        raise ValueError(f"a state is {' or '.join(map(str, sizes))} finite numbers, not {len(found)}: {found[:16]}")
    return found


def running(first: float, values: Values) -> Values:
    """`[N + 1]`: the sums after 0, 1, ..., N of the values, one after another."""
    return np.cumsum(np.concatenate(([first], values)))


@dataclass(frozen=True, slots=True)
class BoundedMean:
    """The predictable plug-in empirical-Bernstein confidence sequence.

    `design_alpha`: the level that the bets are sized for; intervals of other levels hold as well, and are somewhat wider.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (arXiv 2010.09686), Theorem 2.
    """

    design_alpha: float = 0.05
    rows: int = 0
    total: float = 0.0
    deviations: float = 0.0
    bets: float = 0.0
    bet_values: float = 0.0
    spending: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.design_alpha < 1:
            raise ValueError(f"alpha is between 0 and 1, not {self.design_alpha}")

    def add(self, values: ArrayLike) -> Self:
        """With further values `[N]` in [0, 1]. Raises: ValueError."""
        array = checked(values)
        if not array.size:
            return self
        count = np.arange(self.rows, self.rows + array.size + 1, dtype=np.float64)  # values before each, and after the last
        total = running(self.total, array)
        guess = (0.5 + total) / (count + 1)
        deviations = running(self.deviations, (array - guess[1:]) ** 2)
        variance = (0.25 + deviations[:-1]) / (count[:-1] + 1)
        turn = count[1:]
        bet = np.minimum(np.sqrt(2 * math.log(2 / self.design_alpha) / (variance * turn * np.log1p(turn))), LARGEST_BET)
        spent = (array - guess[:-1]) ** 2 * (-np.log1p(-bet) - bet)
        return replace(
            self,
            rows=self.rows + array.size,
            total=float(total[-1]),
            deviations=float(deviations[-1]),
            bets=float(running(self.bets, bet)[-1]),
            bet_values=float(running(self.bet_values, bet * array)[-1]),
            spending=float(running(self.spending, spent)[-1]),
        )

    @property
    def mean(self) -> float:
        """Of the values; 1/2 where there are none."""
        return self.total / self.rows if self.rows else 0.5

    def interval(self, alpha: float) -> tuple[float, float]:
        """In which the mean is, at all instants at once with probability 1 - alpha; within [0, 1]."""
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is between 0 and 1, not {alpha}")
        if not self.rows:
            return 0.0, 1.0
        middle, reach = self.bet_values / self.bets, (math.log(2 / alpha) + self.spending) / self.bets
        return max(middle - reach, 0.0), min(middle + reach, 1.0)

    def document(self) -> list[float]:
        """As plain numbers, which `from_document` makes the same of."""
        return [self.design_alpha, self.rows, self.total, self.deviations, self.bets, self.bet_values, self.spending]

    @classmethod
    def from_document(cls, document: Sequence[float]) -> Self:
        """What `document` gave. Raises: ValueError."""
        alpha, rows, *sums = numbers(document, (7,))
        return cls(alpha, int(rows), *sums)


BLOCK = 8192
"""Values at a time, so that many of them take no more memory than few."""
GRID = tuple(2.0**-power for power in range(1, 9))
"""Bets of the harm detector, in units of 1 / bound: the largest keeps every factor at 1/2 or more."""


@dataclass(frozen=True, slots=True)
class HarmDetector:
    """Whether the conditional mean of values in [0, 1] has come to exceed `bound`: the mean of Shiryaev-Roberts e-detectors.

    For each bet b the factors are 1 + b (x - bound), of conditional mean at most 1 while that of x is at most `bound`; so
    an alarm at `log_detector >= ln A` comes after A values or more on average. `log_peak`: the largest it has been.
    """

    bound: float
    rows: int = 0
    logs: tuple[float, ...] = (0.0,) * len(GRID)
    starts: tuple[float, ...] = (-math.inf,) * len(GRID)
    log_peak: float = -math.inf

    def __post_init__(self) -> None:
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise ValueError(f"a bound is above 0, not {self.bound}")

    def add(self, values: ArrayLike) -> Self:
        """With further values `[N]` in [0, 1]. Raises: ValueError."""
        array, state = checked(values), self
        for first in range(0, array.size, BLOCK):
            state = state._after(array[first : first + BLOCK])
        return state

    def _after(self, values: Values) -> Self:
        # M after t values is exp(logs_t) times the sum of exp(-logs) before each of them: both are running sums
        steps = np.log1p(np.array(GRID)[:, None] / self.bound * (values - self.bound))
        logs = np.cumsum(np.concatenate((np.array(self.logs)[:, None], steps), axis=1), axis=1)
        starts = np.logaddexp.accumulate(np.concatenate((np.array(self.starts)[:, None], -logs[:, :-1]), axis=1), axis=1)
        after = np.logaddexp.reduce(logs[:, 1:] + starts[:, 1:], axis=0) - math.log(len(GRID))
        return replace(
            self,
            rows=self.rows + values.size,
            logs=tuple(logs[:, -1].tolist()),
            starts=tuple(starts[:, -1].tolist()),
            log_peak=max(self.log_peak, float(after.max())),
        )

    @property
    def log_detector(self) -> float:
        """The logarithm of the detector now; -inf before the first value."""
        return float(np.logaddexp.reduce(np.add(self.logs, self.starts)) - math.log(len(GRID)))

    def document(self) -> list[float]:
        """As plain, finite numbers, which `from_document` makes the same of."""
        return [self.bound, self.rows, self.log_peak, *self.logs, *self.starts] if self.rows else [self.bound, 0]

    @classmethod
    def from_document(cls, document: Sequence[float]) -> Self:
        """What `document` gave. Raises: ValueError."""
        bound, rows, *rest = numbers(document, (2, 3 + 2 * len(GRID)))
        if not rest:
            return cls(bound)
        peak, *rest = rest
        return cls(bound, int(rows), tuple(rest[: len(GRID)]), tuple(rest[len(GRID) :]), peak)
