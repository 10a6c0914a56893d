"""Registration: whole or not at all, never over another version, whatever kills or races it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.core.errors import AlreadyExists, InvalidRequest, NotFound, RegistryError
from server.core.versions import VersionKey
from server.registry.aliases import read_aliases
from server.registry.durable import locked
from server.registry.golden import load_golden, save_golden
from server.registry.manifest import GoldenRef, ManifestFields
from server.registry.register import GoldenSource, register
from server.registry.source import LocalDirectory

REPOSITORY_ROOT = Path(__file__).parents[2]
FIELDS = ManifestFields(author="ana", metrics={"auc": 0.9}, seeds={"numpy": 3})

REGISTRAR = """
import sys
from pathlib import Path
from server.registry.manifest import ManifestFields
from server.registry.register import register
root, source, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for _ in range(count):
    register(root, "demo", {"model.onnx": source, "deep/weights.bin": source}, ManifestFields(), aliases=["champion"])
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "trained.onnx"
    path.write_bytes(b"model")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def check_whole(root: Path) -> list[int]:
    """Every visible version verifies; the versions that are there."""
    source = LocalDirectory(root, 0.0)
    model = source.scan().get("demo")
    if model is None:
        return []
    assert model.problem is None
    for found in model.versions.values():
        assert found.manifest is not None
        source.verify(found)
    assert set(model.aliases.values()) <= set(model.versions)
    return list(model.versions)


def test_a_version_holds_what_was_given(root: Path, model_file: Path, tmp_path: Path) -> None:
    golden, settings = tmp_path / "golden-of-run.npz", tmp_path / "settings.toml"
    save_golden(golden, {"x": np.ones((1, 2), np.float32)}, {"y": np.zeros(1)})
    settings.write_text("max_batch = 4")
    key = register(
        root,
        "demo",
        {"model.onnx": model_file, "vocab/words.txt": model_file},
        FIELDS,
        golden=GoldenSource(golden, 1e-3, 0.5),
        aliases=("champion", "blue"),
        settings_file=settings,
    )
    assert key == VersionKey("demo", 1)
    model = LocalDirectory(root, 0.0).scan()["demo"]
    manifest = model.versions[1].manifest
    assert manifest is not None
    assert (manifest.author, manifest.metrics, manifest.seeds) == ("ana", {"auc": 0.9}, {"numpy": 3})
    assert manifest.golden == GoldenRef(file="golden.npz", rtol=1e-3, atol=0.5)
    assert list(manifest.files) == ["golden.npz", "model.onnx", "vocab/words.txt"]
    assert model.aliases == {"champion": 1, "blue": 1}
    assert model.settings is not None
    assert model.settings.max_batch == 4
    assert list(load_golden(root / "demo" / "1" / "golden.npz").outputs) == ["y"]
    assert (root / "demo" / "1" / "vocab" / "words.txt").read_bytes() == b"model"
    assert model_file.exists()
    assert check_whole(root) == [1]
    assert sorted(path.name for path in (root / "demo").iterdir()) == ["1", "aliases.json", "aliases.log", "model.toml"]


def test_numbers_are_chosen_or_given(root: Path, model_file: Path) -> None:
    files = {"model.onnx": model_file}
    assert register(root, "demo", files, FIELDS).version == 1
    assert register(root, "demo", files, FIELDS, version=7).version == 7
    assert register(root, "demo", files, FIELDS).version == 8
    assert register(root, "demo", files, FIELDS, version=3).version == 3


def test_a_number_that_an_alias_still_names_is_not_used_again(root: Path, model_file: Path) -> None:
    files = {"model.onnx": model_file}
    register(root, "demo", files, FIELDS)
    register(root, "demo", files, FIELDS, aliases=["champion"])
    shutil.rmtree(root / "demo" / "2")
    assert register(root, "demo", files, FIELDS).version == 3
    assert read_aliases(root / "demo") == {"champion": 2}


