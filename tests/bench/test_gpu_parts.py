"""Commands that end in time, what a machine is told to be, catalogues, and the engine alone: all that needs no server."""

import doctest
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest

from bench.gpu import catalogue as catalogue_file
from bench.gpu import engine, environment, matrix, measures
from bench.gpu.catalogue import FOLDER, ModelPlan, build, catalogue, newest_version
from bench.gpu.engine import bodies, measure, open_version, pipelined, prepared
from bench.gpu.environment import FIELDS, devices, parse_devices
from bench.gpu.steps import run
from bench.processes import alive, podium
from server.backends.fake import FakeBackend
from server.core.settings import FakeSettings
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec

PYTHON = sys.executable


@pytest.mark.parametrize("module", [engine, environment, matrix, measures], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert (done.failed, done.attempted) == (0, 1)


def test_a_command_that_ends(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['ASKED'], os.getcwd()); sys.stderr.write('a word')"
    done = run((PYTHON, "-c", code), 30, tmp_path, {"ASKED": "1"})
    assert (done.good, done.said.split(), done.text) == (True, ["1", str(tmp_path)], "a word")


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    done = run((PYTHON, "-c", "raise SystemExit('not today')"), 30, tmp_path)
    assert (done.good, done.why) == (False, "status 1: not today")
    assert run(("no-such-command",), 30, tmp_path).status == 127


def test_what_outlasts_its_limit_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    done = run((PYTHON, "-c", code), 3, tmp_path)
    assert (done.status, done.said) == (None, "begun\n")
    assert done.why == "did not end in time: begun"
    number, end = int((tmp_path / "child").read_text()), time.monotonic() + 30
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    done = run(("sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"), 30, tmp_path)
    number, end = int(done.said), time.monotonic() + 30
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end


def test_cores_are_inherited(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    code = "import os, time; time.sleep(0.3); print(sorted(os.sched_getaffinity(0)))"
    assert run((PYTHON, "-c", code), 30, tmp_path, cores=(core,)).said == f"[{core}]\n"


def test_devices_are_read_and_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    row = ", ".join([f"value {number}" for number in range(len(FIELDS))])
    tool.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{row}'\necho '{row}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = devices()
    assert [one["mig.mode.current"] for one in found] == [f"value {FIELDS.index('mig.mode.current')}"] * 2
    asked = (tmp_path / "asked").read_text().split()
    assert [word.split("=")[0] for word in asked] == ["--query-gpu", "--format"]
    assert not [field for field in FIELDS if "uuid" in field or "serial" in field]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices() == []
    assert parse_devices("") == []


def test_a_child_that_has_ended_is_not_alive() -> None:
    child = subprocess.Popen([PYTHON, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert alive(process)
    assert child.stdin is not None
    child.stdin.close()
    end = time.monotonic() + 30
    # nobody waits for it here, so its number stays
    while alive(process):
        assert time.monotonic() < end
    assert process.is_running()
    child.wait()
    assert not alive(process)


def test_a_server_that_cannot_start_is_not_waited_for(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-plane"),
        podium(tmp_path, tmp_path, "--data-plane", "no-such-plane", start_s=100.0),
    ):
        pytest.fail("it started")


@pytest.mark.parametrize("name", ["fake", "cuda"])
def test_the_catalogues_are_in_order(name: str) -> None:
    read = catalogue(FOLDER / f"{name}.toml")
    assert read.assumed is (name == "fake")
    assert read.on == f"{name}:"
    assert all("cuda" in plan.recipe for plan in read.model if plan.recipe), "a recipe builds for the CPU if it is not told"
    assert all((plan.fake is not None) is read.assumed for plan in read.model)
    assert len({plan.name for plan in read.model}) == len(read.model) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "fake = { t0_us = 1.0, row_us = 1.0 }",
        'max_batch = 2\nrecipe = ["x"]\nfake = { t0_us = 1.0, row_us = 1.0 }',
        'recipe = ["x"]\nspeed = 9',
    ],
)
def test_a_catalogue_that_is_wrong_is_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "wrong.toml"
    common = 'name = "m"\ntarget_p99_ms = 1.0\ndeadline_ms = 1.0\nin_flight = 1\nconnections = 1\n'
    path.write_text(f"assumed = true\n[[model]]\n{common}{wrong}")
    with pytest.raises(ValueError, match=r"needs a recipe|Extra inputs"):
        catalogue(path)


def plan(**changed: Any) -> ModelPlan:
    common = {"name": "m", "target_p99_ms": 1.0, "deadline_ms": 1.0, "in_flight": 1, "connections": 1}
    return ModelPlan.model_validate(common | changed)


def test_recipes_are_run_and_held_to_their_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_file, "ROOT", tmp_path)
    (tmp_path / "recipe.py").write_text(
        "import sys\nfrom pathlib import Path\nif sys.argv[1] == 'fail': raise SystemExit('no weights')\n"
        "if sys.argv[1] == 'make': [Path(sys.argv[3], 'm', n).mkdir(parents=True) for n in ('2', '10', 'aliases')]\n"
    )
    build(plan(recipe=("recipe.py", "make")), tmp_path / "made", 60)
    assert newest_version(tmp_path / "made", "m").name == "10"
    with pytest.raises(RuntimeError, match="no weights"):
        build(plan(recipe=("recipe.py", "fail")), tmp_path / "failed", 60)
    with pytest.raises(RuntimeError, match="no version of m"):
        build(plan(recipe=("recipe.py", "forget")), tmp_path / "forgotten", 60)
    with pytest.raises(subprocess.TimeoutExpired):
        build(plan(recipe=("-c", "import time; time.sleep(60)")), tmp_path / "slow", 0.5)


def test_another_kind_of_device_is_not_measured_in_its_place(tmp_path: Path) -> None:
    build(plan(fake={"t0_us": 2000.0, "row_us": 100.0}, max_batch=6, width=3), tmp_path, 1)
    words = ["--repository", str(tmp_path), "--model", "m", "--seconds", "0.1", "--bodies", str(tmp_path / "bodies")]
    with pytest.raises(RuntimeError, match="m is on fake:0, where cuda: is to be measured"):
        engine.main([*words, "--on", "cuda:"])
    assert engine.main([*words, "--on", "fake:"]) == 0


def test_the_engine_alone_is_measured_at_every_bucket(tmp_path: Path) -> None:
    build(plan(fake={"t0_us": 2000.0, "row_us": 100.0}, max_batch=6, width=3), tmp_path, 1)
    backend, settings = open_version(tmp_path, "m")
    try:
        assert pipelined(backend)
        assert settings.fake.device == "accelerator"
        found = measure(backend, (1, 4, 6), 0.3)
        made = bodies(backend)
    finally:
        backend.close()
    assert [row["rows"] for row in found["tau"]] == [1, 2, 4, 5, 6]
    assert all(0 < row["busy_us"] <= row["serial_us"] for row in found["tau"])
    # a device takes as long as it takes: less is impossible, however the machine is loaded
    assert all(row["busy_us"] > 1900 + 100 * row["rows"] for row in found["tau"])
    assert found["rate"] == max(row["rate"] for row in found["tau"] if row["rows"] in (1, 4, 6))
    assert (found["max_batch"], found["best_rows"] in (1, 4, 6)) == (6, True)
    assert len({answer for _, answer in made}) == len(made) == engine.BODIES
    assert {tuple(message.inputs[0].shape) for message, _ in made} == {(1, 3)}
    assert {len(message.raw_input_contents[0]) for message, _ in made} == {12}
    assert not any(message.model_name or message.id for message, _ in made)


def test_a_backend_is_got_ready_before_it_is_measured() -> None:
    happened: list[str] = []

    class Prepared(FakeBackend):
        def prepare(self, buckets: Sequence[int]) -> None:
            happened.append(f"prepared for {list(buckets)}")

        def notes(self) -> tuple[str, ...]:
            return ("4 rows run eagerly",)

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            happened.append("run")
            return super().run(inputs)

    signature = Signature("m", (TensorSpec("IN", "FP32", (2,)),), (TensorSpec("OUT", "FP32", (1,)),), 4)
    assert prepared(Prepared(signature, FakeSettings(t0_us=0.0, row_us=0.0)), (1, 4)) == ["4 rows run eagerly"]
    assert happened[0] == "prepared for [1, 4]"
    assert set(happened[1:]) == {"run"}
    assert prepared(FakeBackend(signature, FakeSettings(t0_us=0.0, row_us=0.0)), (1, 4)) == []


def test_a_backend_without_a_pipeline_and_texts() -> None:
    signature = Signature("m", (TensorSpec("T", "BYTES", (2,)),), (TensorSpec("OUT", "BYTES", (1,)),), 4)
    backend = FakeBackend(signature, FakeSettings(t0_us=100.0, row_us=0.0))
    found = measure(backend, (1, 4), 0.05)
    assert not pipelined(backend)
    assert all(row["busy_us"] == row["serial_us"] for row in found["tau"])
    made = bodies(backend)
    assert {answer for _, answer in made} == {b""}, "what is not known is not compared"
    (raw,) = made[0][0].raw_input_contents
    assert raw[:4] == np.array([1], "<u4").tobytes()
    assert len(raw) == 10
