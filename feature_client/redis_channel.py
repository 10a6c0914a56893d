"""One connection to a Redis server that nobody's deadline ever cuts.

redis-py connects it (names, TLS, users) and hiredis parses; waiting is done here, because both ways of giving up on a reply
that clients offer are wrong for a cache: closing the connection makes a storm of reconnects out of a slow second, and going on
regardless hands one caller's reply to the next. A channel whose caller has left keeps what is not sent yet and counts what is
still to come; it is clean again when the last of that has come, and only then used for another call.
"""

import select
import ssl
import time
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.connection import AbstractConnection

from feature_client.errors import StoreError

Word = bytes | str | int
Reply = Any
"""bytes, int, None, a list of those, or a `hiredis.ReplyError`."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_BUFFER_BYTES = 1 << 17
_READS_BETWEEN_LOOKS = 16
"""How often a channel reads before it looks at the clock again: 2 MiB, about a millisecond."""
_KEPT_BUFFER_BYTES = 1 << 20
"""How much of its buffer the parser keeps between replies. Its own 16 KiB is allocated anew for every large reply."""


def packed(*commands: tuple[Word, ...]) -> bytes:
    """Commands as they go over the wire."""
    pack: Any = hiredis.pack_command  # its stub takes tuples of one word only
    return b"".join(map(pack, commands))


@dataclass(frozen=True)
class _More:
    """What the parser gives when the reply is not whole yet; None and False are replies."""


_MORE = _More()


class Channel:
    """A connection, clean or owing. Ownership: one thread at a time.

    `owed`: replies still to come. `owing_since_s`: kept here for whoever keeps channels.
    Raises: StoreError from every method but `close` and `fresh`, when the connection is lost; it is closed then.
    """

    def __init__(self, connection: AbstractConnection, name: str) -> None:
        # no public name gives the socket; a version of redis-py that had none by this name would fail every test of this file
        found = connection._get_socket()
        if found is None:
            raise StoreError(f"{name} closed the connection at once")
        self.name = name
        self.owed = 0
        self.owing_since_s = 0.0
        self.closed = False
        self._connection = connection
        self._socket = found
        self._socket.setblocking(False)
        self._is_tls = isinstance(found, ssl.SSLSocket)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._reader.setmaxbuf(_KEPT_BUFFER_BYTES)
        self._poll = select.poll()
        self._registered = select.POLLIN
        self._poll.register(found, self._registered)
        self._unsent = memoryview(b"")
        self._replies: list[Reply] = []

    def begin(self, packed: bytes, replies: int) -> None:
        """Send commands that are answered by so many replies, as far as that goes without waiting. Only on a clean channel."""
        # counted before anything is sent: whatever interrupts this, the channel never seems cleaner than it is
        self.owed = replies
        self._replies = []
        self._unsent = memoryview(packed)
        self._advance()

    def finish(self, deadline_s: float) -> list[Reply] | None:
        """The replies; None when the deadline ends first: then the channel owes the rest. Takes what is there in any case."""
        while not self._advance():
            if not self._wait(deadline_s):
                return None
        replies, self._replies = self._replies, []
        return replies

    def settle(self) -> bool:
        """Throw away what has come for a caller that has left, without waiting; whether the channel is clean now."""
        settled = self._advance()
        self._replies.clear()
        return settled

    def fresh(self) -> bool:
        """Whether a clean channel may be used: the server has neither closed it nor said anything unasked."""
        if self._reader.has_data():  # it came together with the last reply, and would be taken for the next one
            return False
        try:
            self._socket.recv_into(self._buffer)
        except _WOULD_BLOCK:
            return True
        except OSError:
            return False
        return False

    def awaited(self) -> int:
        """What to poll its socket for; 0 where there is something to do already."""
        if self._is_tls and self._socket.pending():  # type: ignore[attr-defined]  # decrypted already, so nothing will wake us
            return 0
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def fileno(self) -> int:
        """The socket's number, for polling several."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of it. Idempotent; in a forked child the parent's connection stays up."""
        self.closed = True
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def _advance(self) -> bool:
        """Send and take what is possible without waiting; whether nothing is owed any more."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            for _ in range(_READS_BETWEEN_LOOKS):
                self._parse()
                if not self.owed:
                    return True
                count = self._socket.recv_into(self._buffer)
                if not count:
                    raise self._lost("the server closed it")
                self._reader.feed(self._buffer, 0, count)  # type: ignore[arg-type]  # any buffer; the stub knows bytes only
            self._parse()
        except _WOULD_BLOCK:
            pass
        except OSError as error:
            raise self._lost(error.strerror or type(error).__name__) from None
        except hiredis.ProtocolError:
            raise self._lost("what answers does not speak the protocol of Redis") from None
        return not self.owed

    def _parse(self) -> None:
        while self.owed:
            reply = self._reader.gets()
            if reply is _MORE:
                return
            self.owed -= 1
            self._replies.append(reply)

    def _wait(self, deadline_s: float) -> bool:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        awaited = self.awaited()
        if not awaited:
            return True
        if awaited != self._registered:
            self._poll.modify(self._socket, awaited)
            self._registered = awaited
        return bool(self._poll.poll(left_s * 1000))

    def _lost(self, reason: str) -> StoreError:
        self.close()
        return StoreError(f"the connection to {self.name} was lost: {reason}")
