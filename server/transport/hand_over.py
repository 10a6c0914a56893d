"""When the door wakes the engine: after it has taken in everything that had already arrived, not at the first request.

On one core the door and the engine share the interpreter. An engine woken per request takes batches of one, and each wake
costs more than a small model does: 64 in flight through a trivial model went at little more than half the rate of no batching
at all. So the door keeps turning its loop for some rounds first. This is no timer: a round does work that has arrived, or
ends at once; a caller who is alone waits for no round; and while the engine is busy nothing here delays it, since it looks
for work by itself when it is done.
"""

import asyncio
from collections.abc import Callable

ROUNDS = 64
"""Measured 2026-11-21, trivial model, server on one core, requests/s at 64 and at 8 in flight (and mean batch): 0 rounds 2,219
(1.3) and 1,785 (1.3); 16: 4,097 (4.5) and 2,292 (4.0); 32: 4,115 (8.2) and 3,539 (6.7); 64: 4,574 (13) and 3,767 (6.5); 128:
4,741 (20) and 3,108 (6.2). No batching at all: 3,593 at 64."""

MEMORY = 64
"""So many bursts of one in a row make a caller count as alone. The callers that are open at one instant say little by
themselves: at 64 in flight most requests are still in socket buffers while one is being handled."""


class HandOver:
    """Wakes once per burst. Ownership: the event loop it was made on."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = wake
        self._armed = False
        self._rounds_left = 0
        self._crowded = 0
        self.callers = 0
        """Calls that are open at the door right now; their handlers count themselves in and out."""

    def arm(self) -> None:
        """A request was queued: the engine will be woken soon."""
        if self.callers > 1:
            self._crowded = MEMORY
        if not self._armed:
            self._armed = True
            self._rounds_left = ROUNDS if self._crowded > 0 else 0
            self._crowded -= self._crowded > 0
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._rounds_left > 0:
            self._rounds_left -= 1
            self._loop.call_soon(self._turn)
            return
        self._armed = False
        self._wake()
