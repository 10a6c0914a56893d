"""`.ci/gpu`: tests of the device, then the matrix, on a machine with one NVIDIA GPU and without a network, within a time.

Every step has a limit of its own, and its outcome in `gpu.json`, which is written after each: whatever ends the machine
leaves what was known until then. The exit status is 0 only if the tests passed. Only the standard library: it starts from a
bare Python.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.gpu.packing import ROOT
from bench.gpu.steps import run
from bench.gpu.unpacking import build_environment, join, make_venv, unpack_debian

_TESTS, _BUILD = 0.35, 0.4
"""Parts of the whole time that steps may take."""
_INSTALL_S, _LAST_S, _MATRIX_S = 120.0, 20.0, 40.0
"""Limits of steps; what is kept free at the end, to end what runs and write; what a matrix may need beside its own time."""
RESULT = "gpu.json"
_OWN = {"files", "prefix", "venv"}
"""What a run makes in its working folder: an earlier run's is removed, nothing else is."""
FAKE_TESTS = ("tests/bench/test_gpu_ratios.py", "tests/bench/test_gpu_parts.py", "tests/backends/test_fake.py")


class Unattended:
    """One run, its folder, and what came of each step."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._whole_s = chosen.minutes * 60
        self._end_s = time.monotonic() + self._whole_s - _LAST_S
        self._work = chosen.work.resolve()
        self._out = chosen.out.resolve()
        self._out.mkdir(parents=True, exist_ok=True)
        self._environment: Mapping[str, str] = {}
        self._python = Path(chosen.python)
        self.result: dict[str, Any] = {"device": chosen.device, "steps": [], "tests_passed": False}

    def run(self) -> bool:
        """All steps in order; those that need one that failed still run, and say so. Whether the tests passed."""
        self._step("unpack", self._unpack)
        self._step("environment", self._venv)
        self._step("wheels", self._wheels)
        self._step("native data plane", self._native)
        self._step("load client", self._client)
        self.result["tests_passed"] = self._step("tests", self._tests)
        self._step("matrix", self._matrix)
        return bool(self.result["tests_passed"])

    def _step(self, name: str, action: Callable[[], str]) -> bool:
        begun = time.monotonic()
        try:
            good, text = True, action()
        except Exception as error:  # noqa: BLE001 - a step that fails is a line of the result, not the end of the others
            good, text = False, f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - begun
        self.result["steps"].append({"name": name, "good": good, "took_s": took_s, "text": text[-8000:]})
        self._save()
        sys.stderr.write(f"{name}: {'done' if good else 'FAILED'} in {took_s:.1f} s\n{'' if good else text[-2000:] + chr(10)}")
        return good

    def _save(self) -> None:
        partial = self._out / f".{RESULT}.tmp"
        partial.write_text(json.dumps(self.result, indent=2) + "\n")
        partial.replace(self._out / RESULT)

    def _do(self, limit_s: float, *command: str | Path) -> str:
        """Raises: RuntimeError where it fails, or is not done in time."""
        limit_s = min(limit_s, self._end_s - time.monotonic())
        if limit_s <= 0:
            raise RuntimeError("the time was over")
        done = run(command, limit_s, ROOT, self._environment)
        if not done.good:
            raise RuntimeError(f"{done.why}\n{done.said[-4000:]}")
        return (done.said + done.text).strip()

    def _unpack(self) -> str:
        absent = join(self._chosen.pack, self._work / "files")
        unpack_debian(self._work / "files" / "debian", self._work / "prefix")
        self._environment = build_environment(self._work / "prefix", self._work / "files" / "wheels", self._python, os.environ)
        self.result["absent"] = absent
        return f"absent: {', '.join(absent)}" if absent else "all that was packed"

    def _venv(self) -> str:
        wheels = self._work / "files" / "wheels"
        self._python = make_venv(self._python, self._work / "venv", wheels, self._chosen.borrow.split(","))
        return self._do(60, self._python, "--version")

    def _wheels(self) -> str:
        wheels = sorted((self._work / "files" / "wheels").glob("*.whl"))
        self.result["onnxruntime_gpu"] = any(path.name.startswith("onnxruntime_gpu") for path in wheels)
        install = (self._python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
        self._do(_INSTALL_S, *install, *wheels)
        # a server asks for its own version
        self._do(_INSTALL_S, *install, "--editable", ROOT)
        return f"{len(wheels)} wheels; onnxruntime-gpu is {'' if self.result['onnxruntime_gpu'] else 'not '}among them"

    def _native(self) -> str:
        try:
            return "built: " + self._do(
                self._whole_s * _BUILD, self._python, "-m", "server.dataplane.native.install", "--required"
            )
        except RuntimeError as error:
            ready = sorted((self._work / "files" / "prebuilt").glob("podium_native-*.whl"))
            if not ready:
                raise
            self._do(_INSTALL_S, self._python, "-m", "pip", "install", "--quiet", "--no-deps", ready[0])
            loaded = self._do(60, self._python, "-c", "import podium_native; print(podium_native.built_with())")
            return f"as it was packed ({loaded}), because: {error}"

    def _client(self) -> str:
        code = "from bench.native_client import executable; print(executable())"
        try:
            self._do(self._whole_s * _BUILD, self._python, "-c", code)
            return "built"
        except RuntimeError as error:
            built = ROOT / "build" / "client"
            built.mkdir(parents=True, exist_ok=True)
            for path in (self._work / "files" / "prebuilt").glob("podium_client*"):
                (built / path.name).write_bytes(path.read_bytes())
                (built / path.name).chmod(0o755)
            self._do(60, built / "podium_client_check")
            return f"as it was packed, because: {error}"

    def _tests(self) -> str:
        pytest = (self._python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        if self._chosen.device == "fake":
            return self._do(self._whole_s * _TESTS, *pytest, "-m", "not gpu and not soak", *FAKE_TESTS)
        marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
        return self._do(self._whole_s * _TESTS, *pytest, "-m", "gpu", *marked)

    def _matrix(self) -> str:
        left_s = self._end_s - time.monotonic()
        results = self._out / "matrix"
        words = (
            "--device",
            self._chosen.device,
            "--minutes",
            f"{max(left_s - _MATRIX_S, 1.0) / 60:.2f}",
            "--results",
            str(results),
        )
        try:
            return self._do(left_s, self._python, "-m", "bench.gpu", *words)
        finally:
            for path in results.glob("*.json"):
                self.result["matrix"] = json.loads(path.read_text("utf-8"))


def main(arguments: list[str]) -> int:
    """Exit status 0 if the tests passed."""
    parser = argparse.ArgumentParser(prog=".ci/gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "fake"), default="cuda", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=8.8, help="for everything (default: %(default)s)")
    parser.add_argument("--pack", type=Path, default=ROOT / ".gpu-pack", metavar="DIR", help="what .ci/gpu-pack made")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", metavar="DIR", help="emptied first")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "build" / "gpu-out")), metavar="DIR")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python with torch (default: this one)")
    parser.add_argument("--borrow", default="*", metavar="NAMES", help="of its packages, with commas (default: all)")
    chosen = parser.parse_args(arguments)
    if chosen.work.exists():
        if not {path.name for path in chosen.work.iterdir()} <= _OWN:
            parser.error(f"{chosen.work} holds other things than an earlier run's")
        shutil.rmtree(chosen.work)
    return 0 if Unattended(chosen).run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
