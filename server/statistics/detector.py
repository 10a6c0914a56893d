"""Detectors: evidence of many windows, gathered so that false alarms are rare by construction. **Pure.**

Floor 1. Each window's p-value becomes an e-value (of mean at most 1 where there is no drift), and these are gathered by the
Shiryaev-Roberts recursion M = (1 + M) e. Without drift M minus the number of windows is a supermartingale, so an alarm at
M >= A comes after A windows or more on average, however streams depend on each other. An alarm of a whole family is the mean of
its detectors. Everything is in logarithms, since a detector may exceed the largest float. Who resets a detector is the caller.

Source: Shin, Ramdas and Rinaldo, "E-detectors" (arXiv 2203.03532); Vovk and Wang, "E-values" (arXiv 1912.06116).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EMPTY = -math.inf
"""The logarithm of a detector that has seen nothing."""
P_LEAST, P_MOST = 1e-300, 1 - 1e-9
SERIES_BELOW = 0.5


def e_value(p: float) -> float:
    """A p-value as an e-value: (1 - p + p ln p) / (p ln^2 p), which falls from 1/(p ln^2 p) to 1/2 and whose integral is 1.

    With L = -ln p this is (e^L - 1 - L) / L^2, of which the powers are summed where the difference would lose digits.

    Raises: ValueError where p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a p-value is between 0 and 1, not {p}")
    size = -math.log(min(max(p, P_LEAST), P_MOST))
    if size >= SERIES_BELOW:
        return (math.expm1(size) - size) / (size * size)
    total = 0.0
    for power in range(15, -1, -1):
        total = total * size + 1 / math.factorial(power + 2)
    return total


def step(log_detector: float, e: float) -> float:
    """The logarithm of (1 + M) e: the detector after one more window. Raises ValueError where e is negative or not a number."""
    if not e >= 0:
        raise ValueError(f"an e-value is not negative: {e}")
    grown = max(log_detector, 0.0) + math.log1p(math.exp(-abs(log_detector)))
    return grown + math.log(e) if e > 0 else EMPTY


def family(log_detectors: Sequence[float] | NDArray[np.float64], weights: Sequence[float] | None = None) -> float:
    """The logarithm of the mean of detectors, EMPTY where there are none. Its run length is that of each of them.

    `weights`: of a weighted mean; they are positive, and 1 together.
    """
    logs = np.asarray(log_detectors, dtype=np.float64)
    top = float(logs.max()) if logs.size else EMPTY
    if math.isinf(top):
        return top
    return top + math.log(float(np.average(np.exp(logs - top), weights=weights)))
