"""Detectors that never look at a row. Whoever scores worse than one of them has shown nothing; whoever scores as well, too."""

from collections.abc import Callable, Sequence

import numpy as np

from bench.drift.playing import Seen
from bench.drift.streams import DAY, Table

RULE = "dummy"
COIN = 0.05


class Dummy:
    """Says for each window what a function makes of its index."""

    rules: Sequence[str] = (RULE,)
    memory, blind, at_once = False, True, 1

    def __init__(self, name: str, alarm: Callable[[int], bool]) -> None:
        self.name, self._alarm = name, alarm

    def fit(self, rows: Table, window_rows: int) -> None:
        """It learns nothing."""

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """What it says, whatever is in them."""
        return [Seen({RULE: self._alarm(first + offset)}) for offset in range(len(windows))]

    def effect(self, rows: Table) -> float:
        """It measures nothing."""
        return float("nan")


def dummies(seed: int) -> list[Dummy]:
    """One that never alarms, one that always does, one that does once a day, and one that tosses a coin."""
    random = np.random.default_rng(seed)
    return [
        Dummy("never", lambda index: False),
        Dummy("always", lambda index: True),
        Dummy(f"every {DAY}th", lambda index: index % DAY == DAY - 1),
        Dummy(f"coin, p={COIN}", lambda index: bool(random.random() < COIN)),
    ]
