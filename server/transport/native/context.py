"""What a handler knows of its call, and answers it by: `grpc.aio.ServicerContext` over a native call.

Floor 6. Handlers, and all that is put around them, are the same on both doors, so this behaves as grpc.aio's does wherever a
handler or its caller could tell. One thing is better: no error is kept, so that nothing here leads back to a request.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import grpc

from server.core.clock import NS_PER_S, monotonic_ns
from server.transport.native.interface import Metadata, NativeCall

MOST_UNSENT_BYTES = 64 * 1024
"""A handler that has written so much waits for its caller to read: about what gRPC lets one call have on its way."""

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_OK, _UNKNOWN = 0, 2
_MOST_CODE = 16
Parse = Callable[[bytes], Any] | None


class Metadatum(NamedTuple):
    """One pair of metadata; bytes where the key ends in `-bin`."""

    key: str
    value: str | bytes


class NativeContext(grpc.aio.ServicerContext[Any, Any]):
    """One call. Ownership: the event loop."""

    def __init__(self, call: NativeCall, parse: Parse, serialize: Parse) -> None:
        """`parse` and `serialize` None: messages are bytes."""
        self._call = call
        self._parse = parse
        self._serialize = serialize
        self._waiting: deque[bytes] = deque()
        self._half_closed = False
        self._reader: asyncio.Future[None] | None = None
        self._unsent = 0
        self._writable = asyncio.Event()
        self._gone = self._aborted = self._begun = self._finished = False
        self._code: grpc.StatusCode | int | None = None
        self._details = ""
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[Any], None]] = []

    # -- what the server says -------------------------------------------------------------------------------------------

    def feed(self, message: bytes) -> None:
        """A message has arrived."""
        self._waiting.append(message)
        self._wake()

    def close(self) -> None:
        """The caller sends nothing more."""
        self._half_closed = True
        self._wake()

    def leave(self) -> bool:
        """The caller has gone, or its time is over. Returns: whether it was still waiting for its end."""
        self._gone = self._half_closed = True
        self._waiting.clear()
        self._wake()
        self._writable.set()
        return not self._finished

    def drained(self) -> None:
        """Everything that was written has left."""
        self._unsent = 0
        self._writable.set()

    def answer(self, message: bytes) -> None:
        """End the call, well, with its one message."""
        self._finished = True
        self._call.answer(message, self._details, self._trailing)

    def finish(self, code: int, text: str) -> None:
        """End the call, if it has not ended."""
        if not self._finished:
            self._finished = True
            self._call.finish(code, text, self._trailing)

    @property
    def aborted(self) -> bool:
        """Whether the handler ended the call by `abort`."""
        return self._aborted

    @property
    def gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._gone

    @property
    def number(self) -> int:
        """The code that the handler has set, as a number; 0 where it has set none."""
        return _number(self._code) if self._code is not None else _OK

    def serialized(self, message: Any) -> bytes:
        """The bytes of an answer."""
        data: bytes = message if self._serialize is None else self._serialize(message)
        return data

    def parsed(self, data: bytes) -> Any:
        """The message that was sent; it is no longer counted as waiting."""
        self._call.taken(len(data))
        return data if self._parse is None else self._parse(data)

    def take(self) -> bytes:
        """The oldest message that waits; there must be one."""
        return self._waiting.popleft()

    def check(self) -> None:
        """Raises: AbortError, UsageError for a call that has ended, whoever asks."""
        if self._aborted:
            raise grpc.aio.AbortError("Locally aborted.")
        if self._finished:
            raise grpc.aio.UsageError("RPC already finished.")

    def run_callbacks(self) -> None:
        """The handler has ended."""
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # -- what handlers ask ----------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` when there will be none, because of whatever."""
        self.check()
        while not self._waiting:
            if self._half_closed:
                return grpc.aio.EOF
            if self._reader is not None:
                raise grpc.aio.UsageError("another read of this call is waiting")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
            self.check()
        return self.parsed(self._waiting.popleft())

    async def write(self, message: Any) -> None:
        """Send a message; returns once the next one may be made. Raises: InternalError when the caller has gone."""
        self.check()
        data = self.serialized(message)
        if self._gone:
            raise grpc.aio.InternalError("the caller has gone")
        self._begun = True
        self._call.send(data)
        self._unsent += len(data)
        del data, message
        if self._unsent >= MOST_UNSENT_BYTES:
            self._writable.clear()
            self._call.want_writable()
            await self._writable.wait()
            if self._gone:
                raise grpc.aio.InternalError("the caller has gone")

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the headers, once, before any message."""
        self.check()
        if self._begun:
            raise grpc.aio.UsageError("Send initial metadata failed: already sent")
        self._call.start(_checked(initial_metadata))
        self._begun = True

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call and the handler. Raises: AbortError."""
        if self._aborted:
            raise grpc.aio.UsageError("Abort already called!")
        self._aborted = True
        if trailing_metadata or not self._trailing:
            self._trailing = _checked(trailing_metadata)
        self._details = details or self._details
        self._code = code
        self.finish(_number(code), self._details)
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """`abort`, as a status says."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """What the call ends with. Raises: TypeError, ValueError for what cannot be sent."""
        self._trailing = _checked(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What the call would end with now."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """What the caller sent."""
        return tuple(map(Metadatum._make, self._call.metadata))

    def set_code(self, code: Any) -> None:
        """The code that the call ends with, if nothing else says so."""
        self._code = code

    def code(self) -> Any:
        """What was set."""
        return self._code

    def set_details(self, details: str) -> None:
        """The text that the call ends with, if nothing else says so."""
        self._details = details

    def details(self) -> str:
        """What was set."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing: how answers are compressed is the server's setting."""
        if self._begun:
            raise RuntimeError("Compression setting must be specified before sending initial metadata")

    def disable_next_message_compression(self) -> None:
        """Nothing, as `set_compression`."""

    def peer(self) -> str:
        """Where the caller is."""
        return self._call.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """The names in the caller's certificate that identify it; None where it has none."""
        auth = self._call.auth()
        return auth.get(_identity(auth))

    def peer_identity_key(self) -> str | None:
        """Which names `peer_identities` gives."""
        return _identity(self._call.auth()) or None

    def auth_context(self) -> Any:
        """All properties of the caller's certificate."""
        return self._call.auth()

    def time_remaining(self) -> Any:
        """Seconds until the deadline; None where the caller set none."""
        deadline_ns = self._call.deadline_ns
        return None if deadline_ns is None else max(deadline_ns - monotonic_ns(), 0) / NS_PER_S

    def add_done_callback(self, callback: Any) -> None:
        """Have this called with the context when the handler has ended."""
        self._callbacks.append(callback)

    def done(self) -> bool:
        """Whether the call's end has been sent."""
        return self._finished

    def cancelled(self) -> bool:
        """Whether the code that was set is CANCELLED."""
        return self.number == grpc.StatusCode.CANCELLED.value[0]


def _number(code: Any) -> int:
    number = code if isinstance(code, int) else getattr(code, "value", (_UNKNOWN,))[0]
    return number if 0 <= number <= _MOST_CODE else _UNKNOWN


def _identity(auth: dict[str, list[bytes]]) -> str:
    """As gRPC chooses: the alternative names where there are any, else the common name."""
    return next((key for key in ("x509_subject_alternative_name", "x509_common_name") if key in auth), "")


def _checked(metadata: Any) -> Metadata:
    """The pairs, which then can be sent. Raises: TypeError, ValueError."""
    pairs = tuple(metadata or ())
    for pair in pairs:
        if not isinstance(pair, tuple):
            raise TypeError(f"metadata must be pairs, and one is '{type(pair).__name__}'")
        key, value = pair
        if not _NAME.fullmatch(key):
            raise ValueError(f"metadata: the key {key!r} is not of lower-case letters, digits, '_', '-' and '.'")
        if isinstance(value, bytes) != key.endswith("-bin"):
            raise TypeError(f"metadata: the value of '{key}' is bytes, exactly when the key ends in '-bin'")
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise ValueError(f"metadata: the value of '{key}' is not printable ASCII")
    return pairs
