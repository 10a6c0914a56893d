"""NVIDIA's perf_analyzer, where it can be had: it is in old wheels of tritonclient, and needs two libraries beside it.

`python tests/perf_analyzer.py` fetches them into `.cache/perf_analyzer` (pip and, for libb64, apt-get; no root). Whoever has
it installed sets PODIUM_PERF_ANALYZER to its path instead. Only for tests: nothing of it is part of Podium.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".cache" / "perf_analyzer"
WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
"""The last wheels with the binary are 2.59.0; this one runs on glibc 2.36."""
LIBRARY_PACKAGE = "libb64-0d"
_BINARY = "tritonclient-2.51.0.data/data/bin/perf_analyzer"
_FETCH_S = 300


def command() -> tuple[list[str], dict[str, str]] | None:
    """How to start it, and in which environment; None where it is not there."""
    given = os.environ.get("PODIUM_PERF_ANALYZER") or shutil.which("perf_analyzer")
    if given:
        return [given], dict(os.environ)
    if not (HOME / "perf_analyzer").is_file():
        return None
    return [str(HOME / "perf_analyzer")], {**os.environ, "LD_LIBRARY_PATH": str(HOME)}


def fetch() -> None:
    """Make `HOME`, whole or not at all. Raises: CalledProcessError, OSError, TimeoutExpired."""
    if command() is not None:
        return
    HOME.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME.parent) as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*pip, "--only-binary", ":all:", "--dest", name, *WHEELS], folder)
        _run(["apt-get", "download", LIBRARY_PACKAGE], folder)
        (package,) = folder.glob("*.deb")
        _run(["dpkg-deb", "--extract", package.name, "deb"], folder)
        made = folder / "made"
        made.mkdir()
        for wheel in folder.glob("*.whl"):
            shutil.unpack_archive(wheel, folder / wheel.stem, "zip")
            for found in (folder / wheel.stem).rglob("libcudart.so*"):
                shutil.copy2(found, made)
            binary = folder / wheel.stem / _BINARY
            if binary.is_file():
                shutil.copy2(binary, made)
                (made / "perf_analyzer").chmod(0o755)
        for found in (folder / "deb").rglob("libb64.so*"):
            shutil.copy2(found, made, follow_symlinks=True)
        _run([str(made / "perf_analyzer"), "--version"], folder, {**os.environ, "LD_LIBRARY_PATH": str(made)})
        made.replace(HOME)


def _run(arguments: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    subprocess.run(arguments, cwd=folder, env=environment, check=True, capture_output=True, timeout=_FETCH_S)


if __name__ == "__main__":
    try:
        fetch()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        sys.stderr.write(f"perf_analyzer cannot be had here, its tests are left out: {error}\n")
