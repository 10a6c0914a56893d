"""A caller that writes HTTP/2 by hand, and so can say what no client library would.

hpack and hyperframe only write and read frames here; nothing keeps to the rules of the protocol, and no window is counted.
"""

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from hpack import Encoder, HPACKError
from hpack.hpack import Decoder
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import Frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
LARGEST_WINDOW = 2**31 - 1
Header = tuple[bytes, bytes]
INFER = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame, right or wrong."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def message(body: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC with its prefix, which may lie."""
    return bytes((flag,)) + (len(body) if length is None else length).to_bytes(4, "big") + body


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + number(value)


def call_headers(path: str = INFER, *extra: Header) -> list[Header]:
    """What every call of gRPC begins with."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    ]


def block(headers: Sequence[Header]) -> bytes:
    """A header block that leaves the other side's table as it is, so that blocks can be sent in any order or not at all."""
    encoder: Any = Encoder()
    encoded: bytes = encoder.encode([(*header, True) for header in headers], huffman=False)
    return encoded


def data_frames(stream: int, body: bytes, *, end: bool = True, size: int = 16_384) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    last = parts.pop()
    return b"".join(frame(DATA, 0, stream, part) for part in parts) + frame(DATA, END_STREAM if end else 0, stream, last)


@dataclass
class Reply:
    """What came back on one stream."""

    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str | None:
        """`grpc-status`, from headers or trailers."""
        return dict(self.headers).get("grpc-status")


class Peer:
    """One connection. `closed` once the server has closed it, `goaway` the code with which it said so.

    `judges`: whether what the server sends must be HTTP/2. Not where settings were sent at random, which it then keeps to.
    """

    def __init__(
        self,
        address: str,
        *,
        preface: bytes | None = None,
        window: int | None = None,
        reads: bool = True,
        judges: bool = True,
        patience_s: float = 30,
    ) -> None:
        self.replies: dict[int, Reply] = {}
        self.closed = False
        self.goaway: int | None = None
        self.goaway_text = b""
        self.settings: dict[int, int] = {}
        self.ponged = b""
        self.reads = reads
        self._judges = judges
        self._patience_s = patience_s
        self._received = bytearray()
        self._block: tuple[int, bytes] | None = None
        self._decoder: Any = Decoder()
        self._marks = count(1)
        self._socket = connect(address)
        settings = b"" if window is None else setting(INITIAL_WINDOW_SIZE, window)
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings) if preface is None else preface)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Gone without a word."""
        self._socket.close()

    def abort(self) -> None:
        """Gone with a TCP reset instead of an end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    @property
    def over(self) -> bool:
        """Whether the server has ended the connection, or has said that it will."""
        return self.closed or self.goaway is not None

    def send(self, data: bytes) -> bool:
        """Write all of it, reading meanwhile. False once the other side has gone, or takes nothing for a while."""
        rest = memoryview(data)
        give_up = time.monotonic() + self._patience_s
        while rest and not self.closed:
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                return False
            ready = self._ready(select.POLLOUT | (select.POLLIN if self.reads else 0), min(left_s, 1.0))
            if ready & select.POLLIN:
                self._read()
            if ready & ~select.POLLIN and not self.closed:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.closed = True
        return not self.closed

    def call(self, stream: int, body: bytes, *extra: Header, path: str = INFER, end: bool = True) -> bool:
        """A call with this body, prefix and all."""
        return self.send(self.opening(stream, *extra, path=path) + data_frames(stream, body, end=end))

    @staticmethod
    def opening(stream: int, *extra: Header, path: str = INFER, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags, stream, block(call_headers(path, *extra)))

    def reset(self, stream: int, code: int = 8) -> bool:
        return self.send(frame(RST_STREAM, 0, stream, number(code)))

    def read_until(self, true: Callable[[], Any], patience_s: float | None = None) -> bool:
        """Read until it is true. False if the connection ended or time ran out before."""
        give_up = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        while not true():
            left_s = give_up - time.monotonic()
            if self.closed or left_s <= 0:
                return False
            if self._ready(select.POLLIN, left_s):
                self._read()
        return True

    def reply(self, stream: int, patience_s: float | None = None) -> Reply:
        """What came back on a stream once it, or the connection, has ended."""
        self.read_until(lambda: self.replies.get(stream, Reply()).ended, patience_s)
        return self.replies.get(stream, Reply())

    def drained(self, patience_s: float = 5.0) -> bool:
        """Whether the server has answered everything up to here: it answers a ping after what came before it."""
        mark = b"drained" + bytes((next(self._marks) % 256,))
        return self.send(frame(PING, 0, 0, mark)) and self.read_until(lambda: self.ponged == mark, patience_s)

    def _ready(self, events: int, patience_s: float) -> int:
        # select knows no descriptors beyond 1023, and there are tests with more connections
        poll = select.poll()
        poll.register(self._socket, events)
        found = poll.poll(patience_s * 1000)
        return found[0][1] if found else 0

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
        self._received += data
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                break
            head, body = bytes(self._received[:9]), bytes(self._received[9 : 9 + length])
            del self._received[: 9 + length]
            try:
                self._frame(head[3], head[4], int.from_bytes(head[5:9], "big") & LARGEST_WINDOW, body, head)
            except (HPACKError, HyperframeError) as error:
                if not self._judges:
                    continue
                raise AssertionError(f"the server sent what is no HTTP/2: {head + body!r}") from error

    def _frame(self, kind: int, flags: int, stream: int, body: bytes, head: bytes) -> None:
        if kind <= CONTINUATION:
            parsed, _ = Frame.parse_frame_header(memoryview(head))
            parsed.parse_body(memoryview(body))
        if kind == GOAWAY:
            self.goaway, self.goaway_text = int.from_bytes(body[4:8], "big"), body[8:]
        elif kind == PING and flags & ACK:
            self.ponged = body
        elif kind == SETTINGS and not flags & ACK:
            pairs = (body[start : start + 6] for start in range(0, len(body), 6))
            self.settings |= {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}
        if not stream:
            return
        reply = self.replies.setdefault(stream, Reply())
        if kind == RST_STREAM:
            reply.reset, reply.ended = int.from_bytes(body, "big"), True
        elif kind == DATA:
            reply.body += body
        elif kind in (HEADERS, CONTINUATION):
            self._headers(reply, kind, flags, body)
        if kind in (DATA, HEADERS) and flags & END_STREAM and self._block is None:
            reply.ended = True

    def _headers(self, reply: Reply, kind: int, flags: int, body: bytes) -> None:
        ends, so_far = (flags & END_STREAM, b"") if kind == HEADERS or self._block is None else self._block
        if not flags & END_HEADERS:
            self._block = (ends, so_far + body)
            return
        self._block = None
        reply.headers += [(str(name), str(value)) for name, value in self._decoder.decode(so_far + body)]
        reply.ended = reply.ended or bool(ends)


def connect(address: str) -> socket.socket:
    """A connection to `HOST:PORT` or `unix:PATH`; it never blocks."""
    if address.startswith("unix:"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        made = socket.create_connection((host, int(port)), timeout=30)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    return made
