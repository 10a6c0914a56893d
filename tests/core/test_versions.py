from itertools import product

import pytest

from server.core.versions import TRANSITIONS, State, VersionKey, advance


def test_a_key_reads_and_sorts_as_model_and_number() -> None:
    keys = [VersionKey("b", 1), VersionKey("a", 10), VersionKey("a", 9)]
    assert [str(key) for key in sorted(keys)] == ["a:9", "a:10", "b:1"]


@pytest.mark.parametrize(("current", "following"), list(product(State, State)))
def test_every_edge_of_the_table_is_allowed_and_no_other(current: State, following: State) -> None:
    if following in TRANSITIONS[current]:
        assert advance(current, following) is following
    else:
        with pytest.raises(ValueError, match=f"no transition from {current} to {following}"):
            advance(current, following)


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {State.UNKNOWN}
    for _ in State:
        reached |= {following for state in reached for following in TRANSITIONS[state]}
    assert reached == set(State)
    assert all(TRANSITIONS.values())


def test_nothing_serves_that_was_not_loaded_and_nothing_stays_half_unloaded() -> None:
    assert [state for state in State if State.READY in TRANSITIONS[state]] == [State.LOADING]
    assert TRANSITIONS[State.UNLOADING] == {State.UNAVAILABLE}
