"""The breaker: when it opens, how it finds out, and that its table is all there is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client.breaker import NEXT, Breaker, Event, Passage, State


def calls(breaker: Breaker, outcomes: str, now_s: float = 0.0) -> None:
    """One call per letter: `.` succeeds, `x` fails."""
    for outcome in outcomes:
        breaker.tell(breaker.ask(now_s), outcome == ".", now_s)


def opened() -> Breaker:
    breaker = Breaker()
    calls(breaker, "xxxxx")
    assert breaker.state is State.OPEN
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    calls(breaker, "xxxx.xxxx")
    assert breaker.state is State.CLOSED
    calls(breaker, "x")
    assert breaker.state is State.OPEN


def test_half_of_the_last_hundred_open_it() -> None:
    breaker = Breaker()
    calls(breaker, "x." * 49 + ".")
    assert breaker.state is State.CLOSED, "49 of 99"
    calls(breaker, "x")
    assert breaker.state is State.OPEN
    fewer = Breaker()
    calls(fewer, "." * 100 + "x." * 49)
    assert fewer.state is State.CLOSED
    calls(fewer, "x.x.")
    assert fewer.state is State.OPEN


def test_failures_of_long_ago_do_not_count() -> None:
    breaker = Breaker()
    calls(breaker, "xx." * 16 + "." * 60 + "xx." * 16)
    assert breaker.state is State.CLOSED


def test_open_it_lets_one_probe_through_every_quarter_of_a_second() -> None:
    breaker = opened()
    assert [breaker.ask(now_s) for now_s in (0.0, 0.249, 0.25, 0.26)] == [Passage.REFUSED] * 2 + [
        Passage.PROBE,
        Passage.REFUSED,
    ]
    breaker.tell(Passage.PROBE, False, 0.27)
    assert breaker.state is State.OPEN
    assert [breaker.ask(now_s) for now_s in (0.499, 0.5)] == [Passage.REFUSED, Passage.PROBE]


def test_a_probe_that_succeeds_closes_it_and_old_failures_are_forgotten() -> None:
    breaker = opened()
    breaker.tell(breaker.ask(1.0), True, 1.0)
    assert breaker.state is State.CLOSED
    calls(breaker, "xxxx")
    assert breaker.state is State.CLOSED


def test_a_probe_of_which_nothing_is_heard_is_sent_again() -> None:
    breaker = opened()
    assert [breaker.ask(now_s) for now_s in (1.0, 1.1, 1.25)] == [Passage.PROBE, Passage.REFUSED, Passage.PROBE]
    breaker.tell(Passage.PROBE, True, 1.3)
    breaker.tell(Passage.PROBE, False, 1.4)
    assert breaker.state is State.CLOSED, "the other one's outcome says nothing new"
    breaker.tell(Passage.PROBE, True, 1.5)
    assert breaker.state is State.CLOSED


def test_calls_from_before_it_opened_teach_nothing() -> None:
    breaker = opened()
    breaker.tell(Passage.CALL, True, 0.1)
    assert breaker.state is State.OPEN
    breaker.ask(1.0)
    breaker.tell(Passage.CALL, False, 1.0)
    assert breaker.state is State.PROBING


def test_the_table_has_every_event_of_every_state_but_those_that_cannot_happen() -> None:
    missing = set(itertools.product(State, Event)) - set(NEXT)
    assert missing == {
        (State.CLOSED, Event.PROBE_SENT),
        (State.OPEN, Event.TOO_MANY_FAILURES),
        (State.PROBING, Event.TOO_MANY_FAILURES),
    }


@given(st.lists(st.tuples(st.floats(0, 0.2), st.sampled_from(["ask", "ok", "fail"]), st.integers(0, 3)), max_size=200))
@settings(deadline=None)
def test_whatever_happens_probes_are_rare_and_one_success_of_a_probe_is_enough(steps: list[tuple[float, str, int]]) -> None:
    breaker, now_s = Breaker(), 0.0
    underway: list[Passage] = []
    probes: list[float] = []
    for passed_s, what, which in steps:
        now_s += passed_s
        if what == "ask":
            passage = breaker.ask(now_s)
            assert (passage is Passage.CALL) == (breaker.state is State.CLOSED)
            if passage is Passage.PROBE:
                probes.append(now_s)
            if passage is not Passage.REFUSED:
                underway.append(passage)
        elif underway:
            passage = underway.pop(which % len(underway))
            breaker.tell(passage, what == "ok", now_s)
            if passage is Passage.PROBE and what == "ok":
                assert breaker.state is State.CLOSED
    assert all(later - earlier >= 0.25 - 1e-9 for earlier, later in itertools.pairwise(probes))


@pytest.mark.parametrize("consecutive", [1, 3])
def test_how_many_in_a_row_is_the_callers_choice(consecutive: int) -> None:
    breaker = Breaker(consecutive=consecutive, probe_every_s=2.0)
    calls(breaker, "x" * consecutive)
    assert breaker.state is State.OPEN
    assert (breaker.ask(1.9), breaker.ask(2.0)) == (Passage.REFUSED, Passage.PROBE)
