from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.registry.manifest import FileDigest, Manifest
from server.registry.names import AliasMove
from server.registry.status import Deployment, Status, deployment


def day(number: int) -> datetime:
    return datetime(2025, 3, number, tzinfo=UTC)


def move(number: int, alias: str, before: int | None, after: int | None) -> AliasMove:
    return AliasMove(at=day(number), who=f"user {number}", alias=alias, before=before, after=after)


MANIFEST = Manifest(
    model="demo", version=1, created_at=day(1), author="ana", files={"model.onnx": FileDigest(sha256="ab" * 32, bytes=1)}
)
HISTORY = [
    move(2, "champion", None, 1),
    move(3, "challenger", None, 2),
    move(4, "champion", 1, 2),
    move(5, "challenger", 2, 3),
    move(6, "blue", None, 4),
    move(7, "blue", 4, 3),
]
ALIASES = {"champion": 2, "challenger": 3, "blue": 3}


@pytest.mark.parametrize(
    ("version", "status", "number"),
    [(1, Status.RETIRED, 4), (2, Status.CHAMPION, 4), (3, Status.CHALLENGER, 5)],
)
def test_status_since_and_by(version: int, status: Status, number: int) -> None:
    assert deployment(version, MANIFEST, ALIASES, HISTORY) == Deployment(status=status, since=day(number), by=f"user {number}")


def test_any_other_alias_makes_no_status() -> None:
    assert deployment(4, MANIFEST, ALIASES, HISTORY) == Deployment(status=Status.REGISTERED, since=day(1), by="ana")
    assert deployment(4, None, ALIASES, HISTORY) == Deployment(status=Status.REGISTERED, since=None, by=None)


def test_an_alias_without_history_still_counts() -> None:
    assert deployment(1, MANIFEST, {"champion": 1}, []) == Deployment(status=Status.CHAMPION, since=None, by=None)


def test_champion_goes_before_challenger() -> None:
    assert deployment(1, None, {"champion": 1, "challenger": 1}, []).status is Status.CHAMPION


def test_a_move_that_was_announced_and_cut_off_retires_nobody() -> None:
    history = [move(2, "champion", None, 1), move(3, "champion", 1, 2)]
    # the crash came before aliases.json: the champion is still 1, and 2 has never been anything
    assert deployment(1, MANIFEST, {"champion": 1}, history).status is Status.CHAMPION
    assert deployment(2, MANIFEST, {"champion": 1}, history).status is Status.REGISTERED


@given(st.lists(st.tuples(st.sampled_from(["champion", "challenger", "blue"]), st.none() | st.integers(1, 4)), max_size=12))
def test_status_after_any_moves(moves: list[tuple[str, int | None]]) -> None:
    aliases: dict[str, int] = {}
    history, had_role = [], set()
    for number, (alias, after) in enumerate(moves, start=1):
        history.append(move(number, alias, aliases.get(alias), after))
        if after is None:
            aliases.pop(alias, None)
        else:
            aliases[alias] = after
            had_role |= {after} if alias != "blue" else set()
    for version in range(1, 5):
        status = deployment(version, MANIFEST, aliases, history).status
        if aliases.get("champion") == version:
            assert status is Status.CHAMPION
        elif aliases.get("challenger") == version:
            assert status is Status.CHALLENGER
        else:
            assert status is (Status.RETIRED if version in had_role else Status.REGISTERED)
