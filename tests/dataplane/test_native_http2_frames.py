"""The native HTTP/2 and gRPC layer, called in frames: what is no gRPC, what is cut off, and what is sent to do harm."""

import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, PingReceived, RemoteSettingsChanged, StreamReset
from h2.settings import SettingCodes

from tests.dataplane.native_echo import HEADERS, Caller, Echo, calling, echo, framed

INTERNAL, UNIMPLEMENTED, EXHAUSTED, DEADLINE = "13", "12", "8", "4"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with echo() as running:
        yield running


@pytest.fixture
def caller(server: Echo) -> Iterator[Caller]:
    with calling(server.port) as made:
        yield made


def ended(caller: Caller, stream: int) -> tuple[str, str]:
    headers, _ = caller.answer(stream)
    return headers.get("grpc-status", ""), headers.get("grpc-message", "")


def sent_away(caller: Caller) -> tuple[int | None, bytes | None]:
    """With which GOAWAY; the connection is closed then."""
    caller.until(lambda: False)
    terminated = caller.of(ConnectionTerminated)
    assert terminated
    first = terminated[0]
    assert isinstance(first, ConnectionTerminated)
    return first.error_code, first.additional_data


def test_an_answer_has_headers_a_message_and_trailers(caller: Caller) -> None:
    headers, body = caller.answer(caller.call(framed(b"hi")))
    assert body == framed(b"hi")
    assert headers == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_frames_may_cut_anywhere(caller: Caller, size: int) -> None:
    stream = caller.call(None, ends=False, path="/echo/stream")
    sent = framed(b"first") + framed(b"") + framed(bytes(5000)) + framed(b"last")
    for at in range(0, len(sent), size if len(sent) < 100 else size * 499):
        caller.frames.send_data(stream, sent[at : at + (size if len(sent) < 100 else size * 499)])
    caller.frames.end_stream(stream)
    caller.flush()
    assert caller.answer(stream)[1] == sent


def test_trailers_of_a_caller_end_its_side(caller: Caller) -> None:
    stream = caller.call(framed(b"hi"), ends=False)
    caller.frames.send_headers(stream, [("checksum", "1")], end_stream=True)
    caller.flush()
    assert ended(caller, stream)[0] == "0"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"content_type": "text/plain"}, "415"),
        ({"content_type": None}, "415"),
        ({"method": "GET"}, "405"),
        ({"content_type": "application/grpc+proto"}, "200"),
        ({"te": None}, "200"),
    ],
)
def test_what_is_no_grpc_gets_an_http_status(caller: Caller, changed: dict[str, Any], status: str) -> None:
    assert caller.answer(caller.call(framed(b""), **changed))[0][":status"] == status


@pytest.mark.parametrize("timeout", ["abc", "10", "-1S", "1X", "S", ""])
def test_a_timeout_that_is_none_fails_the_call(caller: Caller, timeout: str) -> None:
    assert ended(caller, caller.call(framed(b""), grpc_timeout=timeout)) == (INTERNAL, "Error parsing 'grpc-timeout' metadata")


@pytest.mark.parametrize("timeout", ["5S", "1H", "99999999H", "60M", "5000m", "9000000u", "99999999n"])
def test_timeouts_of_all_units(caller: Caller, timeout: str) -> None:
    assert ended(caller, caller.call(framed(b""), grpc_timeout=timeout))[0] == "0"


@pytest.mark.parametrize("timeout", ["0S", "1n", "1m"])
def test_a_deadline_that_passes(caller: Caller, timeout: str) -> None:
    stream = caller.call(framed(b""), path="/echo/silent", grpc_timeout=timeout)
    assert ended(caller, stream) == (DEADLINE, "Deadline Exceeded")


def test_binary_metadata_that_is_none_fails_the_call(caller: Caller) -> None:
    status, text = ended(caller, caller.call(framed(b""), k_bin="***"))
    assert (status, text) == (INTERNAL, "Error parsing 'k-bin' metadata: illegal base64 encoding")


@pytest.mark.parametrize("body", [framed(b"hi", size=3), b"\0", b"\0\0\0\0"])
def test_a_message_that_is_cut_off(caller: Caller, body: bytes) -> None:
    assert ended(caller, caller.call(body)) == (INTERNAL, "The call's last message is cut off")


