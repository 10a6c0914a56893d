"""What travels to a machine without a network: chosen, cut up, put together, checked, and used beside what is there."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.gpu import packing, unattended, unpacking
from bench.gpu.packing import MANIFEST, batches, pack, requirements
from bench.gpu.unpacking import build_environment, join, make_venv, site_folders, unpack_debian

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("module", "examples"), [(packing, 3), (unpacking, 2)], ids=["packing", "unpacking"])
def test_examples(module: ModuleType, examples: int) -> None:
    done = doctest.testmod(module)
    assert (done.failed, done.attempted) == (0, examples)


def test_what_is_pinned_is_taken_along_but_what_is_there() -> None:
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    named = {line.partition("==")[0].lower() for line in pins.splitlines()}
    left_out = f"{packing.THERE} {packing.NOT_NEEDED}".split()
    taken = {line.partition("==")[0].lower() for line in requirements(pins, [], left_out)}
    # triton comes with a torch for GPUs only; every other word must leave something out
    assert {name for name in left_out if name.replace("-", "_") not in named and name not in named} == {"triton"}
    assert {"pydantic", "redis", "grpcio", "protobuf", "pytest", "nanobind", "scikit_build_core"} <= taken
    assert not {"torch", "numpy", "mypy"} & taken


def test_no_part_is_larger_than_a_folder_and_nothing_is_lost() -> None:
    sizes = {"empty": 0, "small": 3, "exact": 10, "large": 25}
    plan = batches(sizes, 10)
    assert all(sum(length for _, _, length in batch) <= 10 for batch in plan)
    for name, size in sizes.items():
        parts = [(offset, length) for batch in plan for part, offset, length in batch if part == name]
        assert [offset for offset, _ in parts] == list(range(0, max(size, 1), 10))
        assert sum(length for _, length in parts) == size


def packed(folder: Path) -> Path:
    files = folder / "files"
    (files / "wheels").mkdir(parents=True)
    (files / "prebuilt").mkdir()
    (files / "wheels" / "large.whl").write_bytes(bytes(range(256)) * 4)
    (files / "wheels" / "empty.whl").write_bytes(b"")
    (files / "prebuilt" / "client").write_bytes(b"#!/bin/sh\nexit 0\n")
    assert [path.name for path in pack(files, folder / "pack", 300)] == ["1", "2", "3", "4", "5"]
    return folder / "pack"


def test_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    assert join(packed(tmp_path), tmp_path / "out") == []
    for name in ("wheels/large.whl", "wheels/empty.whl", "prebuilt/client"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()
    assert os.access(tmp_path / "out" / "prebuilt" / "client", os.X_OK)


def test_what_did_not_come_along_is_told_and_the_rest_is_used(tmp_path: Path) -> None:
    pack_folder = packed(tmp_path)
    for path in (pack_folder / "3").iterdir():
        path.unlink()
    assert join(pack_folder, tmp_path / "out") == ["wheels/large.whl"]
    assert (tmp_path / "out" / "prebuilt" / "client").is_file()
    assert not (tmp_path / "out" / "wheels" / "large.whl").exists()


def test_what_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    pack_folder = packed(tmp_path)
    part = json.loads((pack_folder / "1" / MANIFEST).read_text())["wheels/large.whl"]["parts"][1]
    spoilt = bytearray((pack_folder / part).read_bytes())
    spoilt[7] ^= 1
    (pack_folder / part).write_bytes(bytes(spoilt))
    with pytest.raises(ValueError, match=r"large\.whl is not what was packed"):
        join(pack_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="nothing was packed"):
        join(tmp_path / "elsewhere", tmp_path / "out")


def test_a_package_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    unpack_debian(tmp_path / "packages", tmp_path / "prefix")
    (tmp_path / "packages" / "broken.deb").write_bytes(b"no archive")
    with pytest.raises(RuntimeError, match=r"broken\.deb"):
        unpack_debian(tmp_path / "packages", tmp_path / "prefix")


def test_an_environment_borrows_what_no_wheel_brings(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "psutil-1-py3-none-any.whl").touch()
    inner = make_venv(Path(sys.executable), tmp_path / "venv", wheels, ["numpy*", "psutil*", "*.pth"])
    code = "import numpy, sys; from importlib.metadata import version; print(version('numpy'), sys.prefix)"
    said = subprocess.run([inner, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[1] == str(tmp_path / "venv")
    names = {path.name for path in (tmp_path / "venv" / "borrowed").iterdir()}
    # a module that a wheel replaces comes first anyway; two versions of one distribution would be told apart by nobody
    assert "psutil" in names
    assert not [name for name in names if name.startswith("psutil-7") or name.endswith(".pth") or "pytest" in name]
    assert site_folders(inner)[0].is_relative_to(tmp_path / "venv")


def test_what_was_unpacked_is_found_first_and_the_machines_own_after_it(tmp_path: Path) -> None:
    now = {"LD_LIBRARY_PATH": "driver:other", "PATH": "bin", "CPATH": "", "HOME": "home"}
    made = build_environment(tmp_path, tmp_path / "wheels", Path("python/bin/python3"), now)
    assert made["LD_LIBRARY_PATH"].split(":")[-2:] == ["driver", "other"]
    assert made["LD_LIBRARY_PATH"].startswith(f"{tmp_path}/usr/lib/")
    assert made["PATH"] == f"{Path.cwd()}/python/bin:bin"
    # an empty entry would be the current folder
    assert all(made[name].strip(":") == made[name] for name in ("CPATH", "LIBRARY_PATH", "CMAKE_PREFIX_PATH"))
    assert made["PIP_NO_INDEX"] == "1"
    assert "HOME" not in made


def test_a_run_with_nothing_to_go_on_says_so_step_by_step(tmp_path: Path) -> None:
    command: list[str | Path] = [
        ROOT / ".ci" / "gpu",
        "--device",
        "fake",
        "--pack",
        tmp_path,
        "--work",
        tmp_path / "work",
        "--minutes",
        "0.01",
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    result = json.loads((tmp_path / "out" / unattended.RESULT).read_text())
    assert [step["name"] for step in result["steps"]][0::5] == ["unpack", "tests"]
    assert not any(step["good"] for step in result["steps"] if step["name"] != "wheels")
    assert "nothing was packed" in result["steps"][0]["text"]
    assert result["tests_passed"] is False
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1, "an earlier run's folder is made anew"
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "letters").write_text("mine")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, "holds other things" in refused.stderr) == (2, True)
    assert (tmp_path / "work" / "letters").read_text() == "mine"


@pytest.mark.parametrize("name", ["gpu", "gpu-pack"])
def test_the_scripts_say_what_they_take(name: str) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / ".ci" / name, "--help"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"usage: .ci/{name}" in done.stdout


def test_what_runs_before_anything_is_installed_needs_nothing_installed() -> None:
    """`-I -S`: without any site-packages at all."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bench.gpu.unattended, bench.gpu.packing"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
