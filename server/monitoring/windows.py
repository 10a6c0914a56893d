"""Windows: which counts belong together, and when they are complete. **Pure.**

Floor 4. Tumbling windows by the rows' own time. A window is closed once `reached_us` is past its end and the grace; rows that
come later are counted as late and change nothing. `reached_us` is the instant that the caller passes, or, where rows bring
their time (`by_rows`, so that a replay runs at any speed), the time of the latest row, with one exception: a row further ahead
than the window after the one reached is kept, and only believed once `min_rows` rows are there or beyond. So one row of a
caller with a wrong clock closes nothing, and a real gap (a night, a weekend) costs no row. Rows that claim to be later than
now, or from before 1970, are misdated, counted, and nothing else.

A closed window with fewer than `min_rows` rows waits and is judged together with the next one that has rows; one without any is
told at once, as what it is, and what waited goes on waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from server.core.monitoring_settings import ModelMonitoring
from server.monitoring.reading import KEPT_WINDOWS
from server.monitoring.streams import Counts

US_PER_S = 1_000_000
MAX_OPEN = 1024
"""Windows that may be open, as far as time has come: with a grace of more windows than these, the oldest are closed before
it."""
MOST_OPEN = 2 * MAX_OPEN
"""Windows that may be open in all, whatever times rows claim."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A window, or several that were merged, that nothing will be added to. `counts` None: it has no rows.

    `offered`: rows that were chosen in that time, its own included; `dropped`: those of them that were lost.
    """

    start_us: int
    end_us: int
    rows: int
    offered: int
    dropped: int
    counts: Counts | None


@dataclass(slots=True)
class Open:
    """A window that still takes rows. `offered` without its own rows; `latest_us`: the time of its latest row."""

    rows: int = 0
    offered: int = 0
    dropped: int = 0
    latest_us: int = 0
    counts: Counts | None = None


@dataclass(slots=True)
class Windows:
    """Of one version in one arm. Ownership: whoever calls it holds one lock.

    `frontier_us`: windows before it are closed. `reached_us`: how far time has come. None: not known yet. `unplaced`: offered
    and dropped rows of which is not known yet in which time they were.
    """

    window_us: int
    grace_us: int
    min_rows: int
    by_rows: bool
    frontier_us: int | None = None
    reached_us: int | None = None
    late_rows: int = 0
    misdated_rows: int = 0
    unplaced: tuple[int, int] = (0, 0)
    waiting: Closed | None = None
    open: dict[int, Open] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: ModelMonitoring) -> "Windows":
        """Nothing seen yet."""
        window_us, grace_us = round(settings.window_s * US_PER_S), round(settings.grace_s * US_PER_S)
        return cls(window_us, grace_us, settings.min_rows, bool(settings.time_input))

    @property
    def open_rows(self) -> int:
        """Rows that have not been judged."""
        return sum(window.rows for window in self.open.values()) + (self.waiting.rows if self.waiting else 0)

    def places(self, time_us: NDArray[np.int64], now_us: int) -> Iterator[tuple[int, NDArray[np.intp] | slice]]:
        """The windows of some rows, by their start, each with the rows that it takes.

        Shapes: `time_us` `[N]`. Rows that are in none of the windows are counted as late or misdated, and so are those of a
        window that would be one too many. What is found is added before the next is asked for.
        """
        due_us, latest_us = self._due_us(), now_us + self.window_us
        starts = time_us - time_us % self.window_us
        wrong = (time_us < 0) | (time_us > latest_us)
        late = ~wrong & (starts < due_us)
        taken = ~(wrong | late)
        self.misdated_rows += int(np.count_nonzero(wrong))
        self.late_rows += int(np.count_nonzero(late))
        found, counts = np.unique(starts[taken], return_counts=True)
        for start, rows in zip(found.tolist(), counts.tolist(), strict=True):
            if start not in self.open and len(self.open) >= MOST_OPEN:
                self.misdated_rows += rows
            elif rows == len(starts):
                yield start, slice(None)
            else:
                yield start, np.flatnonzero(taken & (starts == start))

    def add(self, start_us: int, rows: int, latest_us: int, counts: Counts) -> None:
        """Rows of one window, as `places` found it. Shapes: `counts` as all others of this object; copied."""
        window = self.open.setdefault(start_us, Open())
        window.rows += rows
        window.latest_us = max(window.latest_us, latest_us)
        if window.counts is None:
            window.counts = counts.copy()
        else:
            window.counts += counts

    def settle(self, now_us: int) -> None:
        """After some rows were added: where they bring their time, move `reached_us` to the latest that there is reason to
        believe."""
        if not self.by_rows:
            return
        rows = 0
        for start in sorted(self.open, reverse=True):
            rows += self.open[start].rows
            if rows >= self.min_rows:
                self.reached_us = max(self.reached_us or 0, start)
                break
        if self.reached_us is None:
            return
        for start in sorted(self.open):
            if start - self.window_us <= self.reached_us and self.open[start].rows:
                self.reached_us = max(self.reached_us, self.open[start].latest_us)
        (offered, dropped), self.unplaced = self.unplaced, (0, 0)
        if offered or dropped:
            self.count(offered, dropped, self.reached_us, now_us)

    def count(self, offered: int, dropped: int, time_us: int, now_us: int) -> None:
        """Rows that were chosen beside those that are added, and how many of them were lost, at about `time_us`.

        Where rows bring their time, the instant they were served at says nothing: they count where time has come to. Of a
        window that is closed they count in the next: nothing that was lost is forgotten.
        """
        if self.by_rows:
            if self.reached_us is None:
                self.unplaced = (self.unplaced[0] + offered, self.unplaced[1] + dropped)
                return
            time_us = self.reached_us
        time_us = max(min(time_us, now_us), self._due_us(), 0)
        window = self.open.setdefault(time_us - time_us % self.window_us, Open())
        window.offered += offered
        window.dropped += dropped

    def close(self, now_us: int) -> list[Closed]:
        """What is complete by now, the oldest first. Of a longer time without rows the last `KEPT_WINDOWS` windows are told."""
        if not self.by_rows:
            self.reached_us = max(now_us, self.reached_us or 0)
        if self.reached_us is None:
            return []
        due_us = self._due_us()
        if self.frontier_us is None:
            # windows without rows are told from the first window with any on, or from now
            here = self.reached_us - self.reached_us % self.window_us
            self.frontier_us = min(self.open, default=here)
        closed = list(self._closed_until(due_us))
        self.frontier_us = max(due_us, self.frontier_us)
        return closed

    def _closed_until(self, due_us: int) -> Iterator[Closed]:
        last = self.frontier_us or 0
        for start in sorted(start for start in self.open if start < due_us):
            yield from self._empty(last, start)
            last = start + self.window_us
            window = self.open.pop(start)
            if not window.rows:
                yield Closed(start, last, 0, window.offered, window.dropped, None)
                continue
            offered = window.rows + window.offered
            merged = _merged(self.waiting, Closed(start, last, window.rows, offered, window.dropped, window.counts))
            self.waiting = merged if merged.rows < self.min_rows else None
            if self.waiting is None:
                yield merged
        yield from self._empty(last, due_us)

    def _empty(self, start_us: int, end_us: int) -> Iterator[Closed]:
        first = max(start_us, end_us - KEPT_WINDOWS * self.window_us)
        for start in range(first, end_us, self.window_us):
            yield Closed(start, start + self.window_us, 0, 0, 0, None)

    def _due_us(self) -> int:
        """What starts before it is closed, or is about to be."""
        due_us = self.frontier_us or 0
        if self.reached_us is None:
            return due_us
        complete = self.reached_us - self.grace_us
        due_us = max(due_us, complete - complete % self.window_us)
        if len(self.open) <= MAX_OPEN:
            return due_us
        behind = sorted(start for start in self.open if due_us <= start <= self.reached_us)
        return behind[-MAX_OPEN] if len(behind) > MAX_OPEN else due_us


def _merged(waiting: Closed | None, closed: Closed) -> Closed:
    if waiting is None or waiting.counts is None or closed.counts is None:
        return closed
    return replace(
        closed,
        start_us=waiting.start_us,
        rows=waiting.rows + closed.rows,
        offered=waiting.offered + closed.offered,
        dropped=waiting.dropped + closed.dropped,
        counts=waiting.counts + closed.counts,
    )
