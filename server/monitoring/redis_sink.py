"""Samples, counts and outcomes into one Redis stream that all replicas share.

Floor 4; loaded by name, with the client of the feature store. An entry has the writer's own number `w`, random for each life
of it, and a sequence number `s`: an answer may be lost after the entry was added, so it is added again, and readers know both
for one. Never more than one entry on its way: so what a reader sees of one writer, repetitions aside, is in order.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from feature_client.errors import StoreError
from server.core.errors import InvalidRequest, NotReady
from server.core.versions import VersionKey
from server.monitoring.codec import Redaction, encode, redacted
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

    def add(self, kind: str, blob: bytes, rows: int, before: int = 0, *, again: bool = False) -> None:
        """Add one entry. `before`: rows of its version and arm that this writer has added so far. `again`: it is the last one,
        which was given up.

        Raises: StoreError when it was tried for long enough: then it may still be in the stream, or come into it.
        """
        with self._lock:
            self._sequence += not again
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

    `redact` says for a version what must not leave this process, and which inputs its features are packed into. Ownership: of
    both writers; one thread, that of its lane. `losses` is another writer: what it adds is repeated until that is answered,
    however many samples come in between.
    """

    name = "redis"

    def __init__(self, writer: RedisWriter, losses: RedisWriter, redact: Callable[[VersionKey], Redaction]) -> None:
        self._writer = writer
        self._losses_writer = losses
        self._redact = redact
        self._unanswered: Sequence[Offered] = ()
        self._added: dict[tuple[VersionKey, str], int] = {}
        self._told: set[VersionKey] = set()
        self._losses: dict[tuple[VersionKey, str, int], int] = {}

    def write(self, samples: Sequence[Samples]) -> None:
        """See `Sink`. An entry is tried for some seconds; once one is given up, the rest of the call is, too.

        Raises: Lost.
        """
        self._send_losses()
        parts = [part for each in together(samples) for part in _parts(self._redacted(each))]
        for index, part in enumerate(parts):
            place = (part.key, part.arm)
            before = self._added.get(place, 0)
            try:
                self._writer.add("samples", encode(part), part.rows, before)
            except (StoreError, ValueError) as error:
                given_up = [(each.key, each.arm, each.rows, int(each.time_us[0])) for each in parts[index:]]
                raise Lost(given_up, str(error)) from None
            self._added[place] = before + part.rows

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """See `Sink`. Sent within a second, or as soon as the server answers again."""
        place = (key, arm, time_us)
        if place not in self._losses and len(self._losses) >= _MAX_ITEMS:
            place = next(reversed(self._losses))  # about that time
        self._losses[place] = self._losses.get(place, 0) + rows

    def idle(self) -> None:
        """See `Sink`."""
        self._send_losses()

    def close(self) -> None:
        """See `Sink`."""
        self._send_losses()
        self._losses_writer.close()
        self._writer.close()

    def _redacted(self, samples: Samples) -> Samples:
        names, packed = self._redact(samples.key)
        if names and samples.key not in self._told:
            self._told.add(samples.key)
            _LOG.warning(
                "redacted columns are not monitored: they stay in this process",
                extra={"model": str(samples.key), "names": names},
            )
        return redacted(samples, names, packed)

    def _send_losses(self) -> None:
        """What cannot be sent now waits: it takes no room, and adds up."""
        again = bool(self._unanswered)
        if not again:
            self._unanswered = [Offered(key, arm, rows, rows, at) for (key, arm, at), rows in self._losses.items()]
            self._losses.clear()
        if self._unanswered:
            try:
                self._losses_writer.add("offered", encode_offered(self._unanswered), len(self._unanswered), again=again)
                self._unanswered = ()
            except StoreError as error:
                _LOG.warning("counts of lost samples wait", extra={"sink": self.name, "reason": str(error)})


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
