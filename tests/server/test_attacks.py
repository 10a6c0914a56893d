"""Floods and worse: whoever attacks is bounded, a neighbour on another connection is answered throughout, memory stays."""

from collections.abc import Iterator

import pytest

from tests.server.attacks import FLOODS, Neighbour, Target
from tests.server.serving import Serving
from tests.server.targets import attacked_server, inference, nothing_is_left

MOST_BYTES = 96 * 2**20
"""What an attack may leave behind. Each sends less than this, and what a call costs is returned late by the allocator."""

BOUNDED = {"over", "refused", "stalled"}
ANY = {*BOUNDED, "tolerated", "answered"}
HARMLESS = {
    "settings_flood": "each is answered, and its answer is read: it costs the caller what it costs the server",
    "window_update_flood": "nine bytes are read for nine bytes sent, nothing is kept and nothing is answered",
    "unknown_frame_flood": "as above; HTTP/2 says that they are to be passed over (RFC 9113, 5.5)",
}
ONLY_GRPC = {
    "rapid_reset": "C-core begins calls one by one, and has no limit of resets but that of calls which wait to be begun",
    "settings_flood_unread": "C-core keeps few of these at a time; the rest waits in the socket",
    "ping_flood_unread": "as above",
    "huge_headers": "C-core counts the headers of each frame by itself, so that only what is within one is limited",
    "window_overflow": "C-core counts with 64 bits",
    "window_overflow_of_a_call": "as above",
}
"""What the python plane's gRPC tolerates, and why nobody is harmed by it. The native plane does not."""

CROWDED = {("python", "rapid_reset"): "CANCELLED: CANCELLED"}
"""Seen: neighbours on other connections are refused too, none is answered wrongly. It may be C-core's bound on calls that
wait to be begun; that was not confirmed."""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    with attacked_server(tmp_path_factory.mktemp("attacked"), plane) as server:
        yield server


@pytest.fixture(scope="module")
def target(attacked: Serving) -> Target:
    return inference(attacked)


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


@pytest.mark.parametrize("attack", FLOODS)
def test_whoever_floods_is_bounded_and_nobody_else_notices(
    target: Target, neighbour: Neighbour, attack: object, plane: str
) -> None:
    name = attack.__name__  # type: ignore[attr-defined]
    neighbour.answered_again()
    before = target.memory_bytes()
    outcome = attack(target)  # type: ignore[operator]
    allowed = ANY if name in HARMLESS or (plane == "python" and name in ONLY_GRPC) else BOUNDED
    assert outcome in allowed, outcome
    if (plane, name) in CROWDED:
        neighbour.answered_at_last(CROWDED[plane, name])
    neighbour.answered_again()
    assert target.memory_bytes() - before < MOST_BYTES


def test_after_all_of_that_nothing_is_left(attacked: Serving) -> None:
    nothing_is_left(attacked)
    assert attacked.http("/readyz")[0] == 200
