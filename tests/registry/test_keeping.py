from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.registry.keeping import Rules, Shelf, reasons_to_keep
from server.registry.names import AliasMove

NOW = datetime(2025, 3, 20, tzinfo=UTC)
RULES = Rules(newest=1, recent=timedelta(days=7))


def left(alias: str, version: int | None, days_ago: float, after: int | None = 9) -> AliasMove:
    return AliasMove(at=NOW - timedelta(days=days_ago), who="ana", alias=alias, before=version, after=after)


def shelf(count: int, **changes: Any) -> Shelf:
    given: dict[str, Any] = {"parents": dict.fromkeys(range(1, count + 1)), "aliases": {}, "history": []}
    return Shelf(**{**given, **changes})


def test_what_nobody_needs_goes() -> None:
    assert reasons_to_keep(shelf(3), RULES, NOW) == {1: (), 2: (), 3: ("the newest",)}
    assert reasons_to_keep(shelf(3), Rules(2, timedelta(0)), NOW)[2] == ("one of the newest 2",)
    assert reasons_to_keep(shelf(0), RULES, NOW) == {}


def test_every_reason_is_named() -> None:
    kept = reasons_to_keep(
        shelf(
            6,
            parents={1: None, 2: 1, 3: 2, 4: None, 5: None, 6: None},
            aliases={"champion": 3, "blue": 3, "lost": 99},
            history=[left("champion", 4, 3, 3), left("champion", 5, 8, 4), left("champion", None, 1, 5), left("blue", 3, 1, 3)],
            leased={5, 77},
        ),
        RULES,
        NOW,
    )
    assert kept == {
        1: ("parent of 2",),
        2: ("parent of 3",),
        3: ("@blue", "@champion"),
        4: ("was @champion less than 7 days ago",),
        5: ("leased by a running server",),
        6: ("the newest",),
    }


def test_an_alias_that_left_long_ago_keeps_nothing() -> None:
    assert reasons_to_keep(shelf(2, history=[left("champion", 1, 7.001)]), RULES, NOW)[1] == ()
    assert reasons_to_keep(shelf(2, history=[left("champion", 1, 7)]), RULES, NOW)[1] != ()


def test_parents_in_a_circle_and_parents_that_are_gone_end_the_chain() -> None:
    assert reasons_to_keep(shelf(3, parents={1: 2, 2: 1, 3: 2}), RULES, NOW)[1] == ("parent of 2",)
    assert reasons_to_keep(shelf(2, parents={1: None, 2: 77}), RULES, NOW)[1] == ()


def test_nothing_goes_where_the_parents_of_a_kept_version_are_not_known() -> None:
    why = "the parents of version 3 cannot be read"
    assert reasons_to_keep(shelf(3, unreadable={3}), RULES, NOW) == {1: (why,), 2: (why,), 3: ("the newest", why)}
    kept = reasons_to_keep(shelf(4, parents={1: None, 2: None, 3: None, 4: 3}, unreadable={3}), RULES, NOW)
    assert kept[1] == (why,)
    assert kept[3] == ("parent of 4", why)
    # one that may go itself hides nobody's parents but its own
    assert reasons_to_keep(shelf(3, unreadable={1}), RULES, NOW)[1] == ()


VERSIONS = st.integers(1, 8)
ALIASES = st.dictionaries(st.sampled_from(["champion", "challenger", "blue"]), VERSIONS)
MOVES = st.lists(st.tuples(st.sampled_from(["champion", "blue"]), st.none() | VERSIONS, st.floats(0, 30)), max_size=6)


@given(
    parents=st.dictionaries(VERSIONS, st.none() | VERSIONS, max_size=8),
    aliases=ALIASES,
    moves=MOVES,
    leased=st.sets(VERSIONS),
    unreadable=st.sets(VERSIONS, max_size=1),
    newest=st.integers(1, 4),
)
def test_nothing_that_is_needed_ever_goes(
    parents: dict[int, int | None],
    aliases: dict[str, int],
    moves: list[tuple[str, int | None, float]],
    leased: set[int],
    unreadable: set[int],
    newest: int,
) -> None:
    history = [left(*each) for each in moves]
    found = Shelf(parents, aliases, history, leased, unreadable)
    kept = reasons_to_keep(found, Rules(newest, timedelta(days=7)), NOW)
    assert kept.keys() == parents.keys()
    going = {version for version, why in kept.items() if not why}
    staying = kept.keys() - going
    assert going.isdisjoint(aliases.values())
    assert going.isdisjoint(leased)
    assert going.isdisjoint(sorted(parents)[-newest:])
    assert going.isdisjoint(before for _, before, days_ago in moves if days_ago < 7)
    assert going.isdisjoint(parents[version] for version in staying)
    if going:
        assert staying.isdisjoint(unreadable)
