"""The native HTTP/2 and gRPC layer, called by grpcio: messages, metadata, ends, deadlines, drain."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag

import grpc
import pytest
from tests.dataplane.native_echo import PATIENCE_S, Echo, echo

NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with echo(threads=2) as running:
        yield running


@pytest.fixture
def channel(server: Echo) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, NO_LIMIT) as made:
        yield made


def unary(channel: grpc.Channel, path: str, message: bytes = b"", metadata: tuple[tuple[str, str | bytes], ...] = ()):
    return channel.unary_unary(path).with_call(message, timeout=PATIENCE_S, metadata=metadata)


@pytest.mark.parametrize("path", ["/echo/unary", "/echo/post"])
@pytest.mark.parametrize("size", [0, 1, 64, 2048, 4096, 16384, 65536, 1 << 20])
def test_a_message_comes_back(channel: grpc.Channel, path: str, size: int) -> None:
    message = bytes(at % 251 for at in range(size))
    assert unary(channel, path, message)[0] == message


def test_a_hundred_mebibytes_go_both_ways(channel: grpc.Channel) -> None:
    message = bytes(range(256)) * (100 << 12)
    assert unary(channel, "/echo/unary", message)[0] == message


def test_many_calls_at_once(channel: grpc.Channel) -> None:
    called = [channel.unary_unary("/echo/unary").future(b"%d" % at, timeout=PATIENCE_S) for at in range(1000)]
    assert [call.result() for call in called] == [b"%d" % at for at in range(1000)]


def test_streams_answer_each_message(channel: grpc.Channel) -> None:
    messages = [bytes([at % 251]) * size for at, size in enumerate([0, 1, 5, 100_000, 0, 3 << 20, 7] * 10)]
    assert list(channel.stream_stream("/echo/stream")(iter(messages), timeout=PATIENCE_S)) == messages


def test_a_stream_whose_caller_has_not_ended_is_answered(channel: grpc.Channel) -> None:
    over = Flag()

    def messages() -> Iterator[bytes]:
        yield b"first"
        over.wait(PATIENCE_S)
        yield b"second"

    answers = channel.stream_stream("/echo/stream")(messages(), timeout=PATIENCE_S)
    assert next(answers) == b"first"
    over.set()
    assert list(answers) == [b"second"]


def test_answers_of_a_hundred_mebibytes_are_read_in_pieces(channel: grpc.Channel) -> None:
    assert sum(map(len, channel.unary_stream("/echo/flood")(b"", timeout=PATIENCE_S))) == 100 << 20


def test_metadata_comes_and_goes(channel: grpc.Channel) -> None:
    sent = (("a", "b"), ("a", "c"), ("k-bin", b"\0\1\xff"), ("empty-bin", b""), ("long", "x" * 4000))
    trailing = unary(channel, "/echo/metadata", metadata=sent)[1].trailing_metadata()
    assert [(key, value) for key, value in trailing if key != "user-agent"] == list(sent)


def test_an_error_keeps_its_words(channel: grpc.Channel) -> None:
    text = "grüße: 100 %\nnächste Zeile"
    with pytest.raises(grpc.RpcError) as raised:
        unary(channel, "/echo/fail", text.encode())
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, text)
    assert list(raised.value.trailing_metadata()) == [("reason", "asked"), ("proof-bin", b"\0\1\2")]


def test_a_deadline_ends_a_call(server: Echo, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/echo/silent")(b"", timeout=0.05)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    while server.counters()["streams_open"]:
        pass


def test_a_cancelled_call_is_gone(server: Echo, channel: grpc.Channel) -> None:
    before = server.counters()["streams_started"]
    call = channel.unary_unary("/echo/silent").future(b"", timeout=PATIENCE_S)
    while server.counters()["streams_started"] == before:
        pass
    call.cancel()
    while server.counters()["streams_open"]:
        pass


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_taken(channel: grpc.Channel, compression: grpc.Compression) -> None:
    message = b"again and again " * 5000
    assert channel.unary_unary("/echo/unary")(message, timeout=PATIENCE_S, compression=compression) == message


@pytest.mark.parametrize("compression", [1, 2])
def test_answers_are_compressed_where_that_is_set(compression: int) -> None:
    message = b"again and again " * 50000
    with echo(compression=compression) as server, grpc.insecure_channel(server.address) as channel:
        before = server.counters()["bytes_sent"]
        assert unary(channel, "/echo/unary", message)[0] == message
        assert server.counters()["bytes_sent"] - before < len(message) // 10


def test_a_message_above_the_limit_is_refused() -> None:
    with echo(max_message_bytes=100) as server, grpc.insecure_channel(server.address) as channel:
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
    with echo(unix=str(path)), grpc.insecure_channel(f"unix:{path}") as channel:
        assert unary(channel, "/echo/peer", b"")[0] == b"unix:"


def test_its_peer_is_told_as_grpc_tells_it(channel: grpc.Channel) -> None:
    assert unary(channel, "/echo/peer")[0].startswith(b"ipv4:127.0.0.1:")


def test_a_drain_lets_calls_end_and_takes_no_more() -> None:
    with echo() as server, grpc.insecure_channel(server.address) as channel:
        over = Flag()

        def messages() -> Iterator[bytes]:
            yield b"before"
            over.wait(PATIENCE_S)
            yield b"after"

        answers = channel.stream_stream("/echo/stream")(messages(), timeout=PATIENCE_S)
        assert next(answers) == b"before"
        server.drain()
        with pytest.raises(grpc.RpcError) as raised:
            while True:
                unary(channel, "/echo/unary", b"late")
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        over.set()
        assert list(answers) == [b"after"]
        assert server.ended()["drained"] == 1


def test_an_old_connection_finishes_what_it_has() -> None:
    with echo(max_connection_age_ms=50) as server, grpc.insecure_channel(server.address) as channel:
        over = Flag()

        def messages() -> Iterator[bytes]:
            yield b"before"
            over.wait(PATIENCE_S)
            yield b"after"

        answers = channel.stream_stream("/echo/stream")(messages(), timeout=PATIENCE_S)
        assert next(answers) == b"before"
        while server.counters()["connections_accepted"] == 1:
            unary(channel, "/echo/unary")  # none of these is lost to a connection that is let go
        over.set()
        assert list(answers) == [b"after"]


def test_calls_that_do_not_end_are_told_that_the_server_stops() -> None:
    with echo() as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/echo/silent").future(b"", timeout=PATIENCE_S)
        while not server.counters()["streams_started"]:
            pass
        server.drain()
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.ended()["drained"] == 0


def test_connections_above_the_limit_are_closed() -> None:
    with echo(max_connections=1) as server, grpc.insecure_channel(server.address) as first:
        unary(first, "/echo/unary")
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as second:
            with pytest.raises(grpc.RpcError) as raised:
                second.unary_unary("/echo/unary")(b"", timeout=1)
            assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert server.counters()["connections_refused"]
        unary(first, "/echo/unary")
