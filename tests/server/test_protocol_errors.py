"""What is no HTTP/2, or no call of gRPC: an end or a refusal, never an answer and never silence, and a server that goes on."""

import gzip
from collections.abc import Iterator

import pytest

from tests.server.attacks import Neighbour, Target, verdict
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
from tests.server.serving import Serving
from tests.server.targets import inference, question

BODY = message(question(1).SerializeToString())
PUSH_PROMISE = 5
OPEN = Peer.opening(1)
CALL = OPEN + data_frames(1, BODY)


def headers(*changed: Header, without: tuple[bytes, ...] = ()) -> bytes:
    """A call whose headers are these, and then its body."""
    kept = [each for each in call_headers() if each[0] not in without]
    return frame(HEADERS, END_HEADERS, 1, block([*kept, *changed])) + data_frames(1, BODY)


def first(*changed: Header) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, block([*changed, *call_headers()])) + data_frames(1, BODY)


NO_HTTP2 = {
    "garbage": bytes(range(256)) * 10,
    "http/1.1": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "an upgrade": b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "a handshake of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506),
    "half a preface": PREFACE[:12] + b"garbage that goes on",
    "a call before the settings": PREFACE + CALL[:9] + b"\xff" * 100,
}
CONNECTION_ERRORS = {
    "headers on stream 0": frame(HEADERS, END_HEADERS, 0, block(call_headers())),
    "data on stream 0": frame(DATA, 0, 0, b"x"),
    "data of a call that never began": frame(DATA, 0, 5, b"x"),
    "a reset of a call that never began": frame(RST_STREAM, 0, 5, number(8)),
    "a window of a call that never began": frame(WINDOW_UPDATE, 0, 5, number(8)),
    "a call with the server's number": Peer.opening(2),
    "numbers that go down": Peer.opening(5) + Peer.opening(3),
    "a push from a caller": frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + block(call_headers())),
    "a frame beyond the size": OPEN + frame(DATA, 0, 1, bytes(2**20)),
    "settings of five bytes": frame(SETTINGS, 0, 0, bytes(5)),
    "settings on a stream": frame(SETTINGS, 0, 1, setting(4, 1)),
    "an acknowledgement with contents": frame(SETTINGS, 1, 0, setting(4, 1)),
    "a window beyond all windows": frame(SETTINGS, 0, 0, setting(4, 2**31)),
    "a frame size below all sizes": frame(SETTINGS, 0, 0, setting(5, 1)),
    "a ping of seven bytes": frame(PING, 0, 0, bytes(7)),
    "a reset of three bytes": OPEN + frame(RST_STREAM, 0, 1, bytes(3)),
    "padding beyond the frame": OPEN + frame(DATA, 8, 1, b"\xff" + b"x"),
    "an index that no table has": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\x7f"),
    "a number without an end": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff" + b"\x80" * 20),
    "huffman that is none": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x81\xff\x81\xff"),
    "a table beyond the limit": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xff\xff\xff\x7f"),
    "a header that is cut": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x7fab"),
    "another frame among headers": Peer.opening(1, flags=0) + frame(PING, 0, 0, bytes(8)),
    "another call among headers": Peer.opening(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3),
    "a continuation of nothing": frame(CONTINUATION, END_HEADERS, 1, block(call_headers())),
}
STREAM_ERRORS = {
    "two paths": headers((b":path", INFER.encode())),
    "no path": headers(without=(b":path",)),
    "no method": headers(without=(b":method",)),
    "no scheme": headers(without=(b":scheme",)),
    "a status": first((b":status", b"200")),
    "a pseudo header that nobody knows": first((b":podium", b"1")),
    "a pseudo header after the others": headers((b":authority", b"late"), without=(b":authority",)),
    "capital letters": headers((b"X-Big", b"1")),
    "a line feed": headers((b"x", b"a\nb: c")),
    "a carriage return": headers((b"x", b"a\r\nb: c")),
    "a zero byte": headers((b"x", b"a\0b")),
    "a name with a space": headers((b"x y", b"1")),
    "an empty name": headers((b"", b"1")),
    "a header of a connection": headers((b"connection", b"close")),
    "a length that lies": headers((b"content-length", b"5")),
    "a window of nothing": OPEN + frame(WINDOW_UPDATE, 0, 1, number(0)) + data_frames(1, BODY),
    "data after the end": CALL + frame(DATA, 0, 1, b"x"),
    "no message at all": frame(HEADERS, END_HEADERS | END_STREAM, 1, block(call_headers())),
    "a get": headers((b":method", b"GET"), without=(b":method",)),
    "another content": headers((b"content-type", b"text/html"), without=(b"content-type",)),
    "a method that nobody has": Peer.opening(1, path="/inference.GRPCInferenceService/Nothing") + data_frames(1, BODY),
    "a path that is none": Peer.opening(1, path="nothing") + data_frames(1, BODY),
    "a prefix of two bytes": OPEN + data_frames(1, BODY[:2]),
    "a message of 4 GB": OPEN + data_frames(1, b"\0\xff\xff\xff\xff" + bytes(1000)),
    "compressed, but not said how": OPEN + data_frames(1, message(gzip.compress(BODY[5:]), flag=1)),
    "a flag that nobody knows": OPEN + data_frames(1, message(BODY[5:], flag=2)),
    "compressed, and is not": Peer.opening(1, (b"grpc-encoding", b"gzip")) + data_frames(1, message(BODY[5:], flag=1)),
    "compressed, and cut": Peer.opening(1, (b"grpc-encoding", b"gzip"))
    + data_frames(1, message(gzip.compress(BODY[5:])[:-9], flag=1)),
    "compressed, and more behind it": Peer.opening(1, (b"grpc-encoding", b"gzip"))
    + data_frames(1, message(gzip.compress(BODY[5:]) + b"more", flag=1)),
    "two messages": OPEN + data_frames(1, BODY + BODY),
    "a message and some of another": OPEN + data_frames(1, BODY + b"\0\0"),
}

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


