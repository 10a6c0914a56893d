"""Where replicas go when nobody finds them any more: quiesced, closed, memory returned, counters put away.

Floor 4: it takes what `table` has already reported away. It never closes a backend that a request may still use.
"""

import logging
import threading
from collections.abc import Callable

from server.core.clock import NS_PER_S, Clock
from server.core.versions import State
from server.dataplane.interface import DataPlane
from server.lifecycle.metrics import Metrics
from server.lifecycle.replica import Replica
from server.lifecycle.table import Table

_log = logging.getLogger(__name__)


class Retirement:
    """Replicas that are leaving. `bury` is for any thread, the rest for the manager's alone."""

    def __init__(self, table: Table, plane: DataPlane, metrics: Metrics, clock: Clock) -> None:
        self._table = table
        self._plane = plane
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._leaving: list[Replica] = []
        self._abandoned: list[Replica] = []

    def __len__(self) -> int:
        return len(self._leaving)

    def leaving(self) -> list[Replica]:
        """Who is not closed yet."""
        return list(self._leaving)

    def bury(self, replica: Replica, reason: str) -> bool:
        """Take a dead replica out of service at once; False if it was out of service already."""
        if not self._table.dead(replica, reason):
            return False
        self.leave(replica)
        return True

    def lose(self, device: str, reason: str, on_lost: Callable[[], None]) -> bool:
        """Take everything on a lost device out of service at once, and end what waits for it; False if that was known.

        `on_lost` is called before anybody is answered: who hears of it finds nothing READY there.
        """
        gone = self._table.lose(device, reason)
        if gone is None:
            return False
        on_lost()
        with self._lock:
            self._leaving += gone
            doomed = [replica for replica in self._leaving if replica.device == device]
        for replica in doomed:
            self._fail(replica)
        return True

    def _fail(self, replica: Replica) -> None:
        reason = self._table.lost[replica.device]
        self._plane.fail(replica.queue_id, f"'{replica.key.model}' is not at ready state: {reason}")

    def leave(self, replica: Replica) -> None:
        """Admit nothing more to a replica that was reported away or replaced."""
        self._plane.close(replica.queue_id)
        with self._lock:
            self._leaving.append(replica)
        if replica.device in self._table.lost:
            self._fail(replica)  # lost as it was leaving, before it could be seen here

    def close_idle(self, wait_s: float = 0.0) -> None:
        """Close every replica whose last request has ended; waits at most `wait_s` for those that still execute."""
        until_ns = self._clock() + int(wait_s * NS_PER_S)
        for replica in list(self._leaving):
            left_s = max(0, until_ns - self._clock()) / NS_PER_S
            if self._plane.wait_idle(replica.queue_id, left_s):
                self._close(replica)

    def _close(self, replica: Replica) -> None:
        unreturned = self._close_backend(replica)
        if replica.lease is not None:
            replica.lease.release()
        key = replica.key
        with self._lock:
            self._leaving.remove(replica)
            if key in self._table.published.ready or any(other.key == key for other in self._leaving):
                return  # the version is still in memory, as another replica
            state = self._table.actual().get(key)
            if state is not None and state.state is State.UNLOADING:
                self._table.unloaded(key, f"; {unreturned} bytes of {replica.device} were not given back" if unreturned else "")
            self._metrics.remove(key)

    def _close_backend(self, replica: Replica) -> int:
        """Returns the bytes that its device did not get back."""
        if replica.device in self._table.lost:
            # freeing what is there may hang or end the process, whose end frees it; nor may the collector try
            self._abandoned.append(replica)
            return 0

        def close() -> None:
            try:
                replica.backend.close()
            except Exception:  # noqa: BLE001 - one backend that cannot be closed must not stop the others
                _log.exception("%s: closing its backend failed", replica.key)

        reservation = replica.reservation
        if reservation is None:
            close()
            return 0
        unreturned = reservation.release(close)
        if unreturned:
            _log.warning(
                "%s: %d of %d bytes of %s were not given back", replica.key, unreturned, reservation.nbytes, replica.device
            )
        return unreturned
