"""What a process remembers of its new beginnings."""

import pytest

from server.core.restarts import Restarts

S = 10**9


def test_it_goes_on_where_the_text_ended() -> None:
    none = Restarts.of(None, 7)
    assert none == Restarts(7)
    once = none.another(5 * S, 'cuda:0 is lost: "quoted"\nand more', 9)
    twice = Restarts.of(once.text(), 7).another(9 * S, "cuda:1")
    assert twice == Restarts(7, 2, (5 * S, 9 * S), "cuda:1")
    assert Restarts.of(twice.text(), 7) == twice
    assert (Restarts.of(once.text(), 7).reason, once.handed, twice.handed) == (once.reason, 9, -1)


def test_another_process_that_inherits_the_variable_begins_at_none() -> None:
    assert Restarts.of(Restarts(7, 3, (1, 2, 3), "x").text(), 8) == Restarts(8)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "{",
        '{"process": 7}',
        '{"process": 7, "total": -1, "at_ns": [], "reason": "", "handed": -1}',
        '{"process": 7, "total": "2", "at_ns": [], "reason": "", "handed": -1}',
        '{"process": 7, "total": 1, "at_ns": [1.5], "reason": "", "handed": -1}',
        '{"process": 7, "total": 1, "at_ns": [1], "reason": "", "handed": -2}',
        '{"process": 7, "total": 1, "at_ns": [1], "reason": "", "handed": -1, "more": 1}',
        '{"process": 7, "total": 1, "at_ns": [' + "1," * 100 + '1], "reason": "", "handed": -1}',
    ],
)
def test_what_is_damaged_says_nothing(text: str) -> None:
    assert Restarts.of(text, 7) == Restarts(7)


def test_a_window_counts_what_was_in_it() -> None:
    restarts = Restarts(7, 4, (1 * S, 5 * S, 9 * S, 20 * S), "x")
    assert restarts.within(10 * S, 2 * S) == 1
    assert restarts.within(10 * S, 5 * S) == 1  # the one at its very beginning has left it
    assert restarts.within(10 * S, 6 * S) == 2
    assert restarts.within(20 * S, 100 * S) == 4


def test_the_text_does_not_grow_for_ever() -> None:
    restarts = Restarts(7)
    for instant in range(250):
        restarts = restarts.another(instant, "x")
    assert (restarts.total, len(restarts.at_ns), restarts.at_ns[-1]) == (250, 100, 249)
    assert Restarts.of(restarts.text(), 7) == restarts
