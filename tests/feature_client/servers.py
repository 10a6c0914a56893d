"""Real servers for tests: over TCP, with users and TLS, as a cluster; frozen, killed and started again at will."""

import os
import random
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import redis
import trustme
from redis.crc import key_slot

from feature_client.embedded import server_program
from tests.feature_client.proxy import Proxy

UP_S = 20.0
"""How long a server may take to come up: a slow machine under other load."""
SLOTS = 16384


def free_port() -> int:
    """A TCP port that nobody uses now, below those that the system gives to connections, so that none takes it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process on a port of 127.0.0.1, its folder below `folder`. `url` is what a store opens.

    `admin` is a client of its own, for what a test does behind the store's back.
    """

    def __init__(self, folder: Path, *arguments: str, user: str = "") -> None:
        program = server_program()
        assert program is not None, "the extra 'store' is not installed"
        self._program = program
        self._arguments = arguments
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://{user}127.0.0.1:{self.port}/0"
        self.admin = redis.Redis.from_url(self.url, protocol=2, socket_timeout=UP_S)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, on the port it always had, and wait until it answers."""
        listen = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder))
        unsaved = ("--save", "", "--appendonly", "no")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(self._program), *listen, *unsaved, *self._arguments], stdout=log, stderr=log)
        until = time.monotonic() + UP_S
        while True:
            try:
                self.admin.ping()
                return
            except redis.RedisError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < until, "the server does not come up"
                time.sleep(0.01)

    def command(self, *words: object) -> Any:
        """The reply to any command, as the client gives it."""
        call: Callable[..., Any] = self.admin.execute_command
        return call(*words)

    def freeze(self) -> None:
        """Stop it where it stands: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, without farewell. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it, and let go of the client."""
        self.kill()
        self.admin.close()

    def connections(self) -> int:
        """How many connections it ever accepted."""
        return int(self.admin.info("stats")["total_connections_received"])


@contextmanager
def tcp_server(folder: Path, *arguments: str) -> Iterator[Server]:
    """A server over TCP; `arguments` as of its command line."""
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.close()


RIGHTS = ("~*", "+mget", "+get", "+set", "+eval", "+evalsha", "+getrange", "+ping")
"""What a store's user needs."""
_RIGHTS_OF_TESTS = ("+flushall", "+info", "+dbsize", "+pttl", "+script", "+client")


@contextmanager
def guarded_server(folder: Path, password: str = "s3cret/:@é") -> Iterator[Server]:
    """A server that admits only the user `features`, with a password that a URL must escape."""
    folder.mkdir(parents=True, exist_ok=True)
    users = folder / "users.acl"
    users.write_text(f"user default off\nuser features on >{password} {' '.join(RIGHTS + _RIGHTS_OF_TESTS)}\n", "utf-8")
    escaped = "".join(f"%{byte:02X}" for byte in password.encode())
    server = Server(folder, "--aclfile", str(users), user=f"features:{escaped}@")
    try:
        yield server
    finally:
        server.close()


@contextmanager
def tls_front(server: Server, folder: Path) -> Iterator[tuple[str, Proxy]]:
    """TLS in front of a server: the URL, and the proxy that ends it. The program at hand is built without TLS of its own."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    with Proxy(server.port, context) as proxy:
        url = server.url.replace("redis://", "rediss://").replace(f":{server.port}/", f":{proxy.port}/")
        yield f"{url}?ssl_ca_certs={folder / 'ca.pem'}", proxy


class _Talker(socketserver.StreamRequestHandler):
    """Answers as `answers` of its server says, one for every command."""

    def handle(self) -> None:
        for answer in cast(_Talkers, self.server).answers:
            head = self.rfile.readline()
            if not head:
                return
            for _ in range(int(head[1:])):
                self.rfile.read(int(self.rfile.readline()[1:]) + 2)
            self.wfile.write(answer)


class _Talkers(socketserver.ThreadingTCPServer):
    answers: tuple[bytes, ...] = ()
    daemon_threads = True


@contextmanager
def talker(*answers: bytes) -> Iterator[str]:
    """The URL of what is no Redis: to every connection it says these things, one for every command, and goes."""
    with _Talkers(("127.0.0.1", 0), _Talker) as talkers:
        talkers.answers = answers
        thread = threading.Thread(target=talkers.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"redis://127.0.0.1:{talkers.server_address[1]}"
        finally:
            talkers.shutdown()
            thread.join()


class Cluster:
    """A cluster of real servers without replicas, slots dealt out evenly. `url` names all of them."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)
        first = self.servers[0]
        self.url = f"redis+cluster://127.0.0.1:{first.port}"
        share = -(-SLOTS // len(self.servers))
        for index, server in enumerate(self.servers):
            server.command("CLUSTER", "ADDSLOTSRANGE", index * share, min(SLOTS, (index + 1) * share) - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            # the port of the bus is given: by default it is 10,000 above, which a free port need not leave room for
            first.command("CLUSTER", "MEET", "127.0.0.1", server.port, bus_port(server))
        self.await_agreement()

    def await_agreement(self) -> None:
        """Wait until every node knows every slot and every other node."""
        until = time.monotonic() + UP_S
        while not all(self._agrees(server) for server in self.servers):
            assert time.monotonic() < until, "the cluster does not form"
            time.sleep(0.02)

    def owner(self, key: bytes) -> Server:
        """The server that a key's slot was dealt to, or moved to since."""
        slot = key_slot(key)
        for first, last, primary, *_ in self.slots():
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == primary)
        raise AssertionError("the slot is nowhere")

    def slots(self) -> list[tuple[int, int, int]]:
        """Ranges of slots and the port of each one's primary, as the first running server tells them."""
        found = self._running().command("CLUSTER SLOTS")
        rows = found.items() if isinstance(found, dict) else ((each[:2], {"primary": each[2]}) for each in found)
        return [(first, last, int(each["primary"][1])) for (first, last), each in rows]

    def move(self, slot: int, target: Server) -> None:
        """Give a slot to another server, with the keys in it, as resharding does."""
        identity = target.command("CLUSTER", "MYID").decode()
        source = next(each for each in self.servers if self._owns(each, slot))
        origin = source.command("CLUSTER", "MYID").decode()
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", origin)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", identity)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *self.servers):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", identity)

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.close()

    def _running(self) -> Server:
        for server in self.servers:
            with suppress(AssertionError):
                assert server.pid
                return server
        raise AssertionError("no server runs")

    def _agrees(self, server: Server) -> bool:
        state = server.command("CLUSTER", "INFO")
        text = state.decode() if isinstance(state, bytes) else "\n".join(f"{key}:{value}" for key, value in state.items())
        return "cluster_state:ok" in text and f"cluster_known_nodes:{len(self.servers)}" in text

    def _owns(self, server: Server, slot: int) -> bool:
        return any(first <= slot <= last and port == server.port for first, last, port in self.slots())


_BUS_PORTS: dict[int, int] = {}


def bus_port(server: Server) -> int:
    """The port on which a node talks to the other nodes."""
    return _BUS_PORTS[server.port]


@contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[Cluster]:
    """A cluster that is up."""
    with ExitStack() as stack:
        servers = []
        for index in range(nodes):
            bus = free_port()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000")
            server = Server(folder / str(index), *options, "--cluster-require-full-coverage", "no")
            stack.callback(server.close)
            _BUS_PORTS[server.port] = bus
            servers.append(server)
        yield Cluster(servers)
