"""What the native door listens on is nobody else's, and gone when it should be."""

import errno
import socket
from pathlib import Path

import pytest

from server.transport.native import sockets
from server.transport.native.sockets import Listening, listen


class Held:
    """The sockets of an address, for as long as a test needs them."""

    def __init__(self, address: str, *, reuse_port: bool = False) -> None:
        self.listening = listen(address, reuse_port=reuse_port)
        self.sockets = [socket.socket(fileno=each) for each in self.listening.hand_over()]

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets:
            each.close()

    @property
    def address(self) -> str:
        return self.listening.address


def connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_port_0_is_any_that_is_free_and_a_second_server_is_refused() -> None:
    with Held("127.0.0.1:0") as held:
        assert connects(held.address)
        with pytest.raises(OSError, match=f"'{held.address}' cannot be listened on: Address already in use") as refused:
            listen(held.address)
        assert refused.value.errno == errno.EADDRINUSE
    Held(held.address).__exit__()


def test_a_port_is_shared_by_those_who_all_say_so() -> None:
    with Held("127.0.0.1:0", reuse_port=True) as first:
        with Held(first.address, reuse_port=True) as second:
            assert second.address == first.address
        with pytest.raises(OSError, match="in use"):
            listen(first.address)


def test_every_address_of_a_host_on_one_port() -> None:
    with Held("localhost:0") as held:
        host, _, port = held.address.rpartition(":")
        assert host == "localhost"
        assert {each.getsockname()[1] for each in held.sockets} == {int(port)}
        assert connects(held.address)


def resolved(*found: tuple[socket.AddressFamily, tuple[str, int]]) -> object:
    def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [(family, socket.SOCK_STREAM, 6, "", where) for family, where in found]

    return getaddrinfo


def test_an_address_that_is_not_this_machines_is_left_out_where_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # of TEST-NET-1, which no machine has
    foreign = (socket.AF_INET, ("192.0.2.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", resolved(foreign, (socket.AF_INET, ("127.0.0.1", 0))))
    with Held("somewhere:0") as held:
        (only,) = held.sockets
        assert only.getsockname()[0] == "127.0.0.1"
    monkeypatch.setattr(socket, "getaddrinfo", resolved(foreign))
    with pytest.raises(OSError, match="'somewhere:0' cannot be listened on: Cannot assign requested address"):
        listen("somewhere:0")


def test_a_port_that_is_taken_on_the_next_address_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET, ("127.0.0.2", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", resolved(*ends))
    taken: list[socket.socket] = []
    made = sockets._listen_one

    def listen_one(family: socket.AddressFamily, where: tuple[str, int], reuse_port: bool) -> socket.socket:
        if where[0] == "127.0.0.2" and len(taken) < 3:
            taken.append(made(family, where, reuse_port))  # somebody was faster, three times
        return made(family, where, reuse_port)

    monkeypatch.setattr(sockets, "_listen_one", listen_one)
    with Held("both:0") as held:
        ports = {each.getsockname()[1] for each in held.sockets}
        assert len(held.sockets) == 2
        assert len(ports) == 1
        assert not ports & {each.getsockname()[1] for each in taken}
    for each in taken:
        each.close()


@pytest.mark.parametrize("address", ["nonsense", "::1:80", "127.0.0.1:x", "127.0.0.1:65536", ":80"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(OSError, match="is not an address"):
        listen(address)


def test_a_host_that_nobody_knows_is_told() -> None:
    with pytest.raises(OSError, match=r"'host\.invalid:1' cannot be listened on"):
        listen("host.invalid:1")


def test_a_unix_socket_is_its_owners_while_it_lives_and_gone_afterwards(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with Held(address) as held:
        assert held.address == address
        with pytest.raises(OSError, match="another server listens on"):
            listen(address)
    # the owner has died without removing it
    with Held(address) as held:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/s")
        held.listening.remove()
        assert not (tmp_path / "s").exists()
        held.listening.remove()


def test_the_socket_file_of_the_next_server_is_left_alone(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/s"
    with Held(address) as first:
        (tmp_path / "s").rename(tmp_path / "old")
        with Held(address):
            first.listening.remove()
            assert (tmp_path / "s").is_socket()


def test_what_is_in_a_unix_sockets_way_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="is there and is no socket"):
        listen(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(OSError, match="cannot be listened on: No such file or directory"):
        listen(f"unix:{tmp_path}/no/such/folder/s")
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        listen(f"unix:{tmp_path}/{'x' * 200}")


def test_tcp_has_no_file_to_remove() -> None:
    Listening("127.0.0.1:1", []).remove()
