"""The stream of samples, read from a saved position: each entry once, and what was trimmed before it was read counted.

Floor 4; loaded by name, with the client of the feature store. What is damaged, or was written by somebody else, is counted and
left out: it stops nobody.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from server.monitoring.codec import decode
from server.monitoring.entries import Offered, decode_offered, decode_outcomes
from server.monitoring.outcome import Outcome
from server.monitoring.redis_stream import RedisStream
from server.monitoring.samples import Samples
from server.monitoring.stream_position import START, StreamPosition, earlier, entry_fields

_ENTRIES = 64
"""Read at once: 16 MiB of full ones."""
_LOG = logging.getLogger(__name__)


class Taking(Protocol):
    """What is done with what was read, in the order of the stream, on the reader's thread. `entry`: an id, for `earlier`."""

    def reached(self, entry: str, time_us: int, /) -> None:
        """An entry comes next, which the server took at that time, microseconds since 1970."""
        ...

    def samples(self, entry: str, samples: Samples, /) -> None:
        """Sampled rows."""
        ...

    def offered(self, entry: str, counts: Offered, /) -> None:
        """Rows that were chosen and will not come."""
        ...

    def outcome(self, entry: str, outcome: Outcome, /) -> None:
        """What was true of one."""
        ...

    def begun_anew(self) -> None:
        """The server has lost the stream, and ids of entries begin anew."""
        ...


class RedisSource:
    """Ownership: one thread. `position`: of a saved state, b"" for none.

    `missed_rows`: rows that were trimmed before they were read; they are handed out as dropped. `damaged_entries`: entries that
    could not be read.
    Raises: StoreError for a URL that cannot be one, ValueError for what is no position.
    """

    def __init__(self, url: str, stream: str, position: bytes, taking: Taking) -> None:
        self._stream = RedisStream(url, stream)
        self._position = StreamPosition.load(position) if position else StreamPosition()
        self._taking = taking
        self._at = self._position.last
        self.missed_rows = 0
        self.damaged_entries = 0

    @property
    def position(self) -> bytes:
        """Where everything before was handed out: what is saved together with what was made of it."""
        return self._position.dump()

    @property
    def last(self) -> str:
        """The id of the last entry that was handed out."""
        return self._position.last

    def read(self, wait_s: float) -> int:
        """Hand out what comes next; wait so long where there is nothing. How many entries were met, 0 at the stream's end.

        Raises: StoreError; nothing was handed out then, and the next call goes on.
        """
        # 0 would wait for ever
        wait = ("BLOCK", max(1, int(wait_s * 1000))) if wait_s > 0 else ()
        answer = self._stream.ask("XREAD", "COUNT", _ENTRIES, *wait, "STREAMS", self._stream.stream, self._at, wait_s=wait_s)
        if not answer:
            self._position.started()
            self._notice_a_new_stream()
            return 0
        entries = answer[0][1]
        for entry_id, words in entries:
            self._at = entry_id.decode()
            self._take(self._at, words)
        return len(entries)

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        self._stream.close()

    def _take(self, entry_id: str, words: Any) -> None:
        try:
            given = self._given(entry_id, words)
        except (ValueError, KeyError) as error:
            self._position.last = entry_id
            self.damaged_entries += 1
            _LOG.warning("an entry of the stream cannot be read", extra={"entry": entry_id, "reason": str(error)})
            return
        self._taking.reached(entry_id, 1000 * int(entry_id.partition("-")[0]))
        for each in given:
            if isinstance(each, Samples):
                self._taking.samples(entry_id, each)
            elif isinstance(each, Offered):
                self._taking.offered(entry_id, each)
            else:
                self._taking.outcome(entry_id, each)

    def _given(self, entry_id: str, words: Any) -> Sequence[Samples | Offered | Outcome]:
        """What is to be handed out of an entry: nothing, where it was met before. Raises: ValueError, KeyError."""
        fields = entry_fields(words)
        writer = fields[b"w"].decode()
        if not self._position.take(entry_id, writer, int(fields[b"s"])):
            return ()
        kind, blob = fields[b"k"], fields[b"b"]
        if kind == b"offered":
            return decode_offered(blob)
        if kind == b"outcomes":
            return decode_outcomes(blob)
        if kind != b"samples":
            raise ValueError(f"an entry of kind {kind!r}")
        samples, before = decode(blob), int(fields[b"c"])
        missed = self._position.missed(writer, (samples.key, samples.arm), before, samples.rows)
        if not missed or not samples.rows:
            return (samples,)
        self.missed_rows += missed
        return (Offered(samples.key, samples.arm, missed, missed, int(samples.time_us[0])), samples)

    def _notice_a_new_stream(self) -> None:
        """A server that lost its memory, and whose clock is behind, begins with ids before ours: read those, too."""
        if self._at == START or not self._stream.ask("EXISTS", self._stream.stream):
            return
        found = dict(zip(*[iter(self._stream.ask("XINFO", "STREAM", self._stream.stream))] * 2, strict=True))
        if earlier(found[b"last-generated-id"].decode(), self._at):
            _LOG.warning("the stream began anew: it is read from its beginning", extra={"position": self._at})
            self._at = START
            self._taking.begun_anew()
