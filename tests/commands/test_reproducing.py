"""`podium reproduce`: every verdict with a real recipe in a real commit, and every cause by its name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.registry.golden import save_golden
from server.registry.manifest import Manifest, manifest_bytes, parse_manifest
from tests.commands.shell import Shell

RECIPE = """
import argparse, hashlib, json, os
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--seed", type=int, required=True)
given = parser.parse_args()
data = Path(os.environ["RECIPE_DATA"]).read_bytes()
# what another machine or release would do to the numbers
drift = float(os.environ.get("RECIPE_DRIFT", 0))
weight = 1.0 + given.seed + drift
if os.environ.get("RECIPE_FAILS"):
    raise SystemExit("no memory left")
graph = helper.make_graph(
    [helper.make_node("Mul", ["x", "w"], ["y"])],
    "tiny",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
    [helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
if not os.environ.get("RECIPE_FORGETS"):
    (given.out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
(given.out / "words.txt").write_text("a b")
if os.environ.get("RECIPE_WITH_GOLDEN"):
    import shutil
    shutil.copyfile(os.environ["RECIPE_WITH_GOLDEN"], given.out / "golden.npz")
facts = {
    "data": {"source": "a file", "digest": hashlib.sha256(data).hexdigest(), "rows": len(data)},
    "seeds": {"numpy": given.seed},
    "hyperparameters": {"weight": 1.0 + given.seed},
    "metrics": {"auc": 0.75 + drift / 10},
    "recipe": {"command": "python -m recipe", "arguments": ["--seed", str(given.seed)]},
}
(given.out / "facts.json").write_text(json.dumps(facts))
print("made", given.out)
"""


class Workshop:
    """A repository with one version, made by the recipe that is committed here."""

    def __init__(self, podium: Shell, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.podium = podium
        self.folder = folder
        self.patch = patch
        patch.setenv("RECIPE_DATA", str(folder / "data.csv"))
        patch.setenv("RECIPE_WITH_GOLDEN", str(folder / "golden.npz"))
        (folder / "data.csv").write_text("1,2,3")
        (folder / "recipe.py").write_text(RECIPE)
        (folder / "constraints.txt").write_text("numpy==2")
        (folder / ".gitignore").write_text("*\n!recipe.py\n!constraints.txt\n!.gitignore\n")
        for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "recipe")):
            subprocess.run(
                ["git", "-c", "user.name=ana", "-c", "user.email=a@b.c", *command], cwd=folder, check=True, timeout=60
            )
        inputs = np.arange(4, dtype=np.float32)[:, np.newaxis]
        save_golden(folder / "golden.npz", {"x": inputs}, {"y": inputs * np.float32(4)})
        (folder / "first").mkdir()
        made = ["python", "-m", "recipe", "--seed", "3", "--out", "first"]
        subprocess.run([sys.executable, *made[1:]], cwd=folder, check=True, timeout=60, capture_output=True)
        options = ("--file", "words.txt=first/words.txt", "--golden", "golden.npz", "--manifest-fields", "first/facts.json")
        podium.output("register", "--name", "demo", "--model", "first/model.onnx", *options)

    @property
    def manifest(self) -> Manifest:
        return parse_manifest((self.folder / "models/demo/1/manifest.json").read_bytes())

    def rewrite(self, **changes: Any) -> None:
        """The manifest with other words: what a person with an editor, or another machine, would have left."""
        changed = Manifest.model_validate(json.loads(manifest_bytes(self.manifest)) | changes)
        (self.folder / "models/demo/1/manifest.json").write_bytes(manifest_bytes(changed))

    def reproduce(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        code, out, err = self.podium("reproduce", "demo", "--json", *arguments)
        return code, json.loads(out), err


@pytest.fixture
def workshop(podium: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(podium, tmp_path, monkeypatch)


def test_identical(workshop: Workshop) -> None:
    before = sorted(path for path in workshop.folder.rglob("*") if ".git" not in path.parts)
    code, done, err = workshop.reproduce()
    assert (code, done["verdict"], done["reasons"], done["environment"]) == (0, "identical", [], [])
    assert done["files"] == {"golden.npz": "same", "model.onnx": "same", "words.txt": "same"}
    assert done["command"][1:5] == ["-m", "recipe", "--seed", "3"]
    # what is run is said before it runs, and nothing is left of it
    assert " -m recipe --seed 3 --out " in err
    assert f"at commit {workshop.manifest.code.commit if workshop.manifest.code else ''}" in err
    assert sorted(path for path in workshop.folder.rglob("*") if ".git" not in path.parts) == before
    assert not Path(done["command"][-1]).exists()
    text = workshop.podium("reproduce", "demo:1")[1]
    assert text.splitlines()[:2] == ["version      demo:1", "verdict      IDENTICAL"]
    assert "file         model.onnx  same" in text


def test_uncommitted_changes_do_not_reach_the_recipe(workshop: Workshop) -> None:
    (workshop.folder / "recipe.py").write_text("raise SystemExit(1)")
    assert workshop.reproduce()[1]["verdict"] == "identical"


def test_kept_files_are_those_of_the_version(workshop: Workshop) -> None:
    code, done, _ = workshop.reproduce("--keep", "again")
    assert (code, done["kept"]) == (0, "again")
    for name in ("model.onnx", "golden.npz", "words.txt"):
        assert Path("again", name).read_bytes() == Path("models/demo/1", name).read_bytes()
    assert "again is not empty" in workshop.podium.refusal("reproduce", "demo", "--keep", "again")


def test_equivalent(workshop: Workshop) -> None:
    workshop.patch.setenv("RECIPE_DRIFT", "1e-6")
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"], done["reasons"]) == (10, "equivalent", ["model.onnx: other bytes"])


def test_names_of_classes_beside_the_versions_are_not_needed(workshop: Workshop) -> None:
    Path("models/demo/model.toml").write_text('instances = 2\n[[outputs]]\nname = "y"\nlabels = "words.txt"\n')
    Path("models/demo/words.txt").write_text("late\n")
    workshop.patch.setenv("RECIPE_DRIFT", "1e-6")
    assert workshop.reproduce()[0] == 10


def test_a_baseline_that_registration_made_is_not_asked_of_the_recipe(workshop: Workshop) -> None:
    np.savez("rows.npz", x=np.arange(4))
    options = ("--file", "words.txt=first/words.txt", "--golden", "golden.npz", "--manifest-fields", "first/facts.json")
    rows = ("--baseline-rows", "rows.npz")
    workshop.podium.output("register", "--name", "demo", "--model", "first/model.onnx", *options, *rows)
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"], done["version"]) == (0, "identical", 2)
    assert done["files"]["baseline.json"] == "derived"
    assert done["notes"] == ["made at registration, and not by the recipe, so not compared: baseline.json"]
    # the answers of other bytes are proven without it
    workshop.patch.setenv("RECIPE_DRIFT", "1e-6")
    assert workshop.reproduce()[0] == 10


def test_different_names_the_worst_answer_and_the_package(workshop: Workshop) -> None:
    environment = workshop.manifest.environment
    assert environment is not None
    packages = environment.packages | {"numpy": "1.0.0", "gone": "7"}
    workshop.rewrite(environment=environment.model_dump() | {"packages": packages, "python": "3.9.1"})
    workshop.patch.setenv("RECIPE_DRIFT", "0.001")
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"]) == (11, "different")
    assert done["reasons"][0] == "model.onnx: other bytes"
    assert "golden examples: output 'y' differs from its golden example" in done["reasons"][1]
    assert len(done["reasons"]) == 2
    named = {text.split()[0]: text for text in done["environment"]}
    assert named["numpy"] == f"numpy 1.0.0 recorded, {np.__version__} installed"
    assert named["gone"] == "gone 7 recorded, not installed"
    assert named["python"].startswith("python 3.9.1 recorded, ")


def test_metrics_have_a_tolerance(workshop: Workshop) -> None:
    workshop.rewrite(metrics={"auc": 0.74})
    code, done, _ = workshop.reproduce()
    assert (code, done["reasons"]) == (11, ["metric auc: recorded 0.74, rebuilt 0.75"])
    assert workshop.reproduce("--tolerance", "0.01")[0] == 0


def test_without_golden_examples_other_bytes_are_different(workshop: Workshop) -> None:
    workshop.rewrite(golden=None)
    workshop.patch.setenv("RECIPE_DRIFT", "1e-6")
    code, done, _ = workshop.reproduce()
    assert (code, done["reasons"][1]) == (11, "golden examples: there are none to compare answers by")


def test_a_changed_seed_is_named(workshop: Workshop) -> None:
    workshop.rewrite(seeds={"numpy": 4})
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"], done["reasons"]) == (12, "not reproducible", ["seed numpy: recorded 4, rebuilt 3"])


def test_another_argument_is_named_by_what_it_changes(workshop: Workshop) -> None:
    workshop.rewrite(recipe={"command": "python -m recipe", "arguments": ["--seed", "5"]})
    code, done, _ = workshop.reproduce()
    assert code == 12
    assert done["reasons"][:2] == ["seed numpy: recorded 3, rebuilt 5", "hyperparameter weight: recorded 4.0, rebuilt 6.0"]


def test_a_changed_data_file_is_named(workshop: Workshop) -> None:
    (workshop.folder / "data.csv").write_text("1,2,4")
    code, done, _ = workshop.reproduce()
    assert code == 12
    assert len(done["reasons"]) == 1
    assert done["reasons"][0].startswith("data, digest: recorded ")


def test_changed_constraints_are_named(workshop: Workshop) -> None:
    environment = workshop.manifest.environment
    assert environment is not None
    workshop.rewrite(environment=environment.model_dump() | {"lock_digest": "a" * 64})
    code, done, _ = workshop.reproduce()
    assert code == 0
    assert done["environment"][0].startswith(f"lock digest {'a' * 64} recorded, ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe": None}, "missing: recipe and its arguments"),
        ({"code": None, "seeds": {}}, "missing: code commit"),
        ({"code": {"commit": "c" * 40, "dirty": True}}, f"missing: uncommitted changes on top of commit {'c' * 40}"),
        ({"code": {"commit": "c" * 40, "dirty": False}}, f"code: commit {'c' * 40} is not in the git repository at ."),
        ({"recipe": {"command": "no-such-program", "arguments": []}}, "recipe: no-such-program cannot be started"),
        ({"recipe": {"command": "'", "arguments": []}}, 'recipe: "\'": No closing quotation'),
    ],
)
def test_what_is_missing_is_named(workshop: Workshop, changes: dict[str, Any], reason: str) -> None:
    workshop.rewrite(**changes)
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"]) == (12, "not reproducible")
    assert done["reasons"][0].startswith(reason)
    assert done["files"] == {}


def test_a_version_without_manifest_lacks_everything(podium: Shell) -> None:
    Path("models/demo/1").mkdir(parents=True)
    Path("models/demo/1/model.onnx").write_bytes(b"model")
    code, out, _ = podium("reproduce", "demo:1")
    assert code == 12
    assert "missing: everything: the version has no manifest" in out
    Path("models/demo/1/manifest.json").write_text("{")
    assert "manifest.json: " in podium("reproduce", "demo:1")[1]
    assert "model 'demo' has no version 9" in podium.refusal("reproduce", "demo:9")


def test_a_recipe_that_fails_is_quoted(workshop: Workshop) -> None:
    workshop.patch.setenv("RECIPE_FAILS", "1")
    code, done, _ = workshop.reproduce()
    assert code == 12
    assert done["reasons"] == ["recipe: ended with status 1; the end of its output:\nno memory left"]


def test_a_recipe_that_forgets_a_file_is_different(workshop: Workshop) -> None:
    workshop.patch.setenv("RECIPE_FORGETS", "1")
    code, done, _ = workshop.reproduce()
    assert (code, done["reasons"]) == (11, ["model.onnx: the recipe did not write it"])


def test_a_damaged_version_can_be_made_again(workshop: Workshop) -> None:
    with Path("models/demo/1/model.onnx").open("r+b") as file:
        file.write(b"!")
    code, done, _ = workshop.reproduce()
    assert (code, done["verdict"]) == (0, "identical")
    assert done["notes"][0].startswith("the version as it is stored: demo:1: model.onnx has sha256")


@pytest.mark.parametrize("kind", ["gone", "other", "settings"])
def test_golden_examples_that_cannot_be_used_prove_nothing(workshop: Workshop, kind: str) -> None:
    workshop.patch.setenv("RECIPE_DRIFT", "1e-6")
    golden = Path("models/demo/1/golden.npz")
    if kind == "gone":
        golden.unlink()
    elif kind == "other":
        data = golden.read_bytes()
        golden.write_bytes(data[:-1] + b"!")
    else:
        Path("models/demo/model.toml").write_text("max_bach = 1")
    code, done, _ = workshop.reproduce()
    assert code == 11
    texts = {
        "gone": "golden.npz is missing",
        "other": "golden.npz is not the one of the manifest",
        "settings": "model.toml is refused",
    }
    assert texts[kind] in done["reasons"][1]


@pytest.mark.parametrize("arguments", [("--tolerance", "-1"), ("--tolerance", "x"), ("--timeout-s", "inf")])
def test_wrong_usage(podium: Shell, arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        podium("reproduce", "demo", *arguments)
    assert ended.value.code == 2
    assert "must be a number >= 0" in capsys.readouterr().err
