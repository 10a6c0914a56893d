"""How much the windows of a baseline differ from each other: what is different every week is no news. **Pure.**

Floor 4. Rows of one window are often no independent sample of the whole: they share a weather, a day of the week, a campaign.
A test of rows calls each of them another distribution, and is right. What an operator wants to hear of is what differs by more
than windows did while the version was validated.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy import special

from server.monitoring.checks import meant, places, pools
from server.monitoring.streams import Counts, Layout
from server.statistics.distances import psi

LEAST_WINDOWS, LEAST_MEANT = 4, 5
"""Windows, and rows of each that a rate must be about on average, before anything is said of how they differ."""
MOST_WINDOWS = 1024
"""Windows that are looked at; of more, the last."""
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


def rate_variation(layout: Layout, whole: Counts, windows: Sequence[Counts]) -> dict[str, float]:
    """The same of rates, by `stream:check`, in standard deviations of one row; only of those that differ by more than chance.

    Of m of n rows k ~ hypergeometric: (k - m r)^2 is m r (1 - r) (1 - m / n) on average, and all windows together, each over
    that, are about a chi-square law.
    """
    made: dict[str, float] = {}
    if len(windows) < LEAST_WINDOWS:
        return made
    for place in places(layout, whole):
        if place.check == "distribution":
            continue
        about, n = meant(place.check, layout.cells(whole, place.index))
        if not LEAST_MEANT * len(windows) <= about < n:
            continue
        rate, total, freedom, largest = about / n, 0.0, 0, 0.0
        for counts in windows:
            found, m = meant(place.check, layout.cells(counts, place.index))
            if 0 < m < n:
                total += (found - m * rate) ** 2 / (m * rate * (1 - rate) * (1 - m / n))
                freedom += 1
                largest = max(largest, found / m - rate)
        if freedom and float(special.chdtrc(freedom, total)) < CHANCE:
            made[str(place)] = MARGIN * largest / sqrt(rate * (1 - rate))
    return made
