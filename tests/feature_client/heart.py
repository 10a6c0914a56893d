"""Whether a call kept to its budget, on a machine that stands still now and then.

A heart beats beside the calls, in the same process. Where it missed many beats nothing ran here, the call neither: such a
standstill (the machine's, or a collection in a process full of other tests' objects) is not held against the call.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

BEAT_S = 0.005
STANDSTILL_S = 0.1
"""Shorter gaps are threads that wait for the interpreter, which callers of a busy process have to live with."""
SLACK_S = 0.5
"""What a slow machine under other load may add."""


class _Heart:
    """Beats in a thread of its own from the first budget on. Units: monotonic seconds."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self._standstills: deque[tuple[float, float]] = deque(maxlen=100)
        threading.Thread(target=self._beat, daemon=True, name="heart").start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            now_s = time.monotonic()
            if now_s - self._last_s > STANDSTILL_S:
                self._standstills.append((self._last_s, now_s))
            self._last_s = now_s

    def stood_still_s(self, began_s: float, ended_s: float) -> float:
        """How long nothing ran between two instants; `ended_s` has just been."""
        gaps = [*self._standstills, (self._last_s, ended_s)]
        overlaps_s = (min(until_s, ended_s) - max(since_s, began_s) for since_s, until_s in gaps)
        return sum(gap_s for gap_s in overlaps_s if gap_s > STANDSTILL_S)


_heart = cache(_Heart)


@contextmanager
def budget(budget_s: float) -> Iterator[None]:
    """What is done inside takes no longer than `budget_s`, SLACK_S and the standstills."""
    heart = _heart()
    began_s = time.monotonic()
    yield
    ended_s = time.monotonic()
    still_s = heart.stood_still_s(began_s, ended_s)
    assert ended_s - began_s - still_s < budget_s + SLACK_S, f"{ended_s - began_s:.3f} s, {still_s:.3f} s of them standstill"
