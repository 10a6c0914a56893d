"""podium_echo, the native HTTP/2 and gRPC layer alone, and a caller that speaks to it in frames."""

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

ECHO = Path(os.environ.get("PODIUM_ECHO") or Path(__file__).parents[2] / "build" / "native" / "tests" / "podium_echo")
HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/echo/unary"),
    (":authority", "echo"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
PATIENCE_S = 20.0


class Echo:
    """A running podium_echo. Words that it prints are read one line at a time, by its owner alone."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._line().removeprefix("listening "))

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def counters(self) -> dict[str, int]:
        """As they are now."""
        self._process.send_signal(signal.SIGUSR1)
        return _numbers(self._line())

    def drain(self) -> None:
        """Begins; `ended` waits for it."""
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> dict[str, int]:
        """Its last counters, and whether it was `drained`. It has ended well."""
        last = _numbers(self._line())
        assert self._process.wait(PATIENCE_S) == 0
        return last

    def allow_files(self, most: int) -> None:
        """That it has open at a time."""
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (most, most))

    def alive(self) -> bool:
        return self._process.poll() is None


def _numbers(line: str) -> dict[str, int]:
    return {name: int(value) for name, value in (word.split("=") for word in line.split())}


@contextmanager
def echo(**limits: int | str) -> Iterator[Echo]:
    """A server with these limits, which must end without a word on stderr: sanitizers speak there."""
    words = [word for name, value in limits.items() for word in (f"--{name}", *str(value).split())]
    with subprocess.Popen([ECHO, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            server = Echo(process)
            yield server
            if server.alive():
                server.drain()
            assert (process.stderr.read(), process.wait(PATIENCE_S)) == ("", 0)
        finally:
            process.kill()


class Caller:
    """One connection that sends what a well-behaved client would not. Everything that it was sent is in `events`."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.frames = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        self.frames.initiate_connection()
        self.events: list[Event] = []
        self.closed = False
        self.opens_windows = True
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.frames.data_to_send())

    def raw(self, frame: bytes) -> None:
        """A frame of which h2 knows nothing."""
        self.socket.sendall(frame)

    def call(self, body: bytes | None = b"", ends: bool = True, stream: int | None = None, **changed: str | None) -> int:
        """Headers (`changed`, with _ for -, None for none of it) and a body, as it is; None: no frame of data."""
        stream = stream or self.frames.get_next_available_stream_id()
        names = {name.replace("_", "-"): value for name, value in changed.items()}
        headers = [(name, names.pop(name.lstrip(":"), value)) for name, value in HEADERS]
        given = [(name, value) for name, value in [*headers, *names.items()] if value is not None]
        self.frames.send_headers(stream, given, end_stream=ends and body is None)
        if body is not None:
            self.frames.send_data(stream, body, end_stream=ends)
        self.flush()
        return stream

    def until(self, done: Callable[[], object]) -> None:
        """Reads until `done`, or the connection is closed."""
        while not self.closed and not done():
            try:
                read = self.socket.recv(65536)
            except ConnectionResetError:
                read = b""
            self.closed = not read
            events = self.frames.receive_data(read)
            for event in events:
                if self.opens_windows and isinstance(event, DataReceived) and event.flow_controlled_length:
                    self.frames.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.events += events
            if not self.closed:
                try:
                    self.flush()
                except (ConnectionResetError, BrokenPipeError):
                    self.closed = True

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait(self, kind: type[Event]) -> Event:
        """The first of that kind."""
        self.until(lambda: self.of(kind))
        return self.of(kind)[0]

    def answer(self, stream: int) -> tuple[dict[str, str], bytes]:
        """What a call was answered: headers and trailers together, and its body. Empty where it was reset."""
        over = (StreamEnded, StreamReset)
        self.until(lambda: any(getattr(event, "stream_id", 0) == stream for kind in over for event in self.of(kind)))
        headers: dict[str, str] = {}
        body = b""
        for event in self.events:
            if getattr(event, "stream_id", 0) != stream:
                continue
            if isinstance(event, ResponseReceived | TrailersReceived):
                assert event.headers is not None
                headers |= {_text(name): _text(value) for name, value in event.headers}
            elif isinstance(event, DataReceived):
                body += event.data or b""
        return headers, body

    def close(self) -> None:
        self.socket.close()


def _text(word: bytes | str) -> str:
    return word.decode() if isinstance(word, bytes) else word


@contextmanager
def calling(port: int) -> Iterator[Caller]:
    caller = Caller(port)
    try:
        yield caller
    finally:
        caller.close()


def framed(message: bytes, flag: int = 0, size: int | None = None) -> bytes:
    """gRPC's prefix and the message; `size` is what the prefix says, where that is not the truth."""
    return bytes([flag]) + (len(message) if size is None else size).to_bytes(4, "big") + message
