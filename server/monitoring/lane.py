"""The way of samples to one sink: a bounded buffer that never waits, and the thread that empties it.

Floor 4. Whatever a sink does (a slow disk, a server that hangs), nobody who serves feels it: what does not fit is dropped, and
every drop is counted under its reason.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from server.core.versions import VersionKey
from server.monitoring.samples import Samples
from server.monitoring.sink import Lost, Sink

_log = logging.getLogger("podium.monitoring")
_PAUSE_S = 0.25
"""How long samples may lie before the thread looks: waking it for each batch would cost the engine more than the copy."""
_CLOSE_S = 5.0

_US_PER_MINUTE = 60_000_000
_INSTANTS = 4096
"""Minutes of versions that losses are told apart by, while the sink is not asking."""


class Lane:
    """One sink and what waits for it. Thread-safe: any engine offers. Ownership: of the sink, which it closes."""

    def __init__(self, sink: Sink, max_rows: int, max_bytes: int) -> None:
        self.name = sink.name
        self.before: Callable[[], None] = lambda: None
        """What its thread does before it looks for samples: they may be held elsewhere."""
        self._sink = sink
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._lock = threading.Lock()  # guards everything below but the last three
        self._waiting: list[Samples] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._writing_rows = self._writing_bytes = 0
        self._oldest_s = 0.0
        self._written = 0
        self._dropped: Counter[str] = Counter()
        self._losses: Counter[tuple[VersionKey, str, int]] = Counter()
        self._closing = False
        self._failing: set[str] = set()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"monitoring-{sink.name}", daemon=True)
        self._thread.start()

    def offer(self, samples: Samples, rows: int, nbytes: int) -> None:
        """Keep these for the sink, or drop and count them. Never waits."""
        with self._lock:
            # what the sink has at hand counts: one that hangs must not have a second buffer
            held_rows, held_bytes = self._waiting_rows + self._writing_rows, self._waiting_bytes + self._writing_bytes
            if self._closing or held_rows + rows > self._max_rows or held_bytes + nbytes > self._max_bytes:
                reason = "closed" if self._closing else "buffer_full"
                self._lose(samples.key, samples.arm, rows, int(samples.time_us[0]), reason)
                return
            if not self._waiting:
                self._oldest_s = time.monotonic()
            self._waiting.append(samples)
            self._waiting_rows += rows
            self._waiting_bytes += nbytes
            wake = self._waiting_rows * 2 > self._max_rows or self._waiting_bytes * 2 > self._max_bytes
        if wake and not self._wake.is_set():
            self._wake.set()

    def lose(self, key: VersionKey, arm: str, rows: int, time_us: int, reason: str) -> None:
        """Rows were chosen, and dropped before they were offered."""
        with self._lock:
            self._lose(key, arm, rows, time_us, reason)

    def counts(self) -> tuple[int, int, dict[str, int]]:
        """Rows that were written, rows that wait or are being written, and rows that were dropped, by reason."""
        with self._lock:
            return self._written, self._waiting_rows + self._writing_rows, dict(self._dropped)

    def lag_s(self) -> float:
        """How long the oldest of what waits has waited."""
        with self._lock:
            return time.monotonic() - self._oldest_s if self._waiting_rows or self._writing_rows else 0.0

    def close(self) -> None:
        """Write what waits and close the sink; one that hangs is waited for 5 seconds. Idempotent."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_S)

    def _lose(self, key: VersionKey, arm: str, rows: int, time_us: int, reason: str) -> None:
        self._dropped[reason] += rows
        place = key, arm, time_us - time_us % _US_PER_MINUTE
        if place not in self._losses and len(self._losses) >= _INSTANTS:
            place = next(reversed(self._losses))
        self._losses[place] += rows

    def _run(self) -> None:
        while True:
            self._wake.wait(_PAUSE_S)
            self._attempt("before", self.before)
            with self._lock:
                self._wake.clear()
                closing = self._closing
                samples, self._waiting = self._waiting, []
                self._writing_rows, self._writing_bytes = self._waiting_rows, self._waiting_bytes
                self._waiting_rows = self._waiting_bytes = 0
            if samples:
                self._write(samples)
                del samples  # while it waits for the next ones
            self._tell()
            self._attempt("idle", self._sink.idle)
            if closing:
                self._attempt("close", self._sink.close)
                return

    def _write(self, samples: list[Samples]) -> None:
        done = self._attempt("write", lambda: self._sink.write(samples))
        with self._lock:
            rows, self._writing_rows, self._writing_bytes = self._writing_rows, 0, 0
            if done:
                self._written += rows
            else:
                for each in samples:
                    self._lose(each.key, each.arm, each.rows, int(each.time_us[0]), "sink_failed")

    def _tell(self) -> None:
        with self._lock:
            losses, self._losses = self._losses, Counter()
        for (key, arm, time_us), rows in losses.items():
            if not self._attempt("lost", partial(self._sink.lost, key, arm, rows, time_us)):
                with self._lock:
                    self._losses[key, arm, time_us] += rows

    def _attempt(self, name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except Lost as lost:
            with self._lock:
                self._written -= lost.rows
                for key, arm, rows, time_us in lost.losses:
                    self._lose(key, arm, rows, time_us, "sink_failed")
            if name not in self._failing:
                _log.warning("a sink of samples lost some", extra={"sink": self.name, "step": name, "reason": str(lost)})
            self._failing.add(name)
            return True
        except Exception:  # noqa: BLE001 - a bug in a sink costs samples, and neither this thread nor an answer
            if name not in self._failing:
                _log.exception("a sink of samples fails", extra={"sink": self.name, "step": name})
            self._failing.add(name)
            return False
        self._failing.discard(name)
        return True
