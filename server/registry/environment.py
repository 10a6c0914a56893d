"""Where a version is being made and by whom: the commit, the interpreter, the installed packages, the user.

Floor 2: asks git and the interpreter, at registration. Never guesses: what cannot be found out stays absent, and the lineage
will name it as missing.
"""

import getpass
import hashlib
import os
import platform
import secrets
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from server.registry.manifest import Code, Environment, ManifestFields

NUMERIC_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "pandas",
    "podium",
    "scikit-learn",
    "torch",
)
"""Packages whose release may change a model's numbers; those that are installed are recorded."""

_GIT_TIMEOUT_S = 10.0


def collect_code(folder: Path) -> Code | None:
    """The commit checked out in `folder`; None without git, outside a working tree, or before the first commit.

    Untracked files make the tree dirty as well: a recipe that was never added is not in the commit.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain")
    if not commit or changed is None:
        return None
    remote = _git(folder, "config", "--get", "remote.origin.url")
    return Code(commit=commit, dirty=bool(changed), repository=_without_credentials(remote) if remote else None)


def collect_environment(lock_file: Path | None, packages: Sequence[str] = NUMERIC_PACKAGES) -> Environment:
    """This interpreter, this machine, and the digest of the constraints that pinned the packages.

    Raises: OSError for a lock file that cannot be read.
    """
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        lock_digest=None if lock_file is None else hashlib.sha256(lock_file.read_bytes()).hexdigest(),
        packages=installed,
    )


def completed(fields: ManifestFields, folder: Path, lock_file: Path | None) -> ManifestFields:
    """`fields` with what their writer left open and this process knows: commit of `folder`, environment, author, run.

    A run that nobody named gets an id of its own, so that two registrations of equal builds can be told apart.
    Raises: OSError for a lock file that cannot be read.
    """
    found: dict[str, object] = {}
    if fields.code is None:
        found["code"] = collect_code(folder)
    if fields.environment is None:
        found["environment"] = collect_environment(lock_file)
    if fields.author is None:
        found["author"] = _git(folder, "config", "--get", "user.name") or current_user()
    if fields.run_id is None:
        found["run_id"] = new_run_id(datetime.now(UTC))
    return fields.model_copy(update=found)


def new_run_id(now: datetime) -> str:
    """An id that sorts by time and that no other run has: `20250301T100000Z-` and six hexadecimal digits."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def current_user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number and no name
        return f"uid {os.getuid()}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            check=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _without_credentials(remote: str) -> str:
    """A manifest is read by many: a token in the remote's URL must not get into it."""
    parts = urlsplit(remote)
    if not parts.scheme or "@" not in parts.netloc:
        return remote
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
