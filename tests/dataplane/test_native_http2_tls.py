"""The native HTTP/2 and gRPC layer over TLS: the same calls, and who is let in."""

import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.dataplane.native_echo import PATIENCE_S, Echo, echo
from tests.server.certificates import Authority, credentials

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Echo]:
    chain, key = authority.issue("server", "localhost", "127.0.0.1")
    with echo(tls=f"{chain} {key}", threads=2) as running:
        yield running


@pytest.fixture(scope="module")
def closed_server(authority: Authority) -> Iterator[Echo]:
    chain, key = authority.issue("closed", "localhost", "127.0.0.1")
    with echo(tls=f"{chain} {key} {authority.root}") as running:
        yield running


def dial(server: Echo, given: grpc.ChannelCredentials) -> Any:
    return grpc.secure_channel(f"localhost:{server.port}", given, OPTIONS)


@pytest.mark.parametrize("size", [0, 64, 16_384, 100_000, 20 << 20])
def test_messages_come_back(authority: Authority, server: Echo, size: int) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    with dial(server, credentials(authority.root)) as channel:
        assert channel.unary_unary("/echo/unary")(message[:size], timeout=PATIENCE_S) == message[:size]


def test_streams_and_many_calls(authority: Authority, server: Echo) -> None:
    messages = [bytes([at]) * (at * 1000) for at in range(100)]
    with dial(server, credentials(authority.root)) as channel:
        assert list(channel.stream_stream("/echo/stream")(iter(messages), timeout=PATIENCE_S)) == messages
        called = [channel.unary_unary("/echo/unary").future(message, timeout=PATIENCE_S) for message in messages]
        assert [call.result() for call in called] == messages
        assert sum(map(len, channel.unary_stream("/echo/flood")(b"", timeout=PATIENCE_S))) == 100 << 20


def test_a_caller_is_named_by_its_certificate(authority: Authority, closed_server: Echo) -> None:
    own = authority.issue("caller", "caller.test", common_name="caller")
    with dial(closed_server, credentials(authority.root, own)) as channel:
        said = channel.unary_unary("/echo/peer")(b"", timeout=PATIENCE_S).decode().splitlines()
    assert {"x509_common_name=caller", "peer_dns=caller.test"} <= set(said)


def test_a_caller_without_a_certificate_stays_outside(authority: Authority, closed_server: Echo) -> None:
    with dial(closed_server, credentials(authority.root)) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/echo/unary")(b"", timeout=PATIENCE_S)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    while not closed_server.counters()["tls_failures"]:
        pass


def test_plain_text_is_no_tls(server: Echo) -> None:
    before = server.counters()["tls_failures"]
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        while server.counters()["tls_failures"] == before:
            pass
    assert server.alive()


def test_a_drain_tells_tls_callers_too(authority: Authority) -> None:
    chain, key = authority.issue("drained", "localhost")
    with echo(tls=f"{chain} {key}") as server, dial(server, credentials(authority.root)) as channel:
        assert channel.unary_unary("/echo/unary")(b"hi", timeout=PATIENCE_S) == b"hi"
        server.drain()
        assert server.ended()["drained"] == 1