@pytest.fixture(scope="module")
def target(serving: Serving) -> Target:
    return inference(serving)


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


@pytest.mark.parametrize("case", NO_HTTP2)
def test_what_is_no_http2_is_hung_up_on(target: Target, neighbour: Neighbour, case: str) -> None:
    with Peer(target.address, preface=NO_HTTP2[case]) as peer:
        assert verdict(peer, patience_s=10) == "over"
    neighbour.answered_again()


@pytest.mark.parametrize("case", CONNECTION_ERRORS | STREAM_ERRORS)
def test_errors_end_the_connection_or_refuse_the_call(target: Target, neighbour: Neighbour, case: str, plane: str) -> None:
    lax = case in PASSED_OVER or (plane == "python" and case in LAX)
    with Peer(target.address) as peer:
        peer.send((CONNECTION_ERRORS | STREAM_ERRORS)[case])
        outcome = verdict(peer, patience_s=0.2 if lax else 10)
        assert lax or outcome in ({"over", "refused"} if case in STREAM_ERRORS or plane == "python" else {"over"}), peer.replies
    neighbour.answered_again()


def test_a_frame_that_no_connection_survives_is_told_with_its_code(target: Target, plane: str) -> None:
    """GOAWAY with the code of RFC 9113, 7. C-core mostly hangs up without a word."""
    codes = {
        "a frame beyond the size": {6},
        "a ping of seven bytes": {6},
        "a window beyond all windows": {3},
        "an index that no table has": {9},
        "data on stream 0": {1},
    }
    for case, code in codes.items():
        with Peer(target.address) as peer:
            peer.send(CONNECTION_ERRORS[case])
            verdict(peer, patience_s=0.2 if plane == "python" else 10)
            assert peer.goaway in (code | {None} if plane == "python" else code), case
