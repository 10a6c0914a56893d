"""Registering and naming: what is printed, what is refused, and that every refusal ends in exit code 1 and one line."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.registry.golden import save_golden
from server.registry.manifest import parse_manifest
from tests.commands.shell import REGISTER, Shell


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


def test_a_version_says_who_made_it_and_in_which_run(podium: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ben")
    monkeypatch.setenv("LOGNAME", "ben")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    Path("fields.json").write_text('{"author": "ana", "run_id": "run-7"}')
    podium.output(*REGISTER)
    Path(".gitconfig").write_text("[user]\nname = Cy Doe\n")
    podium.output(*REGISTER)
    podium.output(*REGISTER, "--manifest-fields", "fields.json")
    podium.output(*REGISTER, "--manifest-fields", "fields.json", "--author", "dan", "--run-id", "run-8")
    made = [parse_manifest(Path(f"models/demo/{version}/manifest.json").read_bytes()) for version in (1, 2, 3, 4)]
    assert [manifest.author for manifest in made] == ["ben", "Cy Doe", "ana", "dan"]
    assert [manifest.run_id for manifest in made[2:]] == ["run-7", "run-8"]
    generated = [manifest.run_id or "" for manifest in made[:2]]
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", run_id) for run_id in generated)
    assert generated[0] != generated[1]


def test_the_number_of_a_pruned_version_is_not_used_again(podium: Shell) -> None:
    for _ in range(2):
        podium.output(*REGISTER)
    podium.output("prune", "--keep", "1", "--apply")
    assert podium.refusal(*REGISTER, "--version", "1") == "demo:1 was there and has been pruned; a number is never used again"
    assert podium.output(*REGISTER) == "registered demo:3\n"
