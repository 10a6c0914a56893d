"""From the numbers of a baseline to bins that never change. **Pure.**

Floor 4. Edges are values that occurred (or the number just below one), so they can be written in the column's own type: a value
is compared with an edge in float32 in a window exactly as it was in the baseline.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.monitoring.columns import Numbers
from server.monitoring.streams import Numeric, Origin

BINS = 10
"""Of about equal mass, whatever the number of rows. Which number is right is for the *windows* to say, and they have 200 to
10,000 rows: 20 bins would double the bias and noise of PSI, (B - 1) (1/n + 1/m), and tell hardly more of a shift."""
LEAST_SHARE = 0.0005
"""Of what has a bin or a cell of its own: 5 rows in a window of 10,000, below which a test by counts means little."""
MAX_ROWS = 10**8
"""Of a baseline, or of a window."""
MAX_UNITS = 2**20
"""How far a winsorised value can be from the centre, in scales: `MAX_ROWS` of 2**20 * SUM_SCALE = 2**36 are below 2**63."""
MIN_SCALE, MAX_SCALE = 2.0**-960, 2.0**1023
"""SUM_SCALE / scale is a number that float64 has."""

_WINSOR = (0.001, 0.999)


def numeric(name: str, origin: Origin, values: Numbers) -> Numeric:
    """The stream of a column whose finite values these are, in any order. Shapes: `values` `[n]`, of the column's own type.

    With no values at all there is one bin, and every number that comes is out of range.
    """
    if not len(values):
        return Numeric(name, origin, (), np.inf, np.inf, (0.0, 0.0), 0.0, 1.0)
    ordered: Any = np.sort(values)
    low, high = float(ordered[0]), float(ordered[-1])
    winsor = (_quantile(ordered, _WINSOR[0]), _quantile(ordered, _WINSOR[1]))
    center = _quantile(ordered, 0.5)
    scale = _scale(ordered, winsor, center)
    return Numeric(name, origin, edges(ordered), low, high, winsor, center, scale)


def edges(ordered: Numbers) -> tuple[float, ...]:
    """Edges of about `BINS` bins of equal mass. Shapes: `ordered` `[n]`, n > 0, ascending and finite.

    A value with at least 1 / BINS of the mass has a bin of its own; what lies between such values is divided by itself, unless
    it is less than `LEAST_SHARE`: no bin is empty in the baseline, because where the baseline has next to nothing, PSI is large
    by its smoothing alone. A column of few values has few bins, and one that is constant has one.
    """
    distinct, counts = np.unique(ordered, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    atoms = np.flatnonzero(counts * BINS >= len(ordered)).tolist()
    made: list[float] = []
    first = 0
    for atom in [*atoms, len(distinct)]:
        between = ordered[ends[first] : ends[atom]]
        counted = len(between) >= max(1, LEAST_SHARE * len(ordered))
        if first > 0 and (counted or atom < len(distinct)):
            made.append(float(distinct[first - 1]))
        if counted:
            made += _between(between, len(ordered))
        if counted and atom < len(distinct):
            # everything up to the atom is below its bin, also what the baseline has not seen
            made.append(float(np.nextafter(distinct[atom], distinct.dtype.type(-np.inf))))
        first = atom + 1
    # as numbers: 0 and -0 are one edge
    return tuple(np.unique(np.array(made, dtype=np.float64)).tolist())


def _between(ordered: Numbers, whole: int) -> list[float]:
    """Edges within a part of the `whole` values, none of which is an atom."""
    bins = max(1, round(len(ordered) * BINS / whole))
    places = [-(-len(ordered) * step // bins) - 1 for step in range(1, bins)]
    return [float(ordered[place]) for place in places if ordered[place] < ordered[-1]]


def _quantile(ordered: NDArray[Any], share: float) -> float:
    """The least value that at least this share of all is not above: one that occurred."""
    return float(ordered[max(0, int(np.ceil(share * len(ordered))) - 1)])


def _scale(ordered: NDArray[Any], winsor: tuple[float, float], center: float) -> float:
    """The interquartile range. Where it is 0: the winsorised range, else the whole one, else the value itself, else 1. It is
    never so small that the winsorised values are more than `MAX_UNITS` away.
    """
    with np.errstate(over="ignore"):
        spreads = np.array(
            [
                _quantile(ordered, 0.75) - _quantile(ordered, 0.25),
                winsor[1] - winsor[0],
                float(ordered[-1]) - float(ordered[0]),
                abs(center),
                1.0,
            ]
        )
        scale = float(spreads[spreads > 0][0])
        furthest = max(winsor[1] - center, center - winsor[0])
    return float(np.clip(max(scale, furthest / MAX_UNITS), MIN_SCALE, MAX_SCALE))
