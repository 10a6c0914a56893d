"""Samples, counts and outcomes into one Redis stream that all replicas share.

Floor 4; loaded by name, with the client of the feature store. An entry has the writer's own number `w`, random for each life
of it, and a sequence number `s`: an answer may be lost after the entry was added, so it is added again, and readers know both
for one. Never more than one entry on its way: so what a reader sees of one writer, repetitions aside, is in order.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from feature_client.errors import StoreError
from server.core.errors import InvalidRequest, NotReady
from server.core.versions import VersionKey
from server.monitoring.codec import encode, redacted
from server.monitoring.entries import Offered, encode_offered, encode_outcomes
from server.monitoring.outcome import Outcome
from server.monitoring.redis_stream import RedisStream
from server.monitoring.samples import Samples, together
from server.monitoring.sink import Lost

ENTRY_BYTES = 256 * 1024
"""About how large an entry is at most: an answer's time of a local network is short beside sending it."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_MAX_ITEMS = 10_000
"""Counts or outcomes of one entry."""
_LOG = logging.getLogger(__name__)


class RedisWriter:
    """Adds entries to the stream, each once however often it is sent. Thread-safe: one caller at a time, the others wait.

    `keep_rows`: about how many rows the stream keeps; older entries go. Units: `retry_s`: for how long an entry is tried again.
    """

    def __init__(self, url: str, stream: str, keep_rows: int, retry_s: float = 5.0) -> None:
        self.number = secrets.token_hex(8)
        self._stream = RedisStream(url, stream)
        self._keep_rows = keep_rows
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._sequence = 0
        self._mean_rows = 0.0
        self._stopped = threading.Event()

    def add(self, kind: str, blob: bytes, rows: int, before: int = 0) -> None:
        """Add one entry. `before`: rows of its version and arm that this writer has added so far.

        Raises: StoreError when it was tried for long enough: then it may still be in the stream, or come into it.
        """
        with self._lock:
            self._sequence += 1
            self._mean_rows = rows if self._sequence == 1 else 0.95 * self._mean_rows + 0.05 * rows
            entries = max(16, int(self._keep_rows / max(1.0, self._mean_rows)))
            fields = (b"w", self.number, b"s", self._sequence, b"k", kind, b"n", rows, b"c", before, b"b", blob)
            until, pause = time.monotonic() + self._retry_s, _FIRST_PAUSE_S
            while True:
                try:
                    self._stream.ask("XADD", self._stream.stream, "MAXLEN", "~", entries, "*", *fields)
                    return
                except StoreError as error:
                    if time.monotonic() + pause > until or self._stopped.wait(pause):
                        raise
                    _LOG.debug("an entry is sent again", extra={"reason": str(error)})
                    pause = min(2 * pause, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Wait for nothing any more. Idempotent."""
        self._stopped.set()
        with self._lock:
            self._stream.close()


class RedisSink:
    """A `Sink`: samples of all versions to the stream, and beside them how many rows there were.

    `redact` says for a version what must not leave this process, and which inputs its features are packed into. Ownership:
    `write`, `idle` and `close` belong to the thread of the sink, `count` may be called by any.
    """

    name = "redis"

    def __init__(
        self, writer: RedisWriter, redact: Callable[[VersionKey], tuple[Sequence[str], Mapping[str, Sequence[str]]]]
    ) -> None:
        self._writer = writer
        self._redact = redact
        self._added: dict[tuple[VersionKey, str], int] = {}
        self._lock = threading.Lock()
        self._counts: dict[tuple[VersionKey, str, int], tuple[int, int]] = {}

    def write(self, samples: Sequence[Samples]) -> None:
        """See `Sink`. An entry is tried for some seconds; once one is given up, the rest of the call is, too.

        Raises: Lost, with how many rows were given up.
        """
        waiting = sum(each.rows for each in samples)
        self._send_counts()
        for each in together(samples):
            for part in _parts(redacted(each, *self._redact(each.key))):
                place = (part.key, part.arm)
                before = self._added.get(place, 0)
                try:
                    self._writer.add("samples", encode(part), part.rows, before)
                except (StoreError, ValueError) as error:
                    raise Lost(waiting, str(error)) from None
                self._added[place] = before + part.rows
                waiting -= part.rows

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """See `Sink`."""
        self.count(key, arm, rows, rows, time_us)

    def count(self, key: VersionKey, arm: str, offered: int, dropped: int, time_us: int) -> None:
        """Rows that were chosen, and those of them that were lost before they came here. They are sent within a second."""
        second = time_us // 1_000_000
        with self._lock:
            there = self._counts.get((key, arm, second), (0, 0))
            self._counts[key, arm, second] = (there[0] + offered, there[1] + dropped)

    def idle(self) -> None:
        """See `Sink`."""
        self._send_counts()

    def close(self) -> None:
        """See `Sink`."""
        self._send_counts()
        self._writer.close()

    def _send_counts(self) -> None:
        """What cannot be sent now is sent later: numbers of a second take no room, and add up."""
        with self._lock:
            counts, self._counts = self._counts, {}
        places = list(counts)
        while places:
            some = places[:_MAX_ITEMS]
            items = [Offered(place[0], place[1], *counts[place], place[2] * 1_000_000) for place in some]
            try:
                self._writer.add("offered", encode_offered(items), len(items))
            except StoreError as error:
                _LOG.warning("counts of samples wait", extra={"sink": self.name, "reason": str(error)})
                break
            del places[: len(some)]
        for key, arm, second in places:
            self.count(key, arm, *counts[key, arm, second], second * 1_000_000)


class RedisOutcomes:
    """Outcomes to the stream, for whoever reads it to join. `writer` is one of its own: outcomes do not wait for samples."""

    def __init__(self, writer: RedisWriter) -> None:
        self._writer = writer

    def send(self, outcomes: Sequence[Outcome]) -> None:
        """Return once they are in the stream. Any thread but the event loop's; waits for some seconds at most.

        Raises: NotReady where they may not be, and sending them again changes nothing; InvalidRequest for what cannot be sent.
        """
        for first in range(0, len(outcomes), _MAX_ITEMS):
            some = outcomes[first : first + _MAX_ITEMS]
            try:
                self._writer.add("outcomes", encode_outcomes(some), len(some))
            except StoreError as error:
                raise NotReady(f"outcomes cannot be handed on: {error}") from None
            except ValueError as error:
                raise InvalidRequest(str(error)) from None

    def close(self) -> None:
        """Nothing more will come. Idempotent."""
        self._writer.close()


def _parts(samples: Samples) -> Iterator[Samples]:
    rows = max(1, ENTRY_BYTES * samples.rows // max(1, samples.nbytes))
    for first in range(0, samples.rows, rows):
        yield samples.part(slice(first, first + rows))
