"""Aliases: a move is whole or did not happen, two movers lose nothing, and the history tells who moved what."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.core.errors import InvalidRequest, NotFound, RegistryError
from server.registry.aliases import read_aliases, read_history, remove_alias, set_alias

REPOSITORY_ROOT = Path(__file__).parents[2]

MOVER = """
import sys
from pathlib import Path
from server.registry.aliases import set_alias
folder, alias, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    set_alias(folder, alias, number % 2 + 1)
    set_alias(folder, f"{alias}{number}", 1)
    set_alias(folder, "shared", number % 2 + 1)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for version in (1, 2):
        (tmp_path / "demo" / str(version)).mkdir(parents=True)
    return tmp_path / "demo"


def test_moves_are_kept_and_told(model: Path) -> None:
    assert read_aliases(model) == {}
    assert read_history(model) == []
    assert set_alias(model, "champion", 1) is None
    assert set_alias(model, "champion", 2) == 1
    assert set_alias(model, "challenger", 1) is None
    assert read_aliases(model) == {"champion": 2, "challenger": 1}
    assert remove_alias(model, "champion") == 2
    assert read_aliases(model) == {"challenger": 1}
    history = read_history(model)
    assert [(move.alias, move.before, move.after) for move in history] == [
        ("champion", None, 1),
        ("champion", 1, 2),
        ("challenger", None, 1),
        ("champion", 2, None),
    ]
    assert all(move.who for move in history)
    assert [move.at for move in history] == sorted(move.at for move in history)
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "aliases.json", "aliases.log"]


def test_a_move_to_where_it_is_leaves_no_line(model: Path) -> None:
    set_alias(model, "champion", 1)
    assert set_alias(model, "champion", 1) == 1
    assert len(read_history(model)) == 1


def test_what_is_refused_changes_nothing(model: Path) -> None:
    set_alias(model, "champion", 1)
    before = (model / "aliases.json").read_bytes()
    with pytest.raises(NotFound, match="alias 'champion' cannot be moved: model 'demo' has no version 3"):
        set_alias(model, "champion", 3)
    with pytest.raises(InvalidRequest, match="alias '2'"):
        set_alias(model, "2", 1)
    with pytest.raises(NotFound, match="model 'demo' has no alias 'challenger'"):
        remove_alias(model, "challenger")
    with pytest.raises(NotFound, match="there is no model 'other'"):
        set_alias(model.parent / "other", "champion", 1)
    with pytest.raises(NotFound, match="there is no model 'other'"):
        remove_alias(model.parent / "other", "champion")
    assert (model / "aliases.json").read_bytes() == before
    assert len(read_history(model)) == 1
    assert not (model.parent / "other").exists()


def test_aliases_that_cannot_be_understood_are_not_overwritten(model: Path) -> None:
    (model / "aliases.json").write_text("{")
    with pytest.raises(RegistryError, match=r"^aliases\.json: "):
        set_alias(model, "champion", 1)
    assert (model / "aliases.json").read_text() == "{"
    (model / "aliases.json").unlink()
    (model / "aliases.json").mkdir()
    with pytest.raises(RegistryError, match="Is a directory"):
        read_aliases(model)


def test_a_line_cut_off_by_a_crash_spoils_only_itself(model: Path) -> None:
    set_alias(model, "champion", 1)
    with (model / "aliases.log").open("ab") as file:
        file.write(b'{"at": "2025-01')
    set_alias(model, "champion", 2)
    assert [(move.before, move.after) for move in read_history(model)] == [(None, 1), (1, 2)]
    assert len((model / "aliases.log").read_text().splitlines()) == 3


def test_a_disk_that_refuses_leaves_the_aliases_as_they_were(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_alias(model, "champion", 1)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        set_alias(model, "champion", 2)
    assert read_aliases(model) == {"champion": 1}
    assert not [path for path in model.iterdir() if path.name.startswith(".")]


def test_a_user_without_a_name_is_told_by_number(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nameless)
    set_alias(model, "champion", 1)
    assert read_history(model)[0].who.startswith("uid ")


def test_two_processes_that_move_at_once_lose_nothing(model: Path) -> None:
    count = 40
    movers = [
        subprocess.Popen([sys.executable, "-c", MOVER, str(model), name, str(count)], cwd=REPOSITORY_ROOT)
        for name in ("first-", "second-")
    ]
    assert [mover.wait(60) for mover in movers] == [0, 0]
    found = read_aliases(model)
    wanted = {f"{name}-{number}" for name in ("first", "second") for number in range(count)}
    assert wanted | {"first-", "second-", "shared"} == set(found)
    # each line starts where the one before it ended: no move was made behind another's back
    at: dict[str, int | None] = {}
    for line in (model / "aliases.log").read_text().splitlines():
        move = json.loads(line)
        assert move["before"] == at.get(move["alias"])
        at[move["alias"]] = move["after"]
    assert at == found
