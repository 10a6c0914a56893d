"""Builds the native data plane and installs it into this environment, where that can be done; says in one line what serves.

For `make` and images, beside the server: nothing imports it. Without a compiler or headers it installs Debian's packages where
it may (root, apt-get, once per environment), and else leaves the Python data plane to serve. It builds when the sources have
changed, never otherwise, and never leaves a module of older sources behind.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NATIVE = Path(__file__).parent
ROOT = NATIVE.parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
BUILT = ROOT / "build" / "native"
LOG = ROOT / "build" / "native-install.log"
STATE = Path(sys.prefix) / ".native.json"
"""What was built here last: the digest of its sources, and whether it was installed."""
FETCHED = Path(sys.prefix) / ".native-packages"
"""There once Debian's packages were asked for: a machine that cannot have them is not asked at every turn."""
COMPILER = "a C++17 compiler"
NEEDS = {
    COMPILER: ("g++", "", ""),
    "nghttp2 1.52 or newer": ("libnghttp2-dev", "nghttp2/nghttp2ver.h", "NGHTTP2_VERSION_NUM >= 0x013400"),
    "OpenSSL 3 or newer": ("libssl-dev", "openssl/opensslv.h", "OPENSSL_VERSION_NUMBER >= 0x30000000L"),
    "zlib": ("zlib1g-dev", "zlib.h", ""),
    "xxHash": ("libxxhash-dev", "xxhash.h", ""),
    "Python's headers": ("python3-dev", "Python.h", ""),
}
"""What a build needs: who has it on Debian and Ubuntu, a header to know it by, and what that must say. The package index has
CMake and Ninja."""
SHARED_LIBRARIES = ("libnghttp2-14", "libssl3", "zlib1g")
"""What a built module needs on Debian and Ubuntu."""
_DOWNLOAD_S, _UNPACK_S, _BUILD_S = 120, 180, 900


class Outcome(NamedTuple):
    """How it ended: `installed`, `absent` (something to build with is) or `failed`; and the line to say."""

    word: str
    line: str


def sources() -> list[Path]:
    """Every file that a build depends on, in order."""
    patterns = ("src/*.cc", "src/*.h", "tests/**/*.cc", "tests/**/*.h", "**/CMakeLists.txt", "*.toml")
    return sorted(path for pattern in patterns for path in NATIVE.glob(pattern))


def digest() -> str:
    """Of the sources by name and content, and of the Python that they are built for."""
    made = hashlib.sha256(sys.version.encode())
    for path in sources():
        made.update(f"\0{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()


def loaded() -> str | None:
    """What the installed module says of itself; None where there is none, or it cannot be loaded."""
    code = "import podium_native; print(podium_native.built_with())"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def compiler() -> list[str] | None:
    """The C++ compiler that CMake would take, with the flags that the environment gives it."""
    given = shlex.split(os.environ.get("CXX", ""))
    found = next(filter(None, map(shutil.which, given[:1] or ("c++", "g++", "clang++"))), None)
    return [found, *given[1:], *shlex.split(os.environ.get("CXXFLAGS", ""))] if found else None


def probe() -> str:
    """A text whose preprocessed form has a line `missing: NAME` for each of `NEEDS` but the compiler."""
    made = ""
    for name, (_, header, condition) in NEEDS.items():
        if condition:
            made += f"#if __has_include(<{header}>)\n#include <{header}>\n#endif\n#if !({condition})\nmissing: {name}\n#endif\n"
        elif header:
            made += f"#if !__has_include(<{header}>)\nmissing: {name}\n#endif\n"
    return made


def missing() -> list[str]:
    """Which of `NEEDS` are not here."""
    command = compiler()
    if command is None:
        return [COMPILER]
    prefixes = filter(None, os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep))
    folders = [sysconfig.get_path("include"), *(f"{prefix}/include" for prefix in prefixes)]
    arguments = [*command, "-std=c++17", *(f"-I{each}" for each in folders), "-E", "-P", "-x", "c++", "-"]
    run = subprocess.run(arguments, input=probe(), capture_output=True, text=True, check=False)
    if run.returncode != 0:
        return [COMPILER]
    return [name for name in NEEDS if f"missing: {name}" in run.stdout.splitlines()]


def packages_of(names: Iterable[str]) -> list[str]:
    """Debian's packages for what is missing: all of them without a compiler, which is what headers are looked for with."""
    return [package for name, (package, _, _) in NEEDS.items() if name in names or COMPILER in names]


