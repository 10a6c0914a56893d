"""Where replicas go when nobody finds them any more: quiesced, closed, memory returned, counters put away.

Floor 4: it takes what `table` has already reported away. It never closes a backend that a request may still use.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

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
        """Take a dead replica out of service at once, its siblings not; False if it was out of service already."""
        with self._lock:  # who leaves is among those that leave as soon as nobody finds it: it shares a lease with its siblings
            if not self._table.dead(replica, reason):
                return False
            self._leave(replace(replica, siblings=()))
        # what waited is answered by who is left, or that it is late: not under a lock
        self._plane.close(replica.queue_id, move=True)
        return True

    def lose(self, device: str, reason: str, on_lost: Callable[[], None]) -> bool:
        """Take everything on a lost device out of service at once, and end what waits for it; False if that was known.

        `on_lost` is called before anybody is answered: who hears of it finds nothing READY there.
        """
        with self._lock:  # as in `bury`
            gone = self._table.lose(device, reason)
            if gone is None:
                return False
            self._leaving += gone
            doomed = [each for replica in self._leaving for each in replica.everywhere if each.device == device]
        on_lost()
        for replica in doomed:
            self._fail(replica)
        return True

    def _fail(self, replica: Replica) -> None:
        reason = self._table.lost[replica.device]
        self._plane.close(replica.queue_id, move=True)  # whoever is left on another device answers what waits
        self._plane.fail(replica.queue_id, f"'{replica.key.model}' is not at ready state: {reason}")

    def leave(self, replica: Replica) -> None:
        """Admit nothing more to a replica that was reported away or replaced, on any device."""
        with self._lock:
            self._leave(replica)
        for each in replica.everywhere:
            if each.device in self._table.lost:
                self._fail(each)  # lost as it was leaving, before it could be seen here

    def _leave(self, replica: Replica) -> None:
        for each in replica.everywhere:
            self._plane.close(each.queue_id)
        self._leaving.append(replica)

    def close_idle(self, wait_s: float = 0.0) -> None:
        """Close every replica whose last request has ended; waits at most `wait_s` for those that still execute."""
        until_ns = self._clock() + int(wait_s * NS_PER_S)
        for replica in list(self._leaving):
            if all(self._plane.wait_idle(each.queue_id, self._left_s(until_ns)) for each in replica.everywhere):
                self._close(replica)

    def _left_s(self, until_ns: int) -> float:
        return max(0, until_ns - self._clock()) / NS_PER_S

    def _close(self, replica: Replica) -> None:
        unreturned = {each.device: self._close_backend(each) for each in replica.everywhere}
        key = replica.key
        with self._lock:
            self._leaving.remove(replica)
            serving = self._table.published.ready.get(key)
            inside = self._leaving if serving is None else [*self._leaving, serving]
            if replica.lease is not None and all(other.lease is not replica.lease for other in inside):
                replica.lease.release()
            if serving is not None and serving.entrance == replica.entrance:
                serving.recorder.hold_memory(sum(each.memory_bytes for each in serving.everywhere))
            if key in self._table.published.ready or any(other.key == key for other in self._leaving):
                return  # the version is still in memory, as another replica
            state = self._table.actual().get(key)
            if state is not None and state.state is State.UNLOADING:
                told = (f"; {nbytes} bytes of {device} were not given back" for device, nbytes in unreturned.items() if nbytes)
                self._table.unloaded(key, "".join(told))
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