@pytest.mark.parametrize("kind", ["version", "empty folder", "file", "broken link"])
def test_nothing_that_is_there_is_overwritten(root: Path, model_file: Path, kind: str) -> None:
    place = root / "demo" / "1"
    if kind == "version":
        register(root, "demo", {"model.onnx": model_file}, FIELDS)
    else:
        place.parent.mkdir(parents=True)
        if kind == "empty folder":
            place.mkdir()
        elif kind == "file":
            place.touch()
        else:
            place.symlink_to("nowhere")
    before = os.lstat(place)
    with pytest.raises(AlreadyExists, match="demo:1 exists already"):
        register(root, "demo", {"model.onnx": model_file}, FIELDS, version=1)
    assert os.lstat(place) == before
    assert register(root, "demo", {"model.onnx": model_file}, FIELDS).version == 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"name": "../demo"}, InvalidRequest, "path traversal"),
        ({"aliases": ["3"]}, InvalidRequest, "alias '3'"),
        ({"version": 0}, InvalidRequest, "version 0"),
        ({"version": 10**18}, InvalidRequest, "at most 18 digits"),
        ({"files": {}}, InvalidRequest, "at least one file"),
        ({"files": {"../x": None}}, InvalidRequest, "leads upwards"),
        ({"files": {"manifest.json": None}}, InvalidRequest, "the manifest itself"),
        ({"files": {"model.onnx": Path("missing")}}, InvalidRequest, "missing is not a file"),
        ({"files": {"golden.npz": None}, "golden": "good"}, InvalidRequest, "both a file and the golden examples"),
        ({"golden": "bad"}, RegistryError, "not golden examples"),
        ({"settings_file": b"max_bach = 3"}, RegistryError, "max_bach: unknown key"),
    ],
)
def test_what_is_refused_writes_nothing(
    root: Path, tmp_path: Path, model_file: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {"name": "demo", "files": {"model.onnx": None}, **change}
    arguments["files"] = {name: path or model_file for name, path in arguments["files"].items()}
    if "golden" in arguments:
        path = tmp_path / "golden.npz"
        if arguments["golden"] == "good":
            save_golden(path, {}, {"y": np.ones(1)})
        else:
            path.write_bytes(b"no")
        arguments["golden"] = GoldenSource(path)
    if "settings_file" in arguments:
        (tmp_path / "model.toml").write_bytes(arguments["settings_file"])
        arguments["settings_file"] = tmp_path / "model.toml"
    with pytest.raises(error, match=text):
        register(root, fields=FIELDS, **arguments)
    assert not root.exists()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"fields": ManifestFields(parent=9)}, NotFound, "parent version 9 of demo:2 is not in the repository"),
        ({"fields": ManifestFields(parent=5), "version": 5}, InvalidRequest, "demo:5: .*its own parent"),
        ({"golden_atol": -1.0}, InvalidRequest, "demo:2: atol: "),
    ],
)
def test_what_is_refused_at_the_last_step_leaves_nothing(
    root: Path, model_file: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    register(root, "demo", {"model.onnx": model_file}, FIELDS)
    if "golden_atol" in change:
        save_golden(tmp_path / "golden.npz", {}, {"y": np.ones(1)})
        change = {"golden": GoldenSource(tmp_path / "golden.npz", 0.0, change["golden_atol"])}
    with pytest.raises(error, match=text):
        register(root, "demo", {"model.onnx": model_file}, **{"fields": FIELDS, **change})
    assert [path.name for path in (root / "demo").iterdir()] == ["1"]


def test_aliases_that_cannot_be_read_are_refused_before_the_version_is_there(root: Path, model_file: Path) -> None:
    (root / "demo").mkdir(parents=True)
    (root / "demo" / "aliases.json").write_text("{")
    with pytest.raises(RegistryError, match=r"^aliases\.json: "):
        register(root, "demo", {"model.onnx": model_file}, ManifestFields(), version=1, aliases=["champion"])
    assert [path.name for path in (root / "demo").iterdir()] == ["aliases.json"]


def test_a_model_folder_that_leads_out_is_refused(root: Path, model_file: Path, tmp_path: Path) -> None:
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "demo").symlink_to(tmp_path / "outside")
    with pytest.raises(RegistryError, match="leads out of the repository"):
        register(root, "demo", {"model.onnx": model_file}, FIELDS)
    assert not list((tmp_path / "outside").iterdir())


