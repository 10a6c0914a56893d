"""What `podium models` and `podium lineage` say."""

import json
import os
from pathlib import Path

import pytest

from tests.commands.shell import REGISTER, Shell

HEADER = ["MODEL", "VERSION", "ALIASES", "STATUS", "SINCE", "BY", "STATE", "SIZE", "CREATED", "METRICS"]


def test_models_is_an_aligned_table(podium: Shell) -> None:
    Path("fields.json").write_text('{"metrics": {"auc": 0.912345, "loss": 2, "rmse": 12345.678, "bias": 0.1}}')
    podium.output(*REGISTER, "--manifest-fields", "fields.json", "--alias", "champion", "--alias", "blue")
    podium.output(*REGISTER)
    os.truncate("models/demo/2/model.onnx", 3)
    Path("models/bare/1").mkdir(parents=True)
    Path("models/bare/1/model.onnx").write_bytes(b"m" * 3_000_000)
    os.utime("models/bare/1/model.onnx", (0, 0))
    os.utime("models/bare/1", (0, 0))
    Path("models/broken").mkdir()
    Path("models/broken/model.toml").write_text("max_bach = 1")
    Path("models/empty").mkdir()
    Path("models/empty/model.toml").write_text("")
    lines = podium.output("models").splitlines()
    header, cells = lines[0], [line.split() for line in lines[1:]]
    assert header.split() == HEADER
    assert cells[0] == ["bare", "1", "-", "registered", "-", "-", "ok", "2.9", "MiB", "1970-01-01", "00:00", "-"]
    assert cells[1][:2] == ["broken", "-"]
    assert "model.toml: max_bach: unknown key" in lines[2]
    assert cells[2][:4] == ["demo", "1", "blue,champion", "champion"]
    assert lines[3].endswith("auc=0.9123 loss=2 rmse=1.235e+04 +1")
    assert "model.onnx has 3 bytes, its manifest says 5000" in lines[4]
    assert cells[4] == ["empty", "-", "-", "-", "-", "-", "no", "versions", "-", "-", "-"]
    column = header.index("STATE")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_models_names_aliases_of_versions_that_are_gone(podium: Shell) -> None:
    podium.output(*REGISTER)
    Path("models/demo/aliases.json").write_text('{"champion": 9}')
    assert "aliases of versions that are not there: champion" in podium.output("models")


def test_models_as_json(podium: Shell) -> None:
    podium.output(*REGISTER, "--alias", "champion")
    podium.output(*REGISTER)
    rows = json.loads(podium.output("models", "--json"))
    assert [(row["model"], row["version"], row["aliases"], row["problem"]) for row in rows] == [
        ("demo", 1, ["champion"], None),
        ("demo", 2, [], None),
    ]


def test_models_of_nothing(podium: Shell) -> None:
    assert "repository 'models' cannot be read: No such file or directory" in podium.refusal("models")
    Path("models").mkdir()
    assert podium.output("models").split() == HEADER
    assert json.loads(podium.output("models", "--json")) == []


def test_lineage_takes_every_reference(podium: Shell) -> None:
    podium.output(*REGISTER, "--alias", "champion")
    podium.output(*REGISTER, "--parent", "1", "--alias", "challenger")
    for reference, version in {"demo": 1, "demo@champion": 1, "demo@challenger": 2, "demo:2": 2}.items():
        found = json.loads(podium.output("lineage", reference, "--json"))
        assert (found["model"], found["version"], found["verified"]) == ("demo", version, None)
    text = podium.output("lineage", "demo:2")
    assert "yes, every file has the digest of its manifest" in text
    assert any(line.split() == ["parents", "1"] for line in text.splitlines())
    assert "code commit" in text


