"""The queue that no server can beat: one device, batches of whatever waits, nothing else takes any time. **Pure.**

It is what R3 divides by. Arrivals are those of the load client in kind (Poisson, a fixed seed), not one by one. It is
work-conserving: a device that is free takes what waits, up to its largest batch, at once (Inoue 2019, arXiv 1912.06322, has the
closed form).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tau:
    """How long a device takes for a batch, as measured at some sizes: straight lines between them, the last goes on above.

    `busy_s` is what one batch keeps from the next while several are on their way; `answer_s`, at least as long, is when its
    answers are there. They differ where copies of one batch overlap with the execution of another.
    """

    rows: tuple[int, ...]
    busy_s: tuple[float, ...]
    answer_s: tuple[float, ...]

    def tables(self, largest: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both times for every size from 0 to `largest`. Units: seconds. Shapes: `[largest + 1]`."""
        sizes = np.arange(largest + 1)
        busy = np.array([_on_lines(self.rows, self.busy_s, int(size)) for size in sizes])
        answer = np.array([_on_lines(self.rows, self.answer_s, int(size)) for size in sizes])
        return busy, np.maximum(busy, answer)


def linear(t0_s: float, row_s: float, largest: int) -> Tau:
    """t0 + a*b, as fake devices have it."""
    rows = tuple(sorted({1, largest}))
    took = tuple(t0_s + row_s * size for size in rows)
    return Tau(rows, took, took)


def _on_lines(rows: Sequence[int], values: Sequence[float], size: int) -> float:
    if len(rows) == 1 or size <= rows[0]:
        return values[0]
    points = list(zip(rows, values, strict=True))
    segments = list(pairwise(points))
    (low, at_low), (high, at_high) = next((pair for pair in segments if size <= pair[1][0]), segments[-1])
    return at_low + (at_high - at_low) * (size - low) / (high - low)


def poisson(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Instants of a Poisson process, ascending. Units: seconds."""
    rng = np.random.default_rng(seed)
    expected = rate_per_s * seconds
    times = np.cumsum(rng.exponential(1 / rate_per_s, int(expected + 10 * expected**0.5 + 10)))
    return times[times < seconds]


def latencies(arrivals_s: NDArray[np.float64], tau: Tau, max_batch: int) -> NDArray[np.float64]:
    """From arrival to answer, for every arrival in order. Units: seconds.

    >>> latencies(np.array([0.0, 0.1, 0.2, 5.0]), linear(1.0, 0.0, 8), 2).round(6).tolist()
    [1.0, 1.9, 1.8, 1.0]
    """
    busy, answer = tau.tables(max_batch)
    took = np.empty(len(arrivals_s))
    free_s, first = 0.0, 0
    while first < len(arrivals_s):
        start_s = max(free_s, float(arrivals_s[first]))
        waiting = int(np.searchsorted(arrivals_s, start_s, side="right")) - first
        rows = min(waiting, max_batch)
        took[first : first + rows] = start_s + answer[rows] - arrivals_s[first : first + rows]
        free_s = start_s + float(busy[rows])
        first += rows
    return took


def ideal_p99_s(rate_per_s: float, tau: Tau, max_batch: int, seconds: float, seed: int = 0) -> float:
    """p99 of the ideal queue over so many seconds of load, of which the first tenth only fills the queue."""
    arrivals_s = poisson(rate_per_s, seconds, seed)
    took = latencies(arrivals_s, tau, max_batch)
    return float(np.percentile(took[arrivals_s >= seconds / 10], 99))
