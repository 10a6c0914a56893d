"""Running a recipe again: its commit, its words, its end; and that nothing else is touched."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from server.core.errors import RegistryError
from server.registry.manifest import Code, Recipe
from server.registry.rebuild import check_out, collect, command_line, run


def git(folder: Path, *arguments: str) -> str:
    names = {"GIT_AUTHOR_NAME": "ana", "GIT_AUTHOR_EMAIL": "ana@example.org"}
    names |= {"GIT_COMMITTER_NAME": "ana", "GIT_COMMITTER_EMAIL": "ana@example.org"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **names}, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A git repository whose second commit is on no branch."""
    path = tmp_path / "code"
    path.mkdir()
    git(path, "init", "--quiet")
    (path / "inner").mkdir()
    for text in ("one", "two"):
        (path / "inner" / "recipe.py").write_text(text)
        git(path, "add", "-A")
        git(path, "commit", "--quiet", "-m", text)
    return path


def commit(code: Path, name: str = "HEAD") -> Code:
    return Code(commit=git(code, "rev-parse", name), dirty=False)


def test_the_recorded_commit_is_checked_out_and_the_repository_left_alone(code: Path, tmp_path: Path) -> None:
    first, second = commit(code, "HEAD~1"), commit(code)
    git(code, "reset", "--quiet", "--hard", "HEAD~1")
    (code / "inner" / "recipe.py").write_text("changed and not committed")
    before = git(code, "status", "--porcelain"), git(code, "worktree", "list"), git(code, "for-each-ref")
    for number, (wanted, text) in enumerate([(first, "one"), (second, "two")]):
        # from a folder within, too: a recipe may be rebuilt from anywhere in the tree
        check_out(wanted, code / "inner", tmp_path / f"target{number}")
        assert (tmp_path / f"target{number}" / "inner" / "recipe.py").read_text() == text
    assert before == (git(code, "status", "--porcelain"), git(code, "worktree", "list"), git(code, "for-each-ref"))


def test_an_additional_working_tree_will_do(code: Path, tmp_path: Path) -> None:
    git(code, "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"), "HEAD~1")
    check_out(commit(code), tmp_path / "other", tmp_path / "target")
    assert (tmp_path / "target" / "inner" / "recipe.py").read_text() == "two"


def test_what_a_hook_sets_leads_nowhere(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = commit(code, "HEAD~1")
    shutil.copytree(code, tmp_path / "bystander")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "bystander" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "bystander"))
    check_out(wanted, code, tmp_path / "target")
    assert (tmp_path / "bystander" / "inner" / "recipe.py").read_text() == "two"
    assert (tmp_path / "target" / "inner" / "recipe.py").read_text() == "one"


def test_hooks_do_not_run(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(hooks.parent))
    check_out(commit(code), code, tmp_path / "target")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda code: Code(commit="c" * 40, dirty=False), "code: commit c{40} is not in the git repository at "),
        (
            lambda code: Code(commit="c" * 40, dirty=False, repository="git@host:demo.git"),
            r"\(recorded from git@host:demo\.git\)$",
        ),
        (lambda code: Code(commit="--help", dirty=False), "code: '--help' is no commit"),
        (lambda code: Code(commit="HEAD", dirty=False), "code: 'HEAD' is no commit"),
    ],
)
def test_a_commit_that_is_not_there_is_named(code: Path, tmp_path: Path, change: Callable[[Path], Code], text: str) -> None:
    with pytest.raises(RegistryError, match=text):
        check_out(change(code), code, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RegistryError, match="is not in the git repository"):
        check_out(Code(commit="c" * 40, dirty=False), tmp_path, tmp_path / "target")


