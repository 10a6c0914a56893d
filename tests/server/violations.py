"""What is no HTTP/2, or no call of gRPC: bytes for any server of gRPC, by what is wrong with them.

After RFC 9113 (HTTP/2), RFC 7541 (HPACK) and grpc's doc/PROTOCOL-HTTP2.md.
"""

import gzip
import random
from dataclasses import dataclass

from tests.server.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Header,
    Peer,
    block,
    call_headers,
    data_frames,
    frame,
    message,
    number,
    setting,
)

PUSH_PROMISE = 5
GZIPPED = (b"grpc-encoding", b"gzip")

NO_HTTP2 = {
    "garbage": bytes(range(256)) * 10,
    "http/1.1": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "an upgrade": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506),
    "half a preface": PREFACE[:12] + b"garbage that goes on",
    "a frame that is no settings": PREFACE + frame(HEADERS, END_HEADERS, 1)[:9] + b"\xff" * 100,
}


@dataclass(frozen=True)
class Violations:
    """On the way to one method, with a body (its prefix and all) that it would answer."""

    body: bytes
    path: str = INFER

    @property
    def headers(self) -> list[Header]:
        return call_headers(self.path)

    def opening(self, *extra: Header) -> bytes:
        """The headers of a call."""
        return Peer.opening(1, *extra, path=self.path)

    def call(self) -> bytes:
        """With nothing wrong."""
        return self.opening() + data_frames(1, self.body)

    def _with(self, *changed: Header, without: tuple[bytes, ...] = ()) -> bytes:
        kept = [each for each in self.headers if each[0] not in without]
        return frame(HEADERS, END_HEADERS, 1, block([*kept, *changed])) + data_frames(1, self.body)

    def _first(self, *changed: Header) -> bytes:
        return frame(HEADERS, END_HEADERS, 1, block([*changed, *self.headers])) + data_frames(1, self.body)

    def of_connections(self) -> dict[str, bytes]:
        """What ends the whole connection."""
        return {
            "headers on stream 0": frame(HEADERS, END_HEADERS, 0, block(self.headers)),
            "data on stream 0": frame(DATA, 0, 0, b"x"),
            "data of a call that never began": frame(DATA, 0, 5, b"x"),
            "a reset of a call that never began": frame(RST_STREAM, 0, 5, number(8)),
            "a window of a call that never began": frame(WINDOW_UPDATE, 0, 5, number(8)),
            "a call with the server's number": Peer.opening(2, path=self.path),
            "numbers that go down": Peer.opening(5, path=self.path) + Peer.opening(3, path=self.path),
            "a push from a caller": frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + block(self.headers)),
            "a frame beyond the size": self.opening() + frame(DATA, 0, 1, bytes(2**20)),
            "settings of five bytes": frame(SETTINGS, 0, 0, bytes(5)),
            "settings on a stream": frame(SETTINGS, 0, 1, setting(4, 1)),
            "an acknowledgement with contents": frame(SETTINGS, 1, 0, setting(4, 1)),
            "a window beyond all windows": frame(SETTINGS, 0, 0, setting(4, 2**31)),
            "a frame size below all sizes": frame(SETTINGS, 0, 0, setting(5, 1)),
            "a ping of seven bytes": frame(PING, 0, 0, bytes(7)),
            "a reset of three bytes": self.opening() + frame(RST_STREAM, 0, 1, bytes(3)),
            "padding beyond the frame": self.opening() + frame(DATA, 8, 1, b"\xff" + b"x"),
            "an index that no table has": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\x7f"),
            "a number without an end": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff" + b"\x80" * 20),
            "huffman that is none": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x81\xff\x81\xff"),
            "a table beyond the limit": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xff\xff\xff\x7f"),
            "a header that is cut": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x7fab"),
            "another frame among headers": Peer.opening(1, path=self.path, flags=0) + frame(PING, 0, 0, bytes(8)),
            "another call among headers": Peer.opening(1, path=self.path, flags=0) + frame(CONTINUATION, END_HEADERS, 3),
            "a continuation of nothing": frame(CONTINUATION, END_HEADERS, 1, block(self.headers)),
        }

    def of_calls(self) -> dict[str, bytes]:
        """What refuses the call, on stream 1."""
        return {
            "two paths": self._with((b":path", self.path.encode())),
            "no path": self._with(without=(b":path",)),
            "no method": self._with(without=(b":method",)),
            "no scheme": self._with(without=(b":scheme",)),
            "a status": self._first((b":status", b"200")),
            "a pseudo header that nobody knows": self._first((b":podium", b"1")),
            "a pseudo header after the others": self._with((b":authority", b"late"), without=(b":authority",)),
            "capital letters": self._with((b"X-Big", b"1")),
            "a line feed": self._with((b"x", b"a\nb: c")),
            "a carriage return": self._with((b"x", b"a\r\nb: c")),
            "a zero byte": self._with((b"x", b"a\0b")),
            "a name with a space": self._with((b"x y", b"1")),
            "an empty name": self._with((b"", b"1")),
            "a header of a connection": self._with((b"connection", b"close")),
            "a length that lies": self._with((b"content-length", b"5")),
            "a window of nothing": self.opening() + frame(WINDOW_UPDATE, 0, 1, number(0)) + data_frames(1, self.body),
            "data after the end": self.call() + frame(DATA, 0, 1, b"x"),
            "no message at all": frame(HEADERS, END_HEADERS | END_STREAM, 1, block(self.headers)),
            "a get": self._with((b":method", b"GET"), without=(b":method",)),
            "another content": self._with((b"content-type", b"text/html"), without=(b"content-type",)),
            "a method that nobody has": Peer.opening(1, path="/inference.GRPCInferenceService/Nothing")
            + data_frames(1, self.body),
            "a path that is none": Peer.opening(1, path="nothing") + data_frames(1, self.body),
            "a prefix of two bytes": self.opening() + data_frames(1, self.body[:2]),
            "a message of 4 GB": self.opening() + data_frames(1, b"\0\xff\xff\xff\xff" + bytes(1000)),
            "compressed, but not said how": self.opening() + data_frames(1, message(gzip.compress(self.body[5:]), flag=1)),
            "a flag that nobody knows": self.opening() + data_frames(1, message(self.body[5:], flag=2)),
            "compressed, and is not": self.opening(GZIPPED) + data_frames(1, message(self.body[5:], flag=1)),
            "compressed, and cut": self.opening(GZIPPED) + data_frames(1, message(gzip.compress(self.body[5:])[:-9], flag=1)),
            "compressed, and more behind it": self.opening(GZIPPED)
            + data_frames(1, message(gzip.compress(self.body[5:]) + b"more", flag=1)),
            "two messages": self.opening() + data_frames(1, self.body + self.body),
            "a message and some of another": self.opening() + data_frames(1, self.body + b"\0\0"),
        }

    def random_frames(self, seed: int) -> bytes:
        """A dozen frames of every kind, in any order, right and wrong, some with a bit turned."""
        rng = random.Random(seed)
        known = [self.call(), self.opening(), data_frames(1, self.body), frame(RST_STREAM, 0, 1, number(8))]

        def any_frame() -> bytes:
            if rng.random() < 0.5:
                return rng.choice(known)
            return frame(rng.randrange(12), rng.randrange(256), rng.randrange(6), rng.randbytes(rng.randrange(60)))

        data = bytearray(b"".join(any_frame() for _ in range(12)))
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)


PASSED_OVER = {
    "a line feed": "a header that no HTTP/2 carries is left out or refused; nobody sees it, see the test of metadata",
    "a carriage return": "as above",
    "a zero byte": "as above",
    "a name with a space": "as above",
    "an empty name": "as above",
    "capital letters": "as above",
    "two messages": "a call of one message is answered by its first",
    "a message and some of another": "as above",
    "data after the end": "the answer may be quicker",
    "numbers that go down": "the call may have been there, and have been forgotten; it is begun by nobody",
    "a window of nothing": "an error of its call alone, or of the connection",
}
"""What may be answered, or passed over, on every plane."""

LAX = {
    "headers on stream 0",
    "data on stream 0",
    "data of a call that never began",
    "a reset of a call that never began",
    "a window of a call that never began",
    "a call with the server's number",
    "a push from a caller",
    "two paths",
    "a status",
    "a pseudo header after the others",
    "a header of a connection",
    "a length that lies",
    "another content",
    "no message at all",
    "a prefix of two bytes",
}
"""What gRPC's C-core, and so the python plane, passes over or leaves without an answer, against RFC 9113 and gRPC's own rules.
It harms nobody but the caller. The native plane does not."""