def test_compression_without_its_name(caller: Caller) -> None:
    text = "Compression bit set but no encoding configured"
    assert ended(caller, caller.call(framed(b"hi", flag=1))) == (INTERNAL, text)


def test_what_does_not_decompress(caller: Caller) -> None:
    stream = caller.call(framed(b"hi", flag=1), grpc_encoding="gzip")
    assert ended(caller, stream) == (INTERNAL, "Decompression failed due to zlib error")


def test_a_bomb_is_refused_before_it_has_grown() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    with echo(max_message_bytes=1 << 20) as server, calling(server.port) as caller:
        assert ended(caller, caller.call(framed(bomb[:16000], flag=1), grpc_encoding="deflate"))[0] in (EXHAUSTED, INTERNAL)
        small = zlib.compress(bytes(8 << 20), 9)
        assert ended(caller, caller.call(framed(small, flag=1), grpc_encoding="deflate"))[0] == EXHAUSTED


def test_unknown_compression_is_told_what_is_known(caller: Caller) -> None:
    headers, _ = caller.answer(caller.call(framed(b"hi", flag=1), grpc_encoding="br"))
    assert (headers["grpc-status"], headers["grpc-accept-encoding"]) == (UNIMPLEMENTED, "identity, deflate, gzip")


def test_unknown_flags(caller: Caller) -> None:
    assert ended(caller, caller.call(framed(b"hi", flag=7)))[0] == INTERNAL


def test_a_size_that_is_not_meant_costs_nothing(caller: Caller) -> None:
    status, text = ended(caller, caller.call(framed(b"hi", size=2**32 - 1), ends=False))
    assert (status, text) == (EXHAUSTED, f"SERVER: Received message larger than max ({2**32 - 1} vs. {256 << 20})")


def test_who_is_answered_need_not_go_on(caller: Caller) -> None:
    caller.call(framed(b"hi", flag=7), ends=False)
    reset = caller.wait(StreamReset)
    assert isinstance(reset, StreamReset)
    assert reset.error_code == ErrorCodes.NO_ERROR


def test_metadata_above_the_limit_ends_its_call_alone(caller: Caller) -> None:
    big = caller.call(framed(b""), big="v" * 9000, bigger="w" * 9000)
    assert ended(caller, big)[0] == EXHAUSTED
    assert ended(caller, caller.call(framed(b"")))[0] == "0"


def test_buffers_have_a_bound(caller: Caller) -> None:
    with echo(max_buffered_bytes=100_000) as server, calling(server.port) as caller:
        waiting = caller.call(framed(bytes(10_000), size=90_000), ends=False)
        assert ended(caller, caller.call(framed(bytes(10), size=20_000), ends=False))[0] == EXHAUSTED
        assert ended(caller, caller.call(framed(bytes(9_000))))[0] == "0"  # whole at once: nothing to buffer
        caller.frames.reset_stream(waiting)
        assert ended(caller, caller.call(framed(bytes(10), size=20_000), ends=True)) == (
            INTERNAL,
            "The call's last message is cut off",
        )


def test_concurrent_streams_are_announced() -> None:
    with echo(max_concurrent_streams=7) as server, calling(server.port) as caller:
        settings = caller.wait(RemoteSettingsChanged)
        assert isinstance(settings, RemoteSettingsChanged)
        assert settings.changed_settings[SettingCodes.MAX_CONCURRENT_STREAMS].new_value == 7


def test_a_call_that_stops_arriving_is_ended() -> None:
    with echo(stalled_ms=50) as server, calling(server.port) as caller:
        assert ended(caller, caller.call(framed(b"hi", size=100), ends=False))[0] == DEADLINE
        assert server.counters()["stalled"] == 1
        assert ended(caller, caller.call(framed(b"")))[0] == "0"


def test_headers_that_never_end() -> None:
    with echo(stalled_ms=50) as server, calling(server.port) as caller:
        caller.raw(b"\0\0\2\1\0\0\0\0\1\x82\x86")
        while not server.counters()["stalled"]:
            pass  # and nothing is answered: no frame may stand between headers and their rest
        while server.counters()["connections_open"]:
            pass