def test_a_damaged_repository_is_named(code: Path, tmp_path: Path) -> None:
    wanted = commit(code)
    tree = git(code, "rev-parse", "HEAD^{tree}")
    (code / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(RegistryError, match="cannot be checked out: "):
        check_out(wanted, code, tmp_path / "target")


def test_a_command_is_words_and_python_is_this_interpreter(tmp_path: Path) -> None:
    recipe = Recipe(command="python -m models.demo 'a b'", arguments=("--x", "$HOME; ls"))
    assert command_line(recipe, tmp_path) == [
        sys.executable,
        "-m",
        "models.demo",
        "a b",
        "--x",
        "$HOME; ls",
        "--out",
        str(tmp_path),
    ]
    assert command_line(Recipe(command="train"), tmp_path)[0] == "train"
    for command in (" ", "a 'b"):
        with pytest.raises(RegistryError, match=r"^recipe: "):
            command_line(Recipe(command=command), tmp_path)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_recipe_runs_in_its_code_without_a_shell_and_keeps_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("SECRET_OF_THE_DATA", "42")
    (tmp_path / "code" / "beside.py").write_text("")
    text = """
import os, pathlib, sys, tempfile
import beside
assert os.environ["SECRET_OF_THE_DATA"] == "42"
assert sys.stdin.read() == ""
pathlib.Path("seen").write_text(tempfile.gettempdir())
"""
    run(python(text), tmp_path / "code", tmp_path, 60)
    assert (tmp_path / "code" / "seen").read_text() == str(tmp_path / "tmp")


def test_a_script_imports_the_code_of_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, word in (("working_tree", "changed"), ("code", "committed")):
        (tmp_path / folder / "recipes").mkdir(parents=True)
        (tmp_path / folder / "beside.py").write_text(f"WORD = {word!r}")
    (tmp_path / "code" / "recipes" / "build.py").write_text("import beside; assert beside.WORD == 'committed', beside.WORD")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "working_tree"))
    run([sys.executable, "recipes/build.py"], tmp_path / "code", tmp_path, 60)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; print('no data'); sys.exit(3)", "recipe: ended with status 3; the end of its output:\nno data"),
        ("import os; os.kill(os.getpid(), 9)", "recipe: ended with status -9; it said nothing"),
        ("print('x' * 100_000 + 'end'); raise SystemExit(1)", "xend"),
    ],
)
def test_a_recipe_that_fails_is_quoted(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RegistryError) as failed:
        run(python(text), tmp_path, tmp_path, 60)
    assert str(failed.value).endswith(said)
    assert len(str(failed.value)) < 10_000


def test_a_recipe_without_end_is_killed_with_its_children(tmp_path: Path) -> None:
    text = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("child").write_text(str(child.pid))
print("waiting", flush=True)
time.sleep(600)
"""
    with pytest.raises(RegistryError, match="recipe: not done after 5 s; the end of its output:\nwaiting"):
        run(python(text), tmp_path, tmp_path, 5)
    child = int((tmp_path / "child").read_text())
    if psutil.pid_exists(child):
        psutil.wait_procs([psutil.Process(child)], timeout=30)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"recipe: no-such-program cannot be started: No such file or directory"):
        run(["no-such-program"], tmp_path, tmp_path, 60)


def test_what_a_recipe_leaves(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"recipe: it wrote no facts\.json"):
        collect(tmp_path)
    (tmp_path / "facts.json").write_text('{"sed": 1}')
    with pytest.raises(RegistryError, match=r"recipe: facts\.json: .*sed: unknown key"):
        collect(tmp_path)
    (tmp_path / "facts.json").write_text('{"seeds": {"torch": 1}}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.onnx").write_bytes(b"model")
    (tmp_path / ".hidden").touch()
    left = collect(tmp_path)
    assert left.facts.seeds == {"torch": 1}
    assert {name: digest.bytes for name, digest in left.files.items()} == {"deep/model.onnx": 5}
    (tmp_path / "out").symlink_to(tmp_path.parent)
    with pytest.raises(RegistryError, match="leads out of"):
        collect(tmp_path)
