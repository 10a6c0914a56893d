"""The HTTP/2 layer alone, as podium_echo: what is done to the whole server is done to it as well, and much more at random.

Not collected where it is not built: see conftest.py. A build with sanitizers judges its own memory beside.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.http2.conftest import ECHO
from tests.server.attacks import FLOODS, Neighbour, Target, verdict
from tests.server.frames import Peer, frame, message
from tests.server.violations import NO_HTTP2, PASSED_OVER, Violations

PATH = "/echo/unary"
BODY = message(b"hello" * 10)
VIOLATIONS = Violations(BODY, PATH)
BOUNDED = {"over", "refused", "stalled"}
HARMLESS = {"unknown_frame_flood", "settings_flood", "window_update_flood"}
RANDOM = 1000
MOST_BYTES = 512 * 2**20
"""What a sanitizer keeps of what was freed is 256 MB of it; all that is never read would be 2 GB."""


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    limits = ["--max_message_bytes", "4000000", "--max_unread_bytes", "20000000"]
    with subprocess.Popen([ECHO, *limits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().split()[-1]
        try:
            yield Target(f"127.0.0.1:{port}", process.pid, lambda tag: b"%d" % tag, lambda tag, got: got == b"%d" % tag, PATH)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (0, "")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


@pytest.mark.parametrize("attack", FLOODS)
def test_whoever_floods_is_bounded(target: Target, neighbour: Neighbour, attack: Callable[[Target], str]) -> None:
    assert attack(target) in BOUNDED or attack.__name__ in HARMLESS
    neighbour.answered_again()


@pytest.mark.parametrize("case", NO_HTTP2)
def test_what_is_no_http2_is_hung_up_on(target: Target, neighbour: Neighbour, case: str) -> None:
    with Peer(target.address, preface=NO_HTTP2[case]) as peer:
        assert verdict(peer, patience_s=10) == "over"
    neighbour.answered_again()


@pytest.mark.parametrize("case", VIOLATIONS.of_connections() | VIOLATIONS.of_calls())
def test_errors_end_the_connection_or_refuse_the_call(target: Target, neighbour: Neighbour, case: str) -> None:
    connections = VIOLATIONS.of_connections()
    with Peer(target.address) as peer:
        peer.send((connections | VIOLATIONS.of_calls())[case])
        outcome = verdict(peer, patience_s=0.2 if case in PASSED_OVER else 10)
        assert case in PASSED_OVER or outcome in ({"over"} if case in connections else BOUNDED)
        if outcome == "over":
            assert peer.read_until(lambda: peer.closed, 20), "a connection whose end was told is closed, whatever is open on it"
    neighbour.answered_again()


def test_frames_at_random_harm_nobody(target: Target, neighbour: Neighbour) -> None:
    for seed in range(RANDOM):
        with Peer(target.address, judges=False, patience_s=2) as peer:
            peer.send(VIOLATIONS.random_frames(seed))
            verdict(peer, patience_s=0.005)
    neighbour.answered_again()


def test_answers_without_end_that_nobody_reads_end_the_connection(target: Target, neighbour: Neighbour) -> None:
    before = target.memory_bytes()
    with Peer(target.address, window=0) as peer:
        peer.send(b"".join(Peer.opening(stream, path="/echo/flood") + frame(0, 1, stream) for stream in range(1, 41, 2)))
        assert peer.read_until(lambda: peer.over, 20)
    neighbour.answered_again()
    assert target.memory_bytes() - before < MOST_BYTES
