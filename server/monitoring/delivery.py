"""Events on their way to one destination: tried until they are received.

Floor 4, a thread for each destination: one that hangs keeps no other from its events, and nothing here is waited for by an
inference. Never drops an event: what a receiver rejects is logged each time and tried again, as seldom as may be.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.monitoring.events import Event
from server.monitoring.outbox import Outbox

FIRST_WAIT_S = 1.0
_JITTER = 0.2
_IDLE_S = 3600.0
"""How long a thread sleeps that nobody has woken. Nothing depends on it."""
_log = logging.getLogger("podium.monitoring")


class Undelivered(Exception):
    """An attempt that ended without a receipt: the event may have been received, or not.

    `rejected`: the receiver has understood it and wants none of it, or is no receiver; somebody has to look.
    `retry_after_s`: when it asked to be tried again.
    """

    def __init__(self, text: str, *, rejected: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.rejected = rejected
        self.retry_after_s = retry_after_s


class Destination(Protocol):
    """Somebody who gets events. One thread at a time, but for `close`."""

    @property
    def name(self) -> str:
        """By which confirmations are kept: it must not change with a restart."""
        ...

    def deliver(self, event: Event) -> None:
        """Return with a receipt, within the time that an attempt may take. Raises: Undelivered."""
        ...

    def close(self) -> None:
        """End what is going on; called from another thread. Idempotent."""
        ...


def wait_s(attempts: int, failure: Undelivered, longest_s: float, draw: float) -> float:
    """How long to wait after so many attempts in vain, of which `failure` is the last. `draw`: uniform in [0, 1).

    Doubled from one second up to the longest, and a little less, so that replicas do not all come back at once. A receiver that
    asks for more time gets it, up to the longest.

    >>> [wait_s(attempts, Undelivered("away"), 60.0, 0.0) for attempts in (1, 2, 3, 9)]
    [1.0, 2.0, 4.0, 60.0]
    """
    if failure.rejected:
        return longest_s
    waited_s = min(longest_s, FIRST_WAIT_S * 2.0 ** min(attempts - 1, 60))
    return max(waited_s * (1 - _JITTER * draw), min(failure.retry_after_s or 0.0, longest_s))


@dataclass(slots=True)
class _Tried:
    """How often an event was tried in vain, and when it is next."""

    attempts: int = 0
    next_s: float = 0.0


class Courier(threading.Thread):
    """Brings the events of an outbox to one destination.

    `told` hears of each attempt: the event, and "delivered" (the last confirmation), "received", "failed" or "rejected".
    """

    def __init__(
        self,
        outbox: Outbox,
        destination: Destination,
        longest_s: float,
        told: Callable[[Event, str], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name=f"podium-events-{destination.name}", daemon=True)
        self._outbox = outbox
        self._destination = destination
        self._longest_s = longest_s
        self._told = told
        self._draw = draw
        self._tried: dict[str, _Tried] = {}
        self._changed = threading.Condition()
        self._woken = True
        self._stopped = False

    def wake(self) -> None:
        """There is something new in the outbox."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def stop(self) -> None:
        """Try nothing any more. What is being tried ends by itself, or with its destination's `close`. Idempotent."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Deliver, until stopped."""
        while not self._stopped:
            pause_s = self._round()
            with self._changed:
                if not self._stopped and not self._woken:
                    self._changed.wait(pause_s)
                self._woken = False

    def _round(self) -> float:
        """Try what is due. Returns: how long until something else is."""
        waiting = self._outbox.waiting(self._destination.name)
        self._tried = {each.id: self._tried.get(each.id, _Tried()) for each in waiting}
        for event in waiting:
            if not self._stopped and time.monotonic() >= self._tried[event.id].next_s:
                self._try(event)
        left = [self._tried[event.id].next_s for event in waiting if event.id in self._tried]
        return max(0.0, min(left, default=time.monotonic() + _IDLE_S) - time.monotonic())

    def _try(self, event: Event) -> None:
        tried = self._tried[event.id]
        tried.attempts += 1
        try:
            self._destination.deliver(event)
        except Undelivered as failure:
            self._failed(event, tried, failure)
            return
        except Exception as bug:  # noqa: BLE001 - a destination that has a bug must not end the others' events
            _log.exception("an event could not be delivered", extra=self._about(event))
            self._failed(event, tried, Undelivered(type(bug).__name__, rejected=True))
            return
        try:
            last = self._outbox.confirm(event.id, self._destination.name)
        except OSError as error:
            # it was received; should this process be killed before that can be written, it is delivered again
            last = False
            _log.error("that an event was received cannot be written", extra={**self._about(event), "reason": str(error)})
        del self._tried[event.id]
        _log.info("a retrain event was received", extra={**self._about(event), "attempts": tried.attempts})
        self._told(event, "delivered" if last else "received")

    def _failed(self, event: Event, tried: _Tried, failure: Undelivered) -> None:
        pause_s = wait_s(tried.attempts, failure, self._longest_s, self._draw())
        tried.next_s = time.monotonic() + pause_s
        if not self._stopped:
            level = logging.ERROR if failure.rejected else logging.WARNING
            about = {**self._about(event), "attempts": tried.attempts, "again_in_s": round(pause_s, 1), "reason": str(failure)}
            _log.log(level, "a retrain event was not received", extra=about)
        self._told(event, "rejected" if failure.rejected else "failed")

    def _about(self, event: Event) -> dict[str, str]:
        return {"model": event.model, "event_id": event.id, "destination": self._destination.name}
