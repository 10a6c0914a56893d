"""Who calls what: requests per version and consumer, counted one by one by the door.

Floor 2. One update of one dict per request (0.5 us, docs/METRICS.md, "Cost"), under a lock that nobody holds for longer than
that: what takes time (adding up, writing text) happens to a dict that was swapped out. The engine never comes here. It reads
the wall clock, and writes no file.
"""

import threading
import time
from collections.abc import Callable

from server.core.requests import INVALID_CONSUMER, OTHER_CONSUMERS
from server.core.versions import VersionKey
from server.telemetry.readings import ConsumerReading
from server.telemetry.usage import UsageRow, Use, UseKey, Uses, day_of, forget_old, rows_of, write_usage

MAX_IDENTITIES = 1000
"""Declared identities that one server tells apart; every further one is counted as `OTHER_CONSUMERS`. The first come stay."""
MAX_ROWS = 4000
"""Declared consumers of versions, likewise: what a scrape, a page and the file have lines for."""

UNDECLARED = ""
_COLLECTIVE = frozenset({UNDECLARED, INVALID_CONSUMER, OTHER_CONSUMERS})
"""Identities that stand for any number of callers, and are always counted."""


class Consumers:
    """The uses of every version. Thread-safe."""

    def __init__(self, wall_clock_ns: Callable[[], int] = time.time_ns, settle: Callable[[], None] = lambda: None) -> None:
        """`settle` brings in, by `count`, what is counted elsewhere until somebody asks; called without a lock."""
        self._wall_clock_ns = wall_clock_ns
        self._settle = settle
        self._lock = threading.Lock()  # guards the four below: never held for longer than one update
        self._fresh: dict[tuple[VersionKey, str], list[int]] = {}  # requests, first and last ns, since the last fold
        self._identities: set[str] = set()
        self._known: set[tuple[VersionKey, str]] = set()
        self._changed = False
        self._folding = threading.Lock()  # guards the three below; taken before the other one
        self._uses: Uses = {}
        self._since_start: dict[UseKey, int] = {}
        self._pruned_on = 0

    def count(self, key: VersionKey, consumer: str, requests: int = 1) -> None:
        """So many requests of `consumer` have reached a version."""
        now_ns = self._wall_clock_ns()
        with self._lock:
            entry = self._fresh.get((key, consumer))
            if entry is None:
                entry = self._begin(key, consumer, now_ns)
            entry[0] += requests
            entry[2] = now_ns

    def _begin(self, key: VersionKey, consumer: str, now_ns: int) -> list[int]:
        """The entry of a consumer that has none since the last fold: its own, or that of all who are too many."""
        use = (key, consumer)
        if consumer not in _COLLECTIVE and use not in self._known:
            new = consumer not in self._identities
            if (new and len(self._identities) >= MAX_IDENTITIES) or len(self._known) >= MAX_ROWS:
                use = (key, OTHER_CONSUMERS)
            else:
                self._identities.add(consumer)
                self._known.add(use)
        self._changed = True
        return self._fresh.setdefault(use, [0, now_ns, now_ns])

    def resume(self, uses: Uses) -> None:
        """Go on from what was counted before; takes over `uses`. Before the first `count`."""
        with self._folding:
            self._uses = uses
            self._forget(self._wall_clock_ns())

    def readings(self) -> list[ConsumerReading]:
        """What was counted since the process started."""
        self._settle()
        with self._folding:
            self._fold()
            counted = sorted(self._since_start.items())
        return [ConsumerReading(use.key, use.consumer, requests) for use, requests in counted]

    def rows(self, model: str | None = None) -> list[UsageRow]:
        """The uses of one model, or of all."""
        self._settle()
        with self._folding:
            self._fold()
            return rows_of(self._uses, model)

    def changed(self) -> bool:
        """Whether anything was counted since this was asked last."""
        self._settle()
        with self._lock:
            changed, self._changed = self._changed, False
            return changed

    def fold(self) -> None:
        """Add up what was counted since the last time, so that it belongs to its day."""
        self._settle()
        with self._folding:
            self._fold()

    def text(self, server: str) -> bytes:
        """All uses as a file's content. Takes milliseconds: not for the event loop's thread."""
        self._settle()
        with self._folding:
            self._fold()
            return write_usage(server, self._uses)

    def _fold(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        now_ns = self._wall_clock_ns()
        for (key, consumer), (requests, first_ns, last_ns) in fresh.items():
            use = UseKey(key, consumer)
            # a fold comes every few seconds: around midnight those count as the day in which they ended
            self._uses.setdefault(use, Use()).add(requests, first_ns, last_ns, [(day_of(last_ns), requests)])
            self._since_start[use] = self._since_start.get(use, 0) + requests
        if day_of(now_ns) != self._pruned_on:
            self._forget(now_ns)

    def _forget(self, now_ns: int) -> None:
        """Make room: who has not come for long is no longer one of those told apart."""
        forget_old(self._uses, now_ns)
        self._since_start = {use: count for use, count in self._since_start.items() if use in self._uses}
        self._pruned_on = day_of(now_ns)
        with self._lock:
            # what has been counted since the swap above stays known
            known = {(use.key, use.consumer) for use in self._uses} | self._fresh.keys()
            self._known = {use for use in known if use[1] not in _COLLECTIVE}
            self._identities = {consumer for _, consumer in self._known}