def test_answers_that_are_not_read_are_given_up() -> None:
    with echo(stalled_ms=50) as server, calling(server.port) as caller:
        caller.opens_windows = False
        caller.frames.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
        caller.flush()
        stream = caller.call(framed(bytes(1000)))
        assert caller.answer(stream)[0].get("grpc-status") is None
        assert server.counters()["stalled"] == 1


def test_a_connection_that_leaves_too_much_unread_is_closed() -> None:
    with echo(max_unread_bytes=MEBIBYTE) as server, calling(server.port) as caller:
        caller.call(None, path="/echo/flood")
        caller.until(lambda: False)
        while server.counters()["streams_open"]:
            pass


def test_a_silent_connection_is_idle() -> None:
    with echo(max_connection_idle_ms=50) as server, calling(server.port) as caller:
        assert ended(caller, caller.call(framed(b"")))[0] == "0"
        assert sent_away(caller)[0] == ErrorCodes.NO_ERROR


def test_an_old_connection_has_a_grace() -> None:
    with echo(max_connection_age_ms=50, max_connection_age_grace_ms=50) as server, calling(server.port) as caller:
        caller.call(framed(b"hi"), ends=False, path="/echo/stream")
        caller.until(lambda: False)
        while server.counters()["connections_open"]:
            pass


def test_a_silent_caller_is_asked_and_given_up() -> None:
    limits = {"keepalive_time_ms": 50, "keepalive_timeout_ms": 50, "keepalive_without_calls": 1}
    with echo(**limits) as server, calling(server.port) as caller:
        caller.wait(PingReceived)  # h2 answers it
        caller.socket.setblocking(True)
        while server.counters()["connections_open"]:
            pass  # and now nobody answers


def test_pings_that_come_too_often(caller: Caller) -> None:
    for _ in range(4):
        caller.frames.ping(b"attacker")
    caller.flush()
    assert sent_away(caller) == (ErrorCodes.ENHANCE_YOUR_CALM, b"too_many_pings")


def test_calls_that_are_reset_at_once(server: Echo, caller: Caller) -> None:
    for _ in range(20):
        for _ in range(100):
            stream = caller.frames.get_next_available_stream_id()
            caller.frames.send_headers(stream, HEADERS)
            caller.frames.reset_stream(stream)
        try:
            caller.flush()
        except OSError:
            break
    caller.until(lambda: False)
    assert caller.closed
    while server.counters()["streams_open"]:
        pass


@pytest.mark.parametrize(
    "frame",
    [
        b"\0\0\0\4\0\0\0\0\0",  # SETTINGS
        b"\0\0\0\0\0\0\0\0\1",  # DATA, empty
        b"\0\0\4\x08\0\0\0\0\0\0\0\0\1",  # WINDOW_UPDATE
        b"\0\0\5\2\0\0\0\0\1\0\0\0\0\1",  # PRIORITY
    ],
    ids=["settings", "empty", "window", "priority"],
)
def test_floods_of_frames_end_the_connection(server: Echo, caller: Caller, frame: bytes) -> None:
    caller.call(None, ends=False)
    try:
        for _ in range(100):
            caller.raw(frame * 1000)
    except OSError:
        pass
    caller.until(lambda: False)
    assert caller.closed


def test_headers_continued_for_ever(caller: Caller) -> None:
    caller.raw(b"\0\0\1\1\0\0\0\0\1\x82")
    try:
        for _ in range(100):
            caller.raw(b"\0\0\1\x09\0\0\0\0\1\x86")
    except OSError:
        pass
    caller.until(lambda: False)
    assert caller.closed


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", bytes(1000)])
def test_what_is_no_http2(server: Echo, greeting: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as plain:
        plain.sendall(greeting)
        while plain.recv(1000):
            pass
    with calling(server.port) as caller:
        assert ended(caller, caller.call(framed(b"")))[0] == "0"


def test_callers_that_vanish(server: Echo) -> None:
    for _ in range(50):
        with calling(server.port) as caller:
            caller.call(framed(bytes(1000), size=100_000), ends=False)
            caller.call(None, path="/echo/flood")
            caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while server.counters()["connections_open"]:
        pass
    while server.counters()["streams_open"]:
        pass
