"""Runs a recorded recipe again: its commit in a fresh folder, its command without a shell, its time bounded.

Floor 2. It executes what a manifest says, so a manifest is trusted as much as code is. Never writes outside the folders it is
given: the git repository of the code is only read.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from server.core.errors import RegistryError
from server.registry.durable import digest_file
from server.registry.listing import list_files
from server.registry.manifest import Code, ManifestFields, Recipe, parse_fields
from server.registry.reproduction import Rebuilt

FACTS_FILE = "facts.json"
"""What a recipe writes of itself beside the files of the version: fields of the manifest."""

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_OF_HOOKS = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_WORK_TREE",
    }
)
_INTERPRETERS = ("python", "python3")
_GIT_TIMEOUT_S = 300.0
_SHOWN_BYTES = 8192


def check_out(code: Code, repository: Path, target: Path) -> None:
    """Put the recorded commit into `target`, which must not be there. No hooks run.

    `repository` is any folder of a git working tree. Raises: RegistryError saying what is missing.
    """
    if not _COMMIT.fullmatch(code.commit):
        raise RegistryError(f"code: {code.commit!r} is no commit")
    try:
        # not the working tree's own folder: that of an additional working tree cannot be cloned
        objects = _git(repository, "rev-parse", "--path-format=absolute", "--git-common-dir")
        _git(repository, "rev-parse", "--verify", "--quiet", f"{code.commit}^{{commit}}")
    except RegistryError:
        origin = f" (recorded from {code.repository})" if code.repository else ""
        raise RegistryError(f"code: commit {code.commit} is not in the git repository at {repository}{origin}") from None
    try:
        # a clone that shares the objects, whatever branch they are on or none
        _git(repository, "clone", "--quiet", "--shared", "--no-checkout", objects, str(target))
        _git(target, "-c", f"core.hooksPath={os.devnull}", "checkout", "--quiet", "--detach", code.commit)
    except RegistryError as error:
        raise RegistryError(f"code: commit {code.commit} cannot be checked out: {error}") from None


def command_line(recipe: Recipe, out: Path) -> list[str]:
    """The words that are executed: `python` is this interpreter. Raises: RegistryError where the command has no words."""
    try:
        words = shlex.split(recipe.command)
    except ValueError as error:
        raise RegistryError(f"recipe: {recipe.command!r}: {error}") from None
    if not words:
        raise RegistryError(f"recipe: {recipe.command!r} is no command")
    if words[0] in _INTERPRETERS:
        words[0] = sys.executable
    return [*words, *recipe.arguments, "--out", str(out)]


def run(command: Sequence[str], code: Path, scratch: Path, timeout_s: float) -> None:
    """Execute a recipe in the folder of its code, and return when it ended well.

    It inherits this process's environment (a recipe may need access to its data), with temporary files in `scratch`. When the
    wait ends early its whole process group is killed.
    Raises: RegistryError saying how it ended, with the end of what it said.
    """
    log, temporary = scratch / "output.log", scratch / "tmp"
    temporary.mkdir()
    environment = _outside_git()
    environment["TMPDIR"] = str(temporary)
    # the interpreter must find the recipe's modules in the folder it is started in
    environment.pop("PYTHONSAFEPATH", None)
    # and there first, however it is started: a path or an editable install may lead to code that is not of the commit
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=code,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise RegistryError(f"recipe: {command[0]} cannot be started: {error.strerror}") from None
    try:
        status = process.wait(timeout_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RegistryError(f"recipe: not done after {timeout_s:g} s{_end_of(log)}") from None
        raise
    if status != 0:
        raise RegistryError(f"recipe: ended with status {status}{_end_of(log)}")


def collect(out: Path) -> Rebuilt:
    """What a recipe has left. Raises: RegistryError without facts, or where something is no file; OSError."""
    path = out / FACTS_FILE
    if not path.is_file():
        raise RegistryError(f"recipe: it wrote no {FACTS_FILE}")
    try:
        facts: ManifestFields = parse_fields(path.read_bytes())
    except RegistryError as error:
        raise RegistryError(f"recipe: {FACTS_FILE}: {error}") from None
    files = list_files(out, out.resolve()).files
    return Rebuilt(facts, {name: digest_file(out / name) for name in sorted(files) if name != FACTS_FILE})


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _SHOWN_BYTES))
        text = file.read().decode(errors="replace").strip()
    return f"; the end of its output:\n{text}" if text else "; it said nothing"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints. Raises: RegistryError with what it complains about."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=_outside_git(),
            capture_output=True,
            check=False,
            text=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RegistryError(str(error)) from None
    if done.returncode != 0:
        raise RegistryError(done.stderr.strip() or f"git ended with status {done.returncode}")
    return done.stdout.strip()


def _outside_git() -> dict[str, str]:
    """This process's environment without what a git hook adds, which would lead every git command to one repository."""
    return {name: value for name, value in os.environ.items() if name not in _OF_HOOKS}
