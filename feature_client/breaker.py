"""Whether to ask a store that has been failing. **Pure.**

closed   every call passes; too many failures open it
open     no call passes, until a probe is due
probing  one call is on its way to find out; when nothing was heard of it in time, another one is sent
"""

from collections import deque
from enum import Enum


class State(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Event(Enum):
    """What moves it."""

    TOO_MANY_FAILURES = "too many failures"
    PROBE_SENT = "probe sent"
    PROBE_SUCCEEDED = "probe succeeded"
    PROBE_FAILED = "probe failed"


NEXT: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TOO_MANY_FAILURES): State.OPEN,
    (State.CLOSED, Event.PROBE_SUCCEEDED): State.CLOSED,  # a second probe, of two
    (State.CLOSED, Event.PROBE_FAILED): State.CLOSED,
    (State.OPEN, Event.PROBE_SENT): State.PROBING,
    (State.OPEN, Event.PROBE_SUCCEEDED): State.CLOSED,
    (State.OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.PROBING, Event.PROBE_SENT): State.PROBING,
    (State.PROBING, Event.PROBE_SUCCEEDED): State.CLOSED,
    (State.PROBING, Event.PROBE_FAILED): State.OPEN,
}
"""The whole machine; what is not here cannot happen."""


class Passage(Enum):
    """What a call is told; it brings it back with its outcome."""

    CALL = "call"
    PROBE = "probe"
    REFUSED = "refused"


class Breaker:
    """Opens after `consecutive` failures in a row, or when `part` of the last `window` calls failed.

    Units: seconds of any clock that only moves forward. Ownership: whoever holds it calls it from one thread at a time.
    """

    def __init__(self, consecutive: int = 5, part: float = 0.5, window: int = 100, probe_every_s: float = 0.25) -> None:
        self._consecutive = consecutive
        self._part = part
        self._failed: deque[bool] = deque(maxlen=window)
        self._window = window
        self._probe_every_s = probe_every_s
        self._in_a_row = 0
        self._failures = 0
        self._probe_at_s = 0.0
        self.state = State.CLOSED

    def ask(self, now_s: float) -> Passage:
        """May a call be made now? Whoever may says afterwards how it went, or nothing if that says nothing of the store."""
        if self.state is State.CLOSED:
            return Passage.CALL
        if now_s < self._probe_at_s:
            return Passage.REFUSED
        self._probe_at_s = now_s + self._probe_every_s
        self._move(Event.PROBE_SENT)
        return Passage.PROBE

    def tell(self, passage: Passage, succeeded: bool, now_s: float) -> None:
        """How a call went. Of calls that were made before it opened, nothing is learnt while it is open."""
        if passage is Passage.PROBE:
            self._move(Event.PROBE_SUCCEEDED if succeeded else Event.PROBE_FAILED)
        elif self.state is State.CLOSED:
            self._count(succeeded)
            often = len(self._failed) == self._window and self._failures >= self._part * self._window
            if self._in_a_row >= self._consecutive or often:
                self._probe_at_s = now_s + self._probe_every_s
                self._move(Event.TOO_MANY_FAILURES)

    def _count(self, succeeded: bool) -> None:
        self._in_a_row = 0 if succeeded else self._in_a_row + 1
        if len(self._failed) == self._window:
            self._failures -= self._failed[0]
        self._failed.append(not succeeded)
        self._failures += not succeeded

    def _move(self, event: Event) -> None:
        before, self.state = self.state, NEXT[self.state, event]
        if before is not self.state:
            # what was counted belongs to the time before
            self._failed.clear()
            self._in_a_row = self._failures = 0
