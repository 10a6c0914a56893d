"""What is no HTTP/2, or no call of gRPC: an end or a refusal, never an answer and never silence, and a server that goes on."""

from collections.abc import Iterator

import pytest

from tests.server.attacks import Neighbour, Target, verdict
from tests.server.frames import Peer, message
from tests.server.targets import attacked_server, inference, question
from tests.server.violations import LAX, NO_HTTP2, PASSED_OVER, Violations

VIOLATIONS = Violations(message(question(1).SerializeToString()))
CONNECTION_ERRORS, STREAM_ERRORS = VIOLATIONS.of_connections(), VIOLATIONS.of_calls()
RANDOM = 150


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Target]:
    with attacked_server(tmp_path_factory.mktemp("offended"), plane) as server:
        yield inference(server)


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


@pytest.mark.parametrize("case", NO_HTTP2)
def test_what_is_no_http2_is_hung_up_on(target: Target, neighbour: Neighbour, case: str) -> None:
    with Peer(target.address, preface=NO_HTTP2[case]) as peer:
        assert verdict(peer, patience_s=10) == "over"
    neighbour.answered_again()


@pytest.mark.parametrize("case", CONNECTION_ERRORS | STREAM_ERRORS)
def test_errors_end_the_connection_or_refuse_the_call(target: Target, neighbour: Neighbour, case: str, plane: str) -> None:
    lax = case in PASSED_OVER or (plane == "python" and case in LAX)
    with Peer(target.address) as peer:
        peer.send((CONNECTION_ERRORS | STREAM_ERRORS)[case])
        outcome = verdict(peer, patience_s=0.2 if lax else 10)
        assert lax or outcome in ({"over", "refused"} if case in STREAM_ERRORS or plane == "python" else {"over"}), peer.replies
    neighbour.answered_again()


def test_a_frame_that_no_connection_survives_is_told_with_its_code(target: Target, plane: str) -> None:
    """GOAWAY with the code of RFC 9113, 7. C-core mostly hangs up without a word."""
    codes = {
        "a frame beyond the size": {6},
        "a ping of seven bytes": {6},
        "a window beyond all windows": {3},
        "an index that no table has": {9},
        "data on stream 0": {1},
    }
    for case, code in codes.items():
        with Peer(target.address) as peer:
            peer.send(CONNECTION_ERRORS[case])
            verdict(peer, patience_s=0.2 if plane == "python" else 10)
            assert peer.goaway in (code | {None} if plane == "python" else code), case


def test_frames_at_random_harm_nobody(target: Target, neighbour: Neighbour) -> None:
    for seed in range(RANDOM):
        with Peer(target.address, judges=False, patience_s=2) as peer:
            peer.send(VIOLATIONS.random_frames(seed))
            verdict(peer, patience_s=0.005)
    neighbour.answered_again()
