"""What `.ci/gpu-pack` packed, put together again and checked; and a Python that has it beside the torch of its machine.

Only the standard library: it runs before anything is installed.
"""

import fnmatch
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.gpu.packing import MANIFEST, normal
from bench.gpu.steps import run

_NEVER = (
    "*.pth",
    "*.egg-link",
    "__editable__*",
    "__pycache__",
    "_distutils_hack",
    "pip",
    "pip-*",
    "podium-*",
    "podium_native*",
)
"""What steers an environment, and what is brought about here."""
_LIMIT_S = 120.0


def join(packed: Path, into: Path) -> list[str]:
    """Write every file whose parts are all here; the names of those that are not.

    Raises: ValueError where a file is not what was packed, or nothing was.
    """
    manifests = sorted(packed.glob(f"*/{MANIFEST}"))
    if not manifests:
        raise ValueError(f"nothing was packed in {packed.name}")
    absent = []
    for name, entry in json.loads(manifests[0].read_text("utf-8")).items():
        parts = [packed / part for part in entry["parts"]]
        if not all(part.is_file() for part in parts):
            absent.append(name)
            continue
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name} is not what was packed")
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if path.parent.name == "prebuilt" else 0o644)
    return absent


def unpack_debian(packages: Path, prefix: Path) -> None:
    """Raises: RuntimeError where dpkg-deb is not here, or refuses."""
    prefix.mkdir(parents=True, exist_ok=True)
    for package in sorted(packages.glob("*.deb")):
        done = run(("dpkg-deb", "-x", package.resolve(), prefix.resolve()), _LIMIT_S, prefix)
        if not done.good:
            raise RuntimeError(f"{package.name}: {done.why}")


def build_environment(prefix: Path, wheels: Path, python: Path, now: Mapping[str, str]) -> dict[str, str]:
    """What compilers, CMake, the loader and pip must know to use what was unpacked, before what `now` says: drivers may
    be found by that alone. CMake and Ninja may lie beside the machine's Python."""
    libraries = (f"{prefix}/usr/lib/x86_64-linux-gnu", f"{prefix}/lib/x86_64-linux-gnu")
    before = {
        "CMAKE_PREFIX_PATH": (f"{prefix}/usr",),
        "CPATH": (f"{prefix}/usr/include", f"{prefix}/usr/include/x86_64-linux-gnu"),
        "LIBRARY_PATH": libraries,
        "LD_LIBRARY_PATH": libraries,
        "PATH": (str(python.absolute().parent),),
    }
    paths = {name: os.pathsep.join((*first, *filter(None, [now.get(name)]))) for name, first in before.items()}
    return paths | {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def site_folders(python: Path) -> list[Path]:
    """Where a Python has its packages. Raises: RuntimeError."""
    code = "import json, sys; print(json.dumps([each for each in sys.path if each.endswith('-packages')]))"
    done = run((python, "-c", code), _LIMIT_S, Path.cwd())
    if not done.good:
        raise RuntimeError(done.why)
    return [Path(each) for each in json.loads(done.said) if Path(each).is_dir()]


def borrowed(entries: Iterable[str], wheels: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Which files and folders of another Python's packages are used here: those asked for that no wheel brings.

    The two distributions of ONNX Runtime overwrite each other: with a wheel of either none is borrowed.

    >>> borrowed(["torch", "torch-2.dist-info", "redis-8.dist-info", "a.pth"], ["redis-9-py3-none-any.whl"], ["*"])
    ['torch', 'torch-2.dist-info']
    >>> borrowed(["onnxruntime", "numpy", "six.py"], ["onnxruntime_gpu-1.31-cp312.whl"], ["onnx*", "num*"])
    ['numpy']
    """
    brought = {normal(name.split("-")[0]) for name in wheels}
    runtime = any(name.startswith("onnxruntime") for name in brought)

    def taken(entry: str) -> bool:
        name = re.match(r"[\w.]+?(?=-\d|$)", entry)
        if any(fnmatch.fnmatch(entry, pattern) for pattern in _NEVER):
            return False
        if entry.endswith(".dist-info") and name and normal(name.group()) in brought:
            return False
        return not (runtime and entry.startswith("onnxruntime")) and any(fnmatch.fnmatch(entry, each) for each in patterns)

    return [entry for entry in entries if taken(entry)]


def make_venv(python: Path, folder: Path, wheels: Path, patterns: Sequence[str]) -> Path:
    """A Python of its own, with links to what it borrows: those of a virtual environment too, which `--system-site-packages`
    would not find. Its pip is that of the wheels, where these have one. Raises: RuntimeError."""
    inner = folder / "bin" / "python"
    pip = sorted(wheels.glob("pip-*.whl"))
    steps: list[tuple[str | Path, ...]] = [(python, "-m", "venv", *(["--without-pip"] if pip else []), folder)]
    steps += [(inner, each / "pip", "install", "--quiet", "--no-index", "--no-compile", each) for each in pip]
    for step in steps:
        done = run(step, _LIMIT_S, Path.cwd())
        if not done.good:
            raise RuntimeError(done.why)
    own = site_folders(inner)[0]
    links = folder / "borrowed"
    links.mkdir()
    names = sorted(path.name for path in wheels.glob("*.whl"))
    for site in site_folders(python):
        for entry in borrowed(sorted(path.name for path in site.iterdir()), names, patterns):
            if not (links / entry).exists():
                (links / entry).symlink_to(site / entry)
    # behind the environment's own packages: what wheels bring comes first
    (own / "borrowed.pth").write_text(f"{links}\n")
    return inner


if __name__ == "__main__":
    sys.exit("part of bench.gpu.unattended")
