"""Rows that were read a moment ago, by key, bounded in bytes. **Pure.**

Two questions, so that nobody takes an old row for a new one: which rows are fresh enough to spare the store the question, and
which could stand in where the store does not answer. What a row says of its own age is judged elsewhere, as always.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache

from feature_client.schema import US_PER_S
from feature_client.view import View

ENTRY_BYTES = 256
"""What CPython 3.11 keeps per entry beside the bytes of key and row: 228 measured over 100 000 entries, and room to grow."""

_PART_OF_AGE = 0.05
"""How much of the age that a row may have it may spend here: a row must not become stale by being remembered."""


class RowCache:
    """Least recently used rows go first. Ownership: whoever holds it calls it from one thread at a time.

    Units: seconds of any clock that only moves forward. `ttl_s`: how long a row is fresh, at most; `absent_ttl_s`: how long it
    is known that there is none, where rows are fresh for as long; `max_stale_s`: how long after it was read a row may stand in
    for a store that does not answer.
    """

    def __init__(self, max_bytes: int, ttl_s: float = 1.0, max_stale_s: float = 60.0, absent_ttl_s: float = 0.25) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._max_stale_s = max_stale_s
        self._absent_ttl_s = min(absent_ttl_s, ttl_s)
        self._entries: OrderedDict[bytes, tuple[bytes | None, float]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def ttl_s(self, view: View) -> float:
        """How long a row of this view is fresh: never more than a twentieth of the age that any of its features may have."""
        age_us = _shortest_age_us(view)
        return min(self._ttl_s, _PART_OF_AGE * age_us / US_PER_S) if age_us else self._ttl_s

    def clear(self) -> None:
        """Remember nothing."""
        self._entries.clear()
        self.bytes = 0

    def fresh(self, keys: Iterable[bytes], now_s: float, ttl_s: float) -> dict[bytes, bytes | None]:
        """What need not be asked: rows, and None for keys that were just found to have none. Keys that lack are unknown."""
        found: dict[bytes, bytes | None] = {}
        absent_ttl_s = min(self._absent_ttl_s, ttl_s)
        entry_of, used = self._entries.get, self._entries.move_to_end
        for key in keys:
            entry = entry_of(key)
            if entry is None:
                continue
            row, read_s = entry
            if now_s - read_s < (ttl_s if row is not None else absent_ttl_s):
                found[key] = row
                used(key)
        return found

    def stale(self, keys: Iterable[bytes], now_s: float) -> dict[bytes, bytes]:
        """Rows that may stand in where the store does not answer. That there was none a while ago says nothing about now."""
        found: dict[bytes, bytes] = {}
        for key in keys:
            row, read_s = self._entries.get(key, (None, 0.0))
            if row is not None and now_s - read_s <= self._max_stale_s:
                found[key] = row
        return found

    def remember(self, rows: Iterable[tuple[bytes, bytes | None]], read_s: float) -> None:
        """Keep what the store said, or that it has no row. `read_s`: when it was asked, so that waiting does not make it newer.

        What was asked later stays: answers can overtake each other.
        """
        entries, used = self._entries, self._entries.move_to_end
        entry_of = entries.get
        size = self.bytes
        for key, row in rows:
            known = entry_of(key)
            if known is None:
                size += ENTRY_BYTES + len(key)
            elif known[1] > read_s:
                continue
            else:
                used(key)
                size -= len(known[0] or b"")
            if row is not None:
                size += len(row)
            entries[key] = (row, read_s)
        while size > self._max_bytes:
            key, (row, _) = entries.popitem(last=False)
            size -= ENTRY_BYTES + len(key) + len(row or b"")
        self.bytes = size


@lru_cache(maxsize=1024)
def _shortest_age_us(view: View) -> int:
    """The age at which the first of a view's features is stale; 0 if none ever is."""
    return min(filter(None, (view.max_age_us, *(feature.max_age_us for feature in view.features))), default=0)
