"""What stands between the door and a sink of traces: a bounded buffer, and the thread that empties it.

Floor 2. Handing over a trace never waits: a full buffer, or a sink that fails, costs traces, which are counted. The thread
exists from the first trace on; it wakes once per burst, not once per trace.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from server.telemetry.readings import TraceReading
from server.telemetry.trace import Trace, TracedTensor

_log = logging.getLogger("podium.traces")

_BURST_S = 0.2
"""How long a burst may last before it is written."""
_MOST_AT_ONCE = 512
_LAST_WORD_S = 0.2


class TraceSink(Protocol):
    """Where traces go. Ownership: the writer's thread, but for `abandon`."""

    def write(self, traces: Sequence[Trace]) -> None:
        """Write or send. Raises: OSError, with what the operator should know."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...

    def abandon(self) -> None:
        """End a `write` that waits, from another thread: its traces are lost."""
        ...


class TraceWriter:
    """Thread-safe. `most` traces, and `most_bytes` of tensors, wait at a time."""

    def __init__(self, sink: TraceSink, most: int, most_bytes: int) -> None:
        self._sink = sink
        self._most = most
        self._most_bytes = most_bytes
        self._waiting: deque[tuple[Trace, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._written = self._dropped = 0
        self._failing = False

    def put(self, trace: Trace) -> bool:
        """Hand over a trace; False where it was dropped."""
        held = sum(map(_held_bytes, trace.tensors))
        with self._changed:
            full = len(self._waiting) >= self._most or (held and self._bytes + held > self._most_bytes)
            if full or self._closing.is_set():
                self._dropped += 1
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="podium-traces", daemon=True)
                self._thread.start()
            self._waiting.append((trace, held))
            self._bytes += held
            if len(self._waiting) == 1:
                self._changed.notify()
        return True

    def reading(self) -> TraceReading:
        """How many were written, and how many were lost."""
        with self._changed:
            return TraceReading(self._written, self._dropped)

    def close(self, timeout_s: float) -> bool:
        """Write what waits, as far as that is done within the time. Idempotent.

        Returns: False if the thread is still inside its sink.
        """
        with self._changed:
            self._closing.set()
            self._changed.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        if thread.is_alive():
            with self._changed:
                self._dropped += len(self._waiting)
                self._waiting.clear()
            self._sink.abandon()
            thread.join(_LAST_WORD_S)
            _log.warning("traces were given up at the end", extra={"dropped": self.reading().dropped})
        return not thread.is_alive()

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._sink.write(batch)
            except OSError as error:
                self._lost(len(batch), str(error))
            except Exception as bug:  # noqa: BLE001 - a trace that cannot be written must not end the others
                _log.exception("traces could not be written")
                self._lost(len(batch), f"{type(bug).__name__}")
            else:
                with self._changed:
                    self._written += len(batch)
                if self._failing:
                    self._failing = False
                    _log.info("traces are written again")
        self._sink.close()

    def _lost(self, number: int, reason: str) -> None:
        with self._changed:
            self._dropped += number
        if not self._failing:  # once per outage, not once per batch
            self._failing = True
            _log.warning("traces are lost", extra={"reason": reason})

    def _take(self) -> list[Trace]:
        """The next traces; empty when there are none and will be none."""
        with self._changed:
            while not self._waiting and not self._closing.is_set():
                self._changed.wait()
            if len(self._waiting) < _MOST_AT_ONCE and not self._closing.is_set():
                self._changed.release()
                try:
                    self._closing.wait(_BURST_S)
                finally:
                    self._changed.acquire()
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_AT_ONCE))]
            self._bytes -= sum(held for _, held in taken)
            return [trace for trace, _ in taken]


def _held_bytes(tensor: TracedTensor) -> int:
    data = tensor.data
    if isinstance(data, bytes):
        return len(data)
    return data.nbytes if data.dtype != object else sum(map(len, data.ravel().tolist()))
