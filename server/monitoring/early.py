"""Early outcomes: those that are known before the samples of their prediction have come. **Pure.**

Floor 4. Samples reach the monitors a little after the answer reached its caller, so an outcome can be faster. It waits for a
while, and the oldest are dropped first where too many wait. Most of what waits was never sampled and never will be.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Place = tuple[str, int]
"""Model and version; version 0 for whichever answered."""

EARLY_ROWS = 65_536
EARLY_US = 300_000_000
"""How many wait at most (about 300 bytes each), and how long: samples that take longer than that are not late but lost."""


class Waiting(NamedTuple):
    """One outcome that waits, since when, and whether a prediction has already been found for it."""

    label: float
    since_us: int
    found: bool


class Early:
    """Outcomes by model, version and the number of their row. Ownership: one thread at a time."""

    def __init__(self, limit: int = EARLY_ROWS, patience_us: int = EARLY_US) -> None:
        self._limit, self.patience_us = limit, patience_us
        self._waiting: dict[Place, dict[int, Waiting]] = {}
        self._order: deque[tuple[Place, int]] = deque()

    def __len__(self) -> int:
        return len(self._order)

    def put(self, place: Place, key: int, label: float, now_us: int) -> tuple[Waiting | None, list[Place]]:
        """Let an outcome wait; what waited for the same row before, and the places of the oldest that gave way unfound.

        One that a prediction was found for is not replaced.
        """
        there = self._waiting.setdefault(place, {})
        before = there.get(key)
        if before is None:
            there[key] = Waiting(label, now_us, False)
            self._order.append((place, key))
        elif not before.found:
            there[key] = before._replace(label=label)
        return before, self._drop(len(self._order) - self._limit)

    def meet(self, place: Place, keys: Sequence[int]) -> Iterator[tuple[int, Waiting]]:
        """The number of each of these rows that an outcome waits for, and that as it was. It waits on, and is no longer
        unfound: a version in another arm may have answered the same request.
        """
        there = self._waiting.get(place, {})
        for key in sorted(there.keys() & set(keys)) if there else ():
            waiting, there[key] = there[key], there[key]._replace(found=True)
            yield key, waiting

    def expire(self, now_us: int) -> list[Place]:
        """Drop what has waited too long; the places of those that no prediction was found for, one for each of them."""
        last_us = now_us - self.patience_us
        old = 0
        for place, key in self._order:
            if self._waiting[place][key].since_us > last_us:
                break
            old += 1
        return self._drop(old)

    def _drop(self, count: int) -> list[Place]:
        unfound = []
        for _ in range(count):
            place, key = self._order.popleft()
            gone = self._waiting[place].pop(key)
            if not self._waiting[place]:
                del self._waiting[place]
            if not gone.found:
                unfound.append(place)
        return unfound

    def rows(self) -> list[tuple[str, int, int, Waiting]]:
        """Everything that waits, the oldest first: model, version, number of the row, and what it is."""
        return [(*place, key, self._waiting[place][key]) for place, key in self._order]

    def restore(self, rows: Sequence[tuple[str, int, int, Waiting]]) -> None:
        """Wait for what `rows` gave."""
        for model, version, key, waiting in rows:
            self._waiting.setdefault((model, version), {})[key] = waiting
            self._order.append(((model, version), key))
