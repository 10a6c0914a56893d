"""The commands: what they print, what they refuse, and that every refusal ends in exit code 1 and one line."""

import json
import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.commands import add_commands
from server.registry.golden import save_golden
from server.registry.manifest import parse_manifest


class Shell:
    """Runs commands in a folder of their own, as `podium` would."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        parser = ArgumentParser(prog="podium")
        add_commands(parser.add_subparsers(required=True))
        parsed = parser.parse_args(arguments)
        code = parsed.run(parsed)
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def output(self, *arguments: str) -> str:
        code, out, err = self(*arguments)
        assert (code, err) == (0, "")
        return out

    def refusal(self, *arguments: str) -> str:
        code, out, err = self(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("podium: ")
        assert err.count("\n") == 1
        return err.strip().removeprefix("podium: ")


@pytest.fixture
def podium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("trained.onnx").write_bytes(b"model" * 1000)
    return Shell(capsys)


REGISTER = ("register", "--name", "demo", "--model", "trained.onnx")


def test_register_writes_everything_it_was_given(podium: Shell) -> None:
    Path("words.txt").write_text("a b")
    Path("constraints.txt").write_text("numpy==2")
    Path("model.toml").write_text("max_batch = 4")
    Path("fields.json").write_text('{"author": "ana", "seeds": {"numpy": 3}, "metrics": {"auc": 0.912345}}')
    save_golden(Path("run.npz"), {"x": np.ones(2)}, {"y": np.ones(2)})
    assert podium.output(*REGISTER, "--alias", "champion") == "registered demo:1 @champion\n"
    options = (
        "--manifest-fields",
        "fields.json",
        "--golden",
        "run.npz",
        "--golden-rtol",
        "0.5",
        "--file",
        "etc/words.txt=words.txt",
    )
    more = ("--settings", "model.toml", "--parent", "@champion", "--version", "4", "--alias", "challenger", "--alias", "blue")
    assert podium.output(*REGISTER, *options, *more) == "registered demo:4 @challenger @blue\n"
    manifest = parse_manifest(Path("models/demo/4/manifest.json").read_bytes())
    assert sorted(manifest.files) == ["etc/words.txt", "golden.npz", "model.onnx"]
    assert (manifest.author, manifest.seeds, manifest.parent) == ("ana", {"numpy": 3}, 1)
    assert manifest.golden is not None
    assert (manifest.golden.rtol, manifest.golden.atol) == (0.5, 1e-6)
    assert manifest.environment is not None
    assert manifest.environment.lock_digest is not None
    assert manifest.code is None
    assert Path("models/demo/model.toml").read_text() == "max_batch = 4"


def test_what_the_fields_state_is_not_collected(podium: Shell) -> None:
    stated: dict[str, Any] = {
        "code": {"commit": "c0ffee", "dirty": False},
        "environment": {"python": "3.12", "platform": "elsewhere"},
    }
    Path("fields.json").write_text(json.dumps(stated))
    podium.output(*REGISTER, "--manifest-fields", "fields.json")
    manifest = parse_manifest(Path("models/demo/1/manifest.json").read_bytes())
    assert manifest.code is not None
    assert manifest.environment is not None
    assert (manifest.code.commit, manifest.environment.platform) == ("c0ffee", "elsewhere")


def test_a_model_for_the_fake_backend_is_registered_under_its_name(podium: Shell) -> None:
    Path("any.json").write_text("{}")
    podium.output("register", "--name", "demo", "--model", "any.json", "--repository", "elsewhere")
    assert Path("elsewhere/demo/1/fake.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "trained.bin"), "trained.bin is no model file: its name must end in .onnx or .pt2 or .json"),
        (("--model", "missing.onnx"), "missing.onnx is not a file"),
        (("--file", "model.onnx=trained.onnx"), "file 'model.onnx' is given twice"),
        (("--name", "../demo"), "path traversal"),
        (("--alias", "7"), "alias '7'"),
        (("--version", "1"), "demo:1 exists already"),
        (("--parent", "9"), "model 'demo' has no version 9"),
        (("--parent", "@blue"), "model 'demo' has no alias 'blue'"),
        (("--parent", "1", "--name", "other"), "there is no model 'other' in the repository; it has: demo"),
        (("--manifest-fields", "trained.onnx"), "manifest fields: "),
        (("--manifest-fields", "missing.json"), "missing.json: No such file or directory"),
        (("--golden", "trained.onnx"), "not golden examples"),
        (("--lock", "missing.txt"), "missing.txt: No such file or directory"),
    ],
)
def test_register_refuses(podium: Shell, arguments: tuple[str, ...], text: str) -> None:
    podium.output(*REGISTER)
    assert text in podium.refusal(*REGISTER, *arguments)
    assert [path.name for path in Path("models").iterdir()] == ["demo"]
    assert [path.name for path in Path("models/demo").iterdir()] == ["1"]


@pytest.mark.parametrize("argument", ["words.txt", "=a", "a=", ""])
def test_a_file_argument_needs_both_sides(podium: Shell, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        podium(*REGISTER, "--file", argument)
    assert "must be REL=PATH" in capsys.readouterr().err


def test_alias_moves_and_removes(podium: Shell) -> None:
    podium.output(*REGISTER)
    podium.output(*REGISTER)
    assert podium.output("alias", "demo", "champion", "1") == "demo@champion is version 1 (new)\n"
    assert podium.output("alias", "demo", "challenger", "2") == "demo@challenger is version 2 (new)\n"
    assert podium.output("alias", "demo", "champion", "@challenger") == "demo@champion is version 2 (was version 1)\n"
    assert podium.output("alias", "demo", "challenger", "--remove") == "demo@challenger removed (was version 2)\n"
    assert json.loads(Path("models/demo/aliases.json").read_text()) == {"champion": 2}


def test_alias_refuses(podium: Shell) -> None:
    podium.output(*REGISTER)
    podium.output(*REGISTER)
    os.truncate("models/demo/2/model.onnx", 3)
    for arguments, text in {
        ("demo", "champion", "9"): "model 'demo' has no version 9; it has: 1, 2",
        ("demo", "champion", "x.y"): "'x.y' is neither a version",
        ("demo", "3", "1"): "alias '3'",
        ("demo", "champion", "--remove"): "model 'demo' has no alias 'champion'",
        ("other", "champion", "1"): "there is no model 'other'",
        ("other", "champion", "--remove"): "there is no model 'other'",
        ("../demo", "champion", "--remove"): "path traversal",
        ("demo", "champion", "2"): "cannot be moved to demo:2, which would not load: model.onnx has 3 bytes",
    }.items():
        assert text in podium.refusal("alias", *arguments)
    assert not Path("models/demo/aliases.json").exists()


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
    assert header.split() == ["MODEL", "VERSION", "ALIASES", "STATE", "SIZE", "CREATED", "METRICS"]
    assert cells[0] == ["bare", "1", "-", "ok", "2.9", "MiB", "1970-01-01", "00:00", "-"]
    assert cells[1][:2] == ["broken", "-"]
    assert "model.toml: max_bach: unknown key" in lines[2]
    assert cells[2][:4] == ["demo", "1", "blue,champion", "ok"]
    assert lines[3].endswith("auc=0.9123 loss=2 rmse=1.235e+04 +1")
    assert "model.onnx has 3 bytes, its manifest says 5000" in lines[4]
    assert cells[4] == ["empty", "-", "-", "no", "versions", "-", "-", "-"]
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
    assert podium.output("models").split() == ["MODEL", "VERSION", "ALIASES", "STATE", "SIZE", "CREATED", "METRICS"]
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