def test_a_disk_that_fails_leaves_nothing(root: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(root, "demo", {"model.onnx": model_file}, FIELDS)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        register(root, "demo", {"model.onnx": model_file}, FIELDS)
    assert [path.name for path in (root / "demo").iterdir()] == ["1"]


def test_unchanged_settings_keep_their_file(root: Path, model_file: Path, tmp_path: Path) -> None:
    settings = tmp_path / "model.toml"
    settings.write_text("max_batch = 4")
    register(root, "demo", {"model.onnx": model_file}, FIELDS, settings_file=settings)
    before = (root / "demo" / "model.toml").stat()
    register(root, "demo", {"model.onnx": model_file}, FIELDS, settings_file=settings)
    assert (root / "demo" / "model.toml").stat().st_ino == before.st_ino
    settings.write_text("max_batch = 5")
    register(root, "demo", {"model.onnx": model_file}, FIELDS, settings_file=settings)
    assert (root / "demo" / "model.toml").read_text() == "max_batch = 5"


def test_only_what_nobody_alive_owns_is_removed(root: Path, model_file: Path) -> None:
    abandoned, owned = root / "demo" / ".incoming-dead", root / "demo" / ".incoming-alive"
    for folder in (abandoned, owned):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
    torn = [root / "demo" / name for name in (".aliases.json-12ab", ".model.toml-34cd")]
    for path in torn:
        path.write_text("{")
    (root / "demo" / ".gitignore").write_text("*")
    with locked(owned):
        register(root, "demo", {"model.onnx": model_file}, FIELDS)
        assert (owned / "model.onnx").exists()
        assert not any(path.exists() for path in (abandoned, *torn))
    assert check_whole(root) == [1]
    register(root, "demo", {"model.onnx": model_file}, FIELDS)
    assert not owned.exists()
    assert (root / "demo" / ".gitignore").exists()


def test_processes_that_register_at_once_never_collide(root: Path, model_file: Path) -> None:
    count = 15
    model_file.write_bytes(os.urandom(200_000))
    command = [sys.executable, "-c", REGISTRAR, str(root), str(model_file), str(count)]
    registrars = [subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [registrar.wait(60) for registrar in registrars] == [0, 0]
    assert check_whole(root) == list(range(1, 2 * count + 1))
    assert not list((root / "demo").glob(".*"))


def test_a_kill_at_any_instant_leaves_the_registry_whole(root: Path, model_file: Path) -> None:
    # two files of 25 MB each, so that copying, forcing to disk and naming all take long enough to be hit
    model_file.write_bytes(os.urandom(25_000_000))
    chance = random.Random(7)
    ends_s = time.monotonic() + 15
    kills, abandoned, newest = 0, 0, 0
    while kills < 25 and time.monotonic() < ends_s:
        command = [sys.executable, "-c", REGISTRAR, str(root), str(model_file), "1000"]
        with subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE) as registrar:
            assert registrar.stdout is not None
            assert registrar.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.3))
            registrar.send_signal(signal.SIGKILL)
        kills += 1
        versions = check_whole(root)
        assert max(versions, default=newest) >= newest
        newest = max(versions, default=newest)
        abandoned += len(list((root / "demo").glob(".incoming-*")))
        for version in versions[:-1]:
            shutil.rmtree(root / "demo" / str(version))
            (root / "demo" / "aliases.json").unlink(missing_ok=True)
    assert kills >= 3
    assert abandoned > 0  # else no kill hit a registration
    key = register(root, "demo", {"model.onnx": model_file}, FIELDS, aliases=["champion"])
    assert key.version > newest
    assert key.version in check_whole(root)
    assert not list((root / "demo").glob(".incoming-*"))
