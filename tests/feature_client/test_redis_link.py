"""The connections to one server: lent, waited for, given up, interrupted."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from redis.connection import AbstractConnection

from feature_client import redis_link
from feature_client.errors import StoreError, StoreTimeout
from feature_client.redis_address import Address, parse_address
from feature_client.redis_channel import Channel, packed
from feature_client.redis_exchange import Asked, exchange
from feature_client.redis_link import Link
from feature_client.redis_store import RedisStore
from tests.feature_client.proxy import Proxy
from tests.feature_client.servers import Server, free_port, tcp_server

PING = packed(("PING",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def link(server: Server) -> Iterator[Link]:
    opened = Link(parse_address(server.url), connections=2, connect_timeout_s=2)
    yield opened
    opened.close()


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_a_store_has_at_least_one_connection(server: Server) -> None:
    with pytest.raises(StoreError, match="at least one"):
        RedisStore(server.url, connections=0)


def test_when_all_are_lent_a_call_waits_for_one_that_comes_back(link: Link) -> None:
    lent = [link.take(soon()), link.take(soon())]
    assert link.take_now() is None
    with pytest.raises(StoreTimeout):
        link.take(soon(0.01))
    threading.Timer(0.02, link.put, (lent[1],)).start()
    assert link.take(soon()) is lent[1]
    for channel in lent:
        link.put(channel)


def test_who_waits_hears_of_the_end(link: Link) -> None:
    lent = [link.take(soon()), link.take(soon())]
    threading.Timer(0.02, link.close).start()
    with pytest.raises(StoreError, match="has been closed"):
        link.take(soon())
    link.put(lent[0])
    assert lent[0].closed


def test_what_a_server_says_unasked_makes_a_connection_useless(server: Server, link: Link) -> None:
    channel = link.take(soon())
    channel._socket.send(PING)  # nobody counted the reply
    time.sleep(0.05)
    link.put(channel)
    other = link.take(soon())
    assert channel.closed
    assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
    link.put(other)


def test_what_owes_for_very_long_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "_GIVEN_UP_S", 0.1)
    with Proxy(server.port) as proxy:
        link = Link(parse_address(f"redis://127.0.0.1:{proxy.port}"), connections=1, connect_timeout_s=2)
        assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
        silent = proxy.pieces + 1
        proxy.delay_s = lambda piece: 3600.0 if piece == silent else 0.0
        (answer,) = exchange([Asked(link, PING, 1)], soon(0.01))
        assert isinstance(answer, StoreTimeout)
        assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
        assert proxy.accepted == 2
        link.close()


def test_a_connection_that_owes_and_is_lost_makes_room(server: Server) -> None:
    link = Link(parse_address(server.url), connections=1, connect_timeout_s=2)
    assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
    server.freeze()
    (answer,) = exchange([Asked(link, PING, 1)], soon(0.01))
    assert isinstance(answer, StoreTimeout)
    server.kill()
    server.start()
    assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
    link.close()


def test_an_interrupted_round_trip_leaves_no_connection_behind(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was interrupted nobody knows, so what it owes is not known either."""
    finish = Channel.finish
    channels: list[Channel] = []

    def interrupted(channel: Channel, deadline_s: float) -> None:
        channels.append(channel)
        raise KeyboardInterrupt

    monkeypatch.setattr(Channel, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exchange([Asked(link, PING, 1)], soon())
    monkeypatch.setattr(Channel, "finish", finish)
    assert channels[0].closed
    assert exchange([Asked(link, PING, 1)] * 2, soon()) == [[b"PONG"]] * 2


def test_more_asked_of_a_server_than_it_has_connections(link: Link) -> None:
    """What is complete goes back while others wait: nobody waits for himself."""
    assert exchange([Asked(link, PING, 1)] * 9, soon()) == [[b"PONG"]] * 9


def test_one_server_that_cannot_be_had_costs_another_nothing(server: Server, link: Link) -> None:
    server.freeze()
    try:
        for _ in range(2):
            exchange([Asked(link, PING, 1)], soon(0.01))
        frozen = [isinstance(each, StoreTimeout) for each in exchange([Asked(link, PING, 1)], soon(0.01))]
    finally:
        server.thaw()
    gone = Link(parse_address(f"redis://127.0.0.1:{free_port()}"), connections=1, connect_timeout_s=2)
    refused, answered = exchange([Asked(gone, PING, 1), Asked(link, PING, 1)], soon())
    assert frozen == [True]
    assert "cannot be reached" in str(refused)
    assert answered == [b"PONG"]
    gone.close()


def test_any_failure_to_connect_reaches_those_who_wait(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(address: Address, timeout_s: float) -> Channel:
        raise AttributeError("port")

    monkeypatch.setattr(Address, "connect", failing)
    with pytest.raises(StoreError, match="cannot be reached: AttributeError"):
        link.take(soon())


def test_a_process_that_ends_starts_no_threads(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(StoreError, match="starts no threads"):
        link.take(soon())


def test_a_link_that_is_closed_while_it_connects_keeps_nothing(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    connect: Callable[[Address, float], Channel] = Address.connect
    made: list[Channel] = []
    may_go_on = threading.Event()

    def slowly(address: Address, timeout_s: float) -> Channel:
        may_go_on.wait(20)
        made.append(connect(address, timeout_s))
        return made[0]

    monkeypatch.setattr(Address, "connect", slowly)
    with pytest.raises(StoreTimeout):
        link.take(soon(0.01))
    link.close()
    may_go_on.set()
    until = soon(20)
    while not (made and made[0].closed):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_waits_is_woken_when_what_owes_settles(server: Server) -> None:
    """Those who looked while the server hung have left: whoever can wait longer must look himself."""
    link = Link(parse_address(server.url), connections=1, connect_timeout_s=2)
    assert exchange([Asked(link, PING, 1)], soon()) == [[b"PONG"]]
    server.freeze()
    outcomes: list[object] = []

    def call(seconds: float) -> None:
        outcomes.append(exchange([Asked(link, PING, 1)], soon(seconds)))

    threads = [threading.Thread(target=call, args=(seconds,)) for seconds in (0.1, 0.2, 20.0)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    threads[1].join()
    server.thaw()
    threads[2].join(5)
    assert not threads[2].is_alive()
    assert outcomes[-1] == [[b"PONG"]]
    link.close()


class _Pair:
    """A connection whose other end a test holds."""

    def __init__(self) -> None:
        self._mine, self.other = socket.socketpair()

    def _get_socket(self) -> socket.socket:
        return self._mine

    def disconnect(self) -> None:
        self._mine.close()
        self.other.close()


def test_a_caller_that_leaves_at_any_byte_leaves_nothing_to_the_next() -> None:
    told = b"*2\r\n$3\r\none\r\n$-1\r\n" + b"-ERR refused\r\n" + b"*1\r\n$6\r\nt\r\nw\no\r\n"
    for cut in range(len(told) + 1):
        pair = _Pair()
        channel = Channel(cast(AbstractConnection, pair), "pair")
        channel.begin(PING, 3)
        pair.other.sendall(told[:cut])
        replies = channel.finish(0.0)
        assert (replies is None) == (cut < len(told))
        pair.other.sendall(told[cut:])
        assert channel.settle()
        assert channel.fresh()
        channel.begin(PING, 1)
        pair.other.sendall(b"*1\r\n$4\r\nmine\r\n")
        assert channel.finish(soon()) == [[b"mine"]]
        channel.close()


def test_what_is_sent_in_parts_arrives_whole() -> None:
    pair = _Pair()
    pair._mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    channel = Channel(cast(AbstractConnection, pair), "pair")
    sent = bytes(range(256)) * 400
    channel.begin(sent, 1)
    received = b""
    while len(received) < len(sent):
        assert channel.finish(0.0) is None
        assert not channel.settle()
        received += pair.other.recv(1000)
    assert received == sent
    pair.other.sendall(b"+OK\r\n")
    assert channel.settle()
    channel.close()
