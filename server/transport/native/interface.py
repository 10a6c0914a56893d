"""What this package needs of `podium_native`, which may not be there. **Pure**: names, no behaviour."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Metadata = Sequence[tuple[str, str | bytes]]

STARTED, MESSAGE, HALF_CLOSED, GONE, WRITABLE = range(5)
"""Kinds of events. Source: server/dataplane/native/src/calls.h."""


class NativeCall(Protocol):
    """One call. Thread-safe; what it is told once the call is over does nothing. Units: monotonic ns."""

    path: str
    metadata: Sequence[tuple[str, str | bytes]]
    arrival_ns: int
    deadline_ns: int | None
    peer: str

    def auth(self) -> dict[str, list[bytes]]:
        """Properties of the caller's certificate, each with its values."""
        ...

    def start(self, initial: Metadata, /) -> None:
        """Send the headers now, with this metadata."""
        ...

    def send(self, message: bytes, /) -> None:
        """One message; headers go before the first."""
        ...

    def finish(self, code: int, text: str, trailing: Metadata, /) -> None:
        """End the call; no event of it comes afterwards, but for those that are on their way."""
        ...

    def answer(self, message: bytes, text: str, trailing: Metadata, /) -> None:
        """`send`, and `finish` with the code 0."""
        ...

    def taken(self, nbytes: int, /) -> None:
        """A handler has taken a message. To be said of each: a call of which too many wait is not read from."""
        ...

    def want_writable(self) -> None:
        """One event `WRITABLE` once everything that was sent is written."""
        ...


class Native(Protocol):
    """The server. Ownership: one thread."""

    @property
    def event_fd(self) -> int:
        """Readable while events wait."""
        ...

    def listen(self, fd: int, tls: bool, /) -> None:
        """Take over a listening socket. Before `start`."""
        ...

    def set_tls(self, chain: bytes, key: bytes, roots: bytes, /) -> None:
        """What handshakes use from now on. Thread-safe. Raises: RuntimeError with OpenSSL's reason."""
        ...

    def on_handshake(self, check: Callable[[], None], /) -> None:
        """Have this called before each handshake, on an IO thread."""
        ...

    def start(self) -> None:
        """Serve."""
        ...

    def drain(self) -> None:
        """Take no new connections and no new calls."""
        ...

    def wait_drained(self, timeout_s: float, /) -> bool:
        """Wait, on this thread, until no call is open; whether that came to pass."""
        ...

    def stop(self) -> None:
        """End all calls (UNAVAILABLE) and all threads. Idempotent."""
        ...

    def counters(self) -> Mapping[str, int]:
        """By the names of HttpCounters."""
        ...

    def take_events(self) -> list[tuple[int, int, Any]]:
        """Kind, key of the call, and the call (STARTED), the bytes (MESSAGE) or None."""
        ...
