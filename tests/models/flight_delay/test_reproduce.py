"""The flight recipe as `podium reproduce` runs it: from a commit, in a process of its own, with the data that is installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.flight_delay import data
from models.flight_delay.facts import ROOT

# loads a year of flights and exports with torch, three times in all
pytestmark = pytest.mark.timeout(600)

# the variant told by what happened lately: what it is made from and of is more than the other's
SMALL = ("--inputs", "history", "--epochs", "1", "--limit-rows", "1500")


def run(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project as it is now, committed, with a small version of the model registered from it."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("server", "models", "protos", "feature_client"):
        # not the versions that somebody has registered here
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "[0-9]*", "*.json", "*.log"))
    shutil.copyfile(ROOT / "constraints.txt", folder / "constraints.txt")
    (folder / ".gitignore").write_text("__pycache__\nrepository\nshadow\n")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "recipe")):
        subprocess.run(["git", "-c", "user.name=ana", "-c", "user.email=a@b.c", *command], cwd=folder, check=True, timeout=60)
    made = run(folder, "-m", "models.flight_delay.build", *SMALL, "--register", "--repository", "repository")
    assert made.returncode == 0, made.stderr
    return folder


def reproduce(code: Path, **variables: str) -> tuple[int, dict[str, Any]]:
    done = run(code, "-m", "server", "reproduce", "flight_delay", "--repository", "repository", "--json", **variables)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_build_is_the_same_again_bit_for_bit(code: Path) -> None:
    status, done = reproduce(code)
    assert (status, done["verdict"], done["reasons"], done["environment"]) == (0, "identical", [], [])
    assert set(done["files"].values()) == {"same"}
    assert {"model.onnx", "golden.npz", "features.json", "features.npz"} <= set(done["files"])


def test_another_data_file_and_another_seed_are_named(code: Path) -> None:
    """Another release of the data package, found before the installed one, and a command that somebody has edited."""
    shadow = code / "shadow" / data.PACKAGE
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()
    shutil.copytree(data.folder(), shadow / "data")
    planes = shadow / "data" / "planes.csv"
    planes.write_bytes(planes.read_bytes().replace(b",2004,", b",1904,"))
    path = code / "repository" / "flight_delay" / "1" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    arguments = manifest["recipe"]["arguments"]
    arguments[arguments.index("--seed") + 1] = "14"
    path.write_text(json.dumps(manifest))
    status, done = reproduce(code, PYTHONPATH=str(shadow.parent))
    assert (status, done["verdict"]) == (12, "not reproducible")
    named = [reason.split(": recorded")[0] for reason in done["reasons"]]
    assert named[:2] == ["data, digest", "data, sha256 of planes.csv"]
    assert "data, sha256 of weather.csv" not in named
    assert "seed torch: recorded 13, rebuilt 14" in done["reasons"]
    assert "model.onnx: other bytes" in done["reasons"]
