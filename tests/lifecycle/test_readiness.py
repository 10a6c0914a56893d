"""Why a server should not be sent requests."""

from server.core.versions import State, VersionKey
from server.lifecycle.policy import Actual, Failure, Identity
from server.lifecycle.readiness import dead_problems, start_problems
from tests.lifecycle.doubles import SETTINGS

K = [VersionKey("m", number) for number in range(8)]
MINE = Identity("a", SETTINGS)


def broken(reason: str, *, dead: bool = True) -> Failure:
    return Failure(MINE, 1, 0, reason, dead)


def test_a_start_says_what_it_waits_for() -> None:
    assert list(start_problems("")) == ["the initial load has not finished"]
    assert list(start_problems("no such folder")) == ["the initial load has not finished", "no such folder"]


def test_what_is_dead_and_wanted_counts_and_a_lost_device_in_any_case() -> None:
    actual = {
        K[1]: Actual(State.READY, MINE),
        K[2]: Actual(State.READY, MINE, broken("its reload met a lost device")),
        K[3]: Actual(State.UNAVAILABLE, None, broken("a wrong digest", dead=False)),
        K[4]: Actual(State.UNAVAILABLE, None, broken("error 700")),
        K[5]: Actual(State.UNAVAILABLE, None, broken("error 700")),  # nobody wants it
        K[6]: Actual(State.UNAVAILABLE, None, broken("fake:0 is gone")),
    }
    wanted = {K[1], K[2], K[3], K[4], K[6]}
    assert list(dead_problems({}, wanted, {K[1]: actual[K[1]]})) == []
    assert list(dead_problems({"fake:0": "fake:0 is gone"}, wanted, actual)) == [
        "fake:0 is gone",
        "m:4: its backend is dead: error 700",
    ]
