"""What is recorded of the place where a version is made, and what is not."""

import hashlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from server.registry.environment import collect_code, collect_environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_it_is_all(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert collect_code(tmp_path) is None
    (tmp_path / "train.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    code = collect_code(tmp_path)
    assert code is not None
    assert (code.commit, code.dirty, code.repository) == (git(tmp_path, "rev-parse", "HEAD"), False, None)
    (tmp_path / "recipe.py").write_text("2")
    code = collect_code(tmp_path)
    assert code is not None
    assert code.dirty


@pytest.mark.parametrize(
    ("remote", "recorded"),
    [
        ("https://ana:secret@example.org/demo.git", "https://example.org/demo.git"),
        ("https://example.org/demo.git", "https://example.org/demo.git"),
        ("git@example.org:demo.git", "git@example.org:demo.git"),
    ],
)
def test_credentials_of_the_remote_are_not_recorded(tmp_path: Path, remote: str, recorded: str) -> None:
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    git(tmp_path, "remote", "add", "origin", remote)
    code = collect_code(tmp_path)
    assert code is not None
    assert code.repository == recorded


def test_without_git_or_outside_a_working_tree_nothing_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert collect_code(tmp_path) is None
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    assert collect_code(tmp_path) is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert collect_code(tmp_path) is None


def test_the_environment_is_this_one(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    lock.write_text("numpy==2\n")
    environment = collect_environment(lock, ("numpy", "no-such-package-here"))
    assert environment.python == platform.python_version()
    assert environment.lock_digest == hashlib.sha256(b"numpy==2\n").hexdigest()
    assert environment.packages == {"numpy": np.__version__}
    assert collect_environment(None).lock_digest is None
    with pytest.raises(FileNotFoundError):
        collect_environment(tmp_path / "missing")