def test_lineage_says_when_a_version_was_champion(podium: Shell) -> None:
    podium.output(*REGISTER, "--alias", "champion")
    podium.output(*REGISTER, "--parent", "1")
    podium.output("alias", "demo", "champion", "2")
    podium.output("alias", "demo", "champion", "1")
    moves = json.loads(podium.output("lineage", "demo:2", "--json"))["moves"]
    assert [(move["alias"], move["before"], move["after"]) for move in moves] == [("champion", 1, 2), ("champion", 2, 1)]
    text = podium.output("lineage", "demo:1")
    assert "champion: nothing -> 1  by " in text
    assert text.index("champion: 1 -> 2  by ") < text.index("champion: 2 -> 1  by ")


def test_lineage_of_a_bare_file_gives_its_digest(podium: Shell) -> None:
    Path("models/demo/1").mkdir(parents=True)
    Path("models/demo/1/model.onnx").write_bytes(b"model")
    found = json.loads(podium.output("lineage", "demo", "--json"))
    assert found["files"]["model.onnx"]["bytes"] == 5
    assert found["missing"] == ["everything: the version has no manifest"]


def test_lineage_of_a_damaged_version_says_so_and_fails(podium: Shell) -> None:
    podium.output(*REGISTER)
    with Path("models/demo/1/model.onnx").open("r+b") as file:
        file.write(b"!")
    code, out, err = podium("lineage", "demo")
    assert (code, err) == (1, "")
    assert "NO: demo:1: model.onnx has sha256" in out
    Path("models/demo/1/manifest.json").write_text("{")
    code, out, err = podium("lineage", "demo")
    assert code == 1
    assert "NO: demo:1: manifest.json: " in out


def test_lineage_refuses_what_is_not_there(podium: Shell) -> None:
    podium.output(*REGISTER)
    assert podium.refusal("lineage", "other") == "there is no model 'other' in the repository; it has: demo"
    assert podium.refusal("lineage", "demo:9") == "model 'demo' has no version 9; it has: 1"
    assert podium.refusal("lineage", "demo@blue") == "model 'demo' has no alias 'blue'; it has: none"
    assert "must be an integer > 0" in podium.refusal("lineage", "demo:x")


@pytest.mark.parametrize(("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**30, "1.0 GiB")])
def test_sizes_are_shown_in_binary_units(podium: Shell, size_bytes: int, text: str) -> None:
    folder = Path("models/demo/1")
    folder.mkdir(parents=True)
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(size_bytes)
    assert f" {text} " in podium.output("models")


def test_the_status_of_a_version_follows_its_aliases(podium: Shell) -> None:
    for _ in range(3):
        podium.output(*REGISTER, "--author", "ana")
    podium.output("alias", "demo", "champion", "1")
    podium.output("alias", "demo", "champion", "2")
    podium.output("alias", "demo", "challenger", "3")
    rows = json.loads(podium.output("models", "--json"))
    assert [row["deployment"]["status"] for row in rows] == ["retired", "champion", "challenger"]
    moves = json.loads(podium.output("lineage", "demo:1", "--json"))["moves"]
    assert (rows[0]["deployment"]["since"], rows[0]["deployment"]["by"]) == (moves[-1]["at"], moves[-1]["who"])
    assert f"retired since {moves[-1]['at'][:19]}" in podium.output("lineage", "demo:1")
    podium.output("alias", "demo", "challenger", "--remove")
    rows = json.loads(podium.output("models", "--json"))
    assert [row["deployment"]["status"] for row in rows] == ["retired", "champion", "retired"]
    podium.output(*REGISTER, "--author", "ana")
    fourth = json.loads(podium.output("models", "--json"))[3]
    assert fourth["deployment"] == {"status": "registered", "since": fourth["created_at"], "by": "ana"}


def test_lineage_says_who_pruned_a_parent(podium: Shell) -> None:
    podium.output(*REGISTER)
    podium.output(*REGISTER, "--parent", "1")
    # what a crash between two removals may leave, or a hand
    Path("models/demo/pruned.log").write_text('{"at": "2025-03-01T10:00:00Z", "who": "ana", "version": 1, "parent": null}\n')
    assert "(pruned" not in podium.output("lineage", "demo:2")
    Path("models/demo/1").rename("models/gone")
    assert "1 (pruned 2025-03-01T10:00:00+00:00 by ana)" in podium.output("lineage", "demo:2")
