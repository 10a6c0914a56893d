"""How much the windows of a baseline differ from each other: what is different every week is no news. **Pure.**

Floor 4. Rows of one window are often no independent sample of the whole: they share a weather, a day of the week, a campaign.
A test of rows calls each of them another distribution, and is right. What an operator wants to hear of is what differs by more
than windows did while the version was validated.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from server.monitoring.checks import pools
from server.monitoring.streams import Counts, Layout
from server.statistics.distances import psi

LEAST_WINDOWS = 4
MOST_WINDOWS = 1024
"""That are looked at; of more, the last."""
CHANCE = 1e-3
"""Streams without any variation of their own that are given one all the same."""
MARGIN = 2.0
"""How many times as far as the most extreme window of a baseline further ones may be: it has seen few of them."""


def variation(layout: Layout, whole: Counts, windows: Sequence[Counts]) -> tuple[float, ...]:
    """For each stream the PSI by which windows may differ from the baseline for being windows; 0 where they differ by chance.

    Shapes: `whole` and each of `windows` `[layout.size]`; the windows are parts of the whole.

    A part of m of n rows has a PSI of (B - 1) (1 / m - 1 / n) on average, if its rows are any of the n, and all of them
    together, each over its (1 / m - 1 / n), a chi-square law. Where that is unlikely by `CHANCE`, the largest PSI beyond what
    chance gives is taken `MARGIN` times.
    """
    if len(windows) < LEAST_WINDOWS:
        return (0.0,) * len(layout.streams)
    return tuple(_of_stream(layout, index, whole, windows) for index, _ in layout)


def _of_stream(layout: Layout, index: int, whole: Counts, windows: Sequence[Counts]) -> float:
    own = layout.cells(whole, index)
    n, total, freedom, largest = int(own.bins.sum()), 0.0, 0, 0.0
    for counts in windows:
        part = layout.cells(counts, index).bins
        m = int(part.sum())
        starts = pools(own.bins, m)
        if len(starts) < 2 or m >= n:
            continue
        before, after = np.add.reduceat(own.bins, starts), np.add.reduceat(part, starts)
        spread = 1 / m - 1 / n
        distance = psi(before, after)
        total += distance / spread
        freedom += len(starts) - 1
        largest = max(largest, distance - (len(starts) - 1) * spread)
    if not freedom or float(special.chdtrc(freedom, total)) >= CHANCE:
        return 0.0
    return MARGIN * largest
