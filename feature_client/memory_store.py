"""Rows in a dict of this process: the store where there is no other, and the plainest statement of what a store does.

What it holds ends with the process. It never fails and never waits, except for another thread that is just using it.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence

from feature_client.forking import start_anew_in_children
from feature_client.row_times import row_times
from feature_client.store import Key, Row

_SWEEP_EVERY = 4096
"""Writes between two looks for rows that have expired and that nobody has read since."""


class MemoryStore:
    """A `Store` in this process. `clock`: seconds that only grow; what rows expire by. Ownership: any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = "memory"
        self._clock = clock
        self._rows: dict[Key, tuple[Row, float]] = {}
        self._texts: dict[str, str] = {}
        self._since_sweep = 0
        self.start_anew()
        start_anew_in_children(self)

    def start_anew(self) -> None:
        """Have a lock of its own. In a forked child: with a copy of the rows, which are the child's from then on."""
        self._lock = threading.Lock()

    def read(self, keys: Sequence[Key], budget_s: float) -> list[Row | None]:
        """As `Store.read`; always within the budget."""
        with self._lock:
            now_s = self._clock()
            return [self._row(key, now_s) for key in keys]

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        """As `Store.write`. Raises: StoreError where a row lacks the times to be compared by; then none was written."""
        stamped = [(key, bytes(row), row_times(row)) for key, row in rows]
        written = 0
        with self._lock:
            now_s = self._clock()
            for key, row, times in stamped:
                held = self._row(key, now_s)
                if held is not None and row_times(held) > times:
                    continue
                until_s = now_s + expire_s * (1 + random.random() / 10) if expire_s else float("inf")
                self._rows[key] = (row, until_s)
                written += 1
            self._since_sweep += written
            if self._since_sweep >= max(_SWEEP_EVERY, len(self._rows)):
                self._since_sweep = 0
                self._rows = {key: held for key, held in self._rows.items() if held[1] > now_s}
        return written

    def claim_text(self, key: str, text: str) -> str:
        """As `Store.claim_text`."""
        with self._lock:
            return self._texts.setdefault(key, text)

    def ping(self, budget_s: float) -> None:
        """As `Store.ping`: it always answers."""

    def close(self) -> None:
        """As `Store.close`. What it holds stays readable, so that closing twice, or early, harms nobody."""

    def _row(self, key: Key, now_s: float) -> Row | None:
        held = self._rows.get(key)
        if held is None:
            return None
        if held[1] <= now_s:
            del self._rows[key]
            return None
        return held[0]