def fetch(names: list[str]) -> None:
    """Install Debian's packages for them: as root, where there is apt-get, once. Whoever calls looks again."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None or FETCHED.exists():
        return
    packages = packages_of(names)
    say(f"Installing {' '.join(packages)} with apt-get, to build the native data plane.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quick = ["-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=30"]
    install = ["apt-get", "install", "-y", "--no-install-recommends", *quick]
    # what may have to be ended half way only downloads; unpacking is left in peace
    steps = (["apt-get", "update", *quick], [*install, "--download-only", *packages])
    FETCHED.touch()
    try:
        for step in steps:
            subprocess.run(step, env=environment, capture_output=True, timeout=_DOWNLOAD_S, check=False)
        unpack = [*install, "--no-download", *packages]
        subprocess.run(unpack, env=environment, capture_output=True, timeout=_UNPACK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"apt-get: {error}")


def build(tests: bool) -> Outcome:
    """Build a wheel of the sources and install it; with `tests`, what tests run in C++ lies in `BUILT` then. All that was said
    on the way is in `LOG`."""
    pins = dict.fromkeys(("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"), CONSTRAINTS.as_uri())
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--force-reinstall", str(NATIVE)]
    if tests:
        pip += [f"--config-settings=build-dir={BUILT}", "--config-settings=cmake.define.PODIUM_TESTS=ON"]
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        try:
            run = subprocess.run(pip, env={**os.environ, **pins}, stdout=log, stderr=log, timeout=_BUILD_S, check=False)
            status = f"status {run.returncode}"
        except subprocess.TimeoutExpired:
            status = f"not within {_BUILD_S} s"
    found = loaded() if status == "status 0" else None
    if found is not None:
        return Outcome("installed", found)
    said = LOG.read_text("utf-8", "replace")
    # pip's own failures (an index out of reach) are the machine's; CMake's and the compiler's are the sources'
    word = "failed" if "*** CMake" in said else "absent"
    why = re.search(r"\berror: (?!subprocess-exited).*|CMake Error.*|ERROR: .*", said)
    return Outcome(word, f"its build failed ({why[0].strip() if why else status}), see {LOG.relative_to(ROOT)}")


def remove() -> None:
    """Take out what an earlier turn installed: a module of other sources must not serve."""
    pip = [sys.executable, "-m", "pip", "uninstall", "--disable-pip-version-check", "--yes", "podium-native"]
    subprocess.run(pip, capture_output=True, check=False)


def bring_about(anew: bool, tests: bool = False) -> Outcome:
    """Make it so, if it is not. `anew`: what failed for these sources is tried again. `tests`: with what tests run in C++."""
    if os.environ.get("PODIUM_NATIVE") == "no":
        return Outcome("absent", "PODIUM_NATIVE=no")
    wanted = digest()
    before = json.loads(STATE.read_text("utf-8")) if STATE.is_file() else {}
    if before.get("digest") == wanted and (BUILT.is_dir() if before.get("tests") else not tests):
        found = loaded() if before["word"] == "installed" else None
        if found is not None:
            return Outcome("installed", found)
        if before["word"] == "failed" and not anew:
            return Outcome("failed", before["line"])
    if names := missing():
        fetch(names)
        names = missing()
    line = f"{', '.join(names)} not found; on Debian: apt-get install {' '.join(packages_of(names))}"
    outcome = Outcome("absent", line) if names else build(tests)
    if outcome.word != "installed" and before.get("word") == "installed":
        remove()
    STATE.write_text(json.dumps({"digest": wanted, "tests": tests, **outcome._asdict()}), "utf-8")
    return outcome


def say(line: str) -> None:
    """One line, on standard error as all that is about the making."""
    sys.stderr.write(line + "\n")


def main(arguments: list[str]) -> int:
    """The exit status: 0, unless more was asked for than came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="fail where it can be built, but does not compile")
    parser.add_argument("--required", action="store_true", help="fail wherever it is not installed, and try again what failed")
    parser.add_argument("--tests", action="store_true", help="with what the tests run in C++, under build/native")
    parser.add_argument("--packages", action="store_true", help="write the names of Debian's packages for a build, and no more")
    parser.add_argument("--libraries", action="store_true", help="the same for a machine that only runs it")
    chosen = parser.parse_args(arguments)
    if chosen.packages or chosen.libraries:
        sys.stdout.write(" ".join(packages_of(NEEDS) if chosen.packages else SHARED_LIBRARIES) + "\n")
        return 0
    outcome = bring_about(chosen.required, chosen.tests)
    if outcome.word == "installed":
        say(f"Native data plane: {outcome.line}")
        return 0
    say(f"The Python data plane serves, not the native one: {outcome.line}")
    return 1 if chosen.required or (chosen.strict and outcome.word == "failed") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
