"""The native HTTP/2 and gRPC layer, called by grpcio: messages, metadata, ends, deadlines, drain."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event as Flag
from typing import Any

import grpc
import pytest

from tests.dataplane.native_echo import PATIENCE_S, Echo, echo
from tests.server.serving import until

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
]


def dial(address: str) -> Any:
    """A channel; Any, because its messages are bytes without serializers, which its types do not know."""
    return grpc.insecure_channel(address, OPTIONS)


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with echo(threads=2) as running:
        yield running


@pytest.fixture
def channel(server: Echo) -> Iterator[Any]:
    with dial(server.address) as made:
        yield made


def unary(channel: Any, path: str, message: bytes = b"", metadata: tuple[tuple[str, str | bytes], ...] = ()) -> Any:
    return channel.unary_unary(path).with_call(message, timeout=PATIENCE_S, metadata=metadata)


@pytest.mark.parametrize("path", ["/echo/unary", "/echo/post"])
@pytest.mark.parametrize("size", [0, 1, 64, 2048, 4096, 16384, 65536, 1 << 20])
def test_a_message_comes_back(channel: Any, path: str, size: int) -> None:
    message = bytes(at % 251 for at in range(size))
    assert unary(channel, path, message)[0] == message


def test_a_hundred_mebibytes_go_both_ways(channel: Any) -> None:
    message = bytes(range(256)) * (100 << 12)
    assert unary(channel, "/echo/unary", message)[0] == message


def test_many_calls_at_once(channel: Any) -> None:
    called = [channel.unary_unary("/echo/unary").future(b"%d" % at, timeout=PATIENCE_S) for at in range(1000)]
    assert [call.result() for call in called] == [b"%d" % at for at in range(1000)]


def test_streams_answer_each_message(channel: Any) -> None:
    messages = [bytes([at % 251]) * size for at, size in enumerate([0, 1, 5, 100_000, 0, 3 << 20, 7] * 10)]
    assert list(channel.stream_stream("/echo/stream")(iter(messages), timeout=PATIENCE_S)) == messages


def in_two_parts(channel: Any) -> tuple[Flag, Any]:
    """A stream that sends "second" once the flag is set, and its answers."""
    over = Flag()

    def messages() -> Iterator[bytes]:
        yield b"first"
        over.wait(PATIENCE_S)
        yield b"second"

    return over, channel.stream_stream("/echo/stream")(messages(), timeout=PATIENCE_S)


def test_a_stream_whose_caller_has_not_ended_is_answered(channel: Any) -> None:
    over, answers = in_two_parts(channel)
    assert next(answers) == b"first"
    over.set()
    assert list(answers) == [b"second"]


def test_answers_of_a_hundred_mebibytes_are_read_in_pieces(channel: Any) -> None:
    assert sum(map(len, channel.unary_stream("/echo/flood")(b"", timeout=PATIENCE_S))) == 100 << 20


def test_metadata_comes_and_goes(channel: Any) -> None:
    sent: Any = (
        ("a", "b"),
        ("a", "c"),
        ("k-bin", b"\0\1\xff"),
        ("empty-bin", b""),
        ("long", "x" * 4000),
    )
    called: Any = unary(channel, "/echo/metadata", metadata=sent)[1]
    assert [tuple(pair) for pair in called.trailing_metadata() if pair[0] != "user-agent"] == list(sent)


def test_an_error_keeps_its_words(channel: Any) -> None:
    text = "grüße: 100 %\nnächste Zeile"
    with pytest.raises(grpc.RpcError) as raised:
        unary(channel, "/echo/fail", text.encode())
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, text)
    trailing: Any = raised.value.trailing_metadata()
    assert list(trailing) == [("reason", "asked"), ("proof-bin", b"\0\1\2")]


def test_a_deadline_ends_a_call(server: Echo, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/echo/silent")(b"", timeout=0.05)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    while server.counters()["streams_open"]:
        pass


def test_a_cancelled_call_is_gone(server: Echo, channel: Any) -> None:
    before = server.counters()["streams_started"]
    call = channel.unary_unary("/echo/silent").future(b"", timeout=PATIENCE_S)
    while server.counters()["streams_started"] == before:
        pass
    call.cancel()
    while server.counters()["streams_open"]:
        pass


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_taken(channel: Any, compression: grpc.Compression) -> None:
    message = b"again and again " * 5000
    assert channel.unary_unary("/echo/unary")(message, timeout=PATIENCE_S, compression=compression) == message


@pytest.mark.parametrize("compression", [1, 2])
def test_answers_are_compressed_where_that_is_set(compression: int) -> None:
    message = b"again and again " * 50000
    with echo(compression=compression) as server, dial(server.address) as channel:
        before = server.counters()["bytes_sent"]
        assert unary(channel, "/echo/unary", message)[0] == message
        assert server.counters()["bytes_sent"] - before < len(message) // 10


def test_a_message_above_the_limit_is_refused() -> None:
    with echo(max_message_bytes=100) as server, dial(server.address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            unary(channel, "/echo/unary", bytes(101))
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert raised.value.details() == "SERVER: Received message larger than max (101 vs. 100)"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/echo/unary")(bytes(9999), timeout=PATIENCE_S, compression=grpc.Compression.Gzip)
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(unary(channel, "/echo/unary", bytes(100))[0]) == 100


def test_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "echo"
    with echo(unix=str(path)), dial(f"unix:{path}") as channel:
        assert unary(channel, "/echo/peer", b"")[0] == b"unix:"


def test_its_peer_is_told_as_grpc_tells_it(channel: Any) -> None:
    assert unary(channel, "/echo/peer")[0].startswith(b"ipv4:127.0.0.1:")


def test_a_drain_lets_calls_end_and_takes_no_more() -> None:
    with echo() as server, dial(server.address) as channel:
        over, answers = in_two_parts(channel)
        assert next(answers) == b"first"
        server.drain()
        with pytest.raises(grpc.RpcError) as raised:
            [unary(channel, "/echo/unary", b"late") for _ in iter(int, 1)]  # those before the drain are answered
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        over.set()
        assert list(answers) == [b"second"]
        assert server.ended()["drained"] == 1


def test_an_old_connection_finishes_what_it_has() -> None:
    with echo(max_connection_age_ms=50) as server, dial(server.address) as channel:
        over, answers = in_two_parts(channel)
        assert next(answers) == b"first"
        while server.counters()["connections_accepted"] == 1:
            unary(channel, "/echo/unary")  # none of these is lost to a connection that is let go
        over.set()
        assert list(answers) == [b"second"]


def test_calls_that_do_not_end_are_told_that_the_server_stops() -> None:
    with echo() as server, dial(server.address) as channel:
        call = channel.unary_unary("/echo/silent").future(b"", timeout=PATIENCE_S)
        while not server.counters()["streams_started"]:
            pass
        server.drain()
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.ended()["drained"] == 0


def test_calls_of_several_threads_answered_by_another() -> None:
    with echo(threads=3) as server:
        channels = [dial(server.address) for _ in range(8)]
        called = [
            channel.unary_unary("/echo/post").future(b"%d" % at, timeout=PATIENCE_S)
            for at in range(250)
            for channel in channels
        ]
        assert [call.result() for call in called] == [b"%d" % at for at in range(250) for _ in channels]
        for channel in channels:
            channel.close()


def test_it_outlives_a_lack_of_file_descriptors() -> None:
    with echo() as server, ExitStack() as stack:
        server.allow_files(24)
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S))
        until(lambda: server.counters()["connections_accepted"], "some are accepted")
        assert server.counters()["connections_accepted"] < 24
        stack.close()
        with dial(server.address) as channel:
            assert unary(channel, "/echo/unary", b"hi")[0] == b"hi"


def test_connections_above_the_limit_are_closed() -> None:
    with echo(max_connections=1) as server, dial(server.address) as first:
        unary(first, "/echo/unary")
        with dial(server.address) as second:
            with pytest.raises(grpc.RpcError) as raised:
                second.unary_unary("/echo/unary")(b"", timeout=1)
            assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert server.counters()["connections_refused"]
        unary(first, "/echo/unary")
