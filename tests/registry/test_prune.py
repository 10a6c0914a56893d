"""Pruning: what goes is gone whole, what is needed stays, whatever kills or races it."""

import errno
import json
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from server.core.errors import RegistryError
from server.registry.aliases import set_alias
from server.registry.durable import append_line, locked
from server.registry.keeping import Rules
from server.registry.lease import lease
from server.registry.manifest import ManifestFields
from server.registry.names import MEASURED_FOLDER
from server.registry.prune import JOURNAL_FILE, prune, read_pruned
from server.registry.register import register
from server.registry.source import LocalDirectory

REPOSITORY_ROOT = Path(__file__).parents[2]
RULES = Rules(newest=1, recent=timedelta(0))
PRUNER = """
import sys
from datetime import timedelta
from pathlib import Path
from server.registry import prune
from server.registry.keeping import Rules
step = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
def stop(*arguments, **options):
    print("there", flush=True)
    sys.stdin.read()
if step == "removal":
    prune.shutil.rmtree = stop
elif step == "journal":
    # after the line, before the rename
    prune.append_line = lambda path, line, write=prune.append_line: (write(path, line), stop())
prune.prune(Path(sys.argv[1]), "demo", Rules(1, timedelta(0)), apply=True)
print("done", flush=True)
"""
LOADER = """
import sys
from pathlib import Path
from server.core.errors import PodiumError
from server.registry.lease import lease
from server.registry.source import LocalDirectory
root = Path(sys.argv[1])
source = LocalDirectory(root, 0.0)
found = source.scan()["demo"].versions[1]
print("ready", flush=True)
sys.stdin.readline()
try:
    held = lease(found.folder)
    source.verify(found)
    print("loaded", flush=True)
except PodiumError as error:
    print(error, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for _ in range(3):
        add(root)
    return root


def add(root: Path, **fields: Any) -> None:
    file = root.with_name("trained.onnx")
    file.write_bytes(b"model")
    register(root, "demo", {"model.onnx": file, "deep/words.txt": file}, ManifestFields(**fields))


def versions(root: Path) -> list[int]:
    """Every visible version, each of which verifies."""
    source = LocalDirectory(root, 0.0)
    model = source.scan()["demo"]
    assert model.problem is None
    for found in model.versions.values():
        source.verify(found)
    return list(model.versions)


def start(program: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=REPOSITORY_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(*processes: "subprocess.Popen[str]") -> None:
    """Lets processes that have said that they are ready begin, all at once."""
    for process in processes:
        assert line_of(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_without_apply_nothing_happens(root: Path) -> None:
    before = sorted(root.rglob("*"))
    decisions = prune(root, "demo", RULES, apply=False)
    assert [(each.version, each.reasons, each.size_bytes > 100) for each in decisions] == [
        (1, (), True),
        (2, (), True),
        (3, ("the newest",), True),
    ]
    assert sorted(root.rglob("*")) == before


def test_what_goes_is_gone_and_written_down(root: Path) -> None:
    add(root, parent=2)
    assert [each.version for each in prune(root, "demo", RULES, apply=True) if not each.reasons] == [1, 3]
    assert versions(root) == [2, 4]
    assert sorted(path.name for path in (root / "demo").iterdir()) == ["2", "4", JOURNAL_FILE]
    removed = read_pruned(root / "demo")
    assert list(removed) == [1, 3]
    assert removed[1].parent is None
    assert removed[1].who
    assert [each for each in prune(root, "demo", RULES, apply=True) if not each.reasons] == []


def test_the_journal_keeps_a_parent_and_forgives_a_torn_line(root: Path) -> None:
    add(root, parent=3)
    add(root)
    prune(root, "demo", RULES, apply=True)
    assert read_pruned(root / "demo")[4].parent == 3
    with (root / "demo" / JOURNAL_FILE).open("ab") as file:
        file.write(b'{"at": "20')
    assert list(read_pruned(root / "demo")) == [1, 2, 3, 4]
    add(root)
    prune(root, "demo", RULES, apply=True)
    assert list(read_pruned(root / "demo")) == [1, 2, 3, 4, 5]


def test_a_leased_version_and_its_parents_stay(root: Path) -> None:
    add(root, parent=1)
    add(root)
    held = lease(root / "demo" / "4")
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [1, 4, 5]
    held.release()
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [5]


def test_rollback_targets_stay(root: Path) -> None:
    set_alias(root / "demo", "champion", 1)
    set_alias(root / "demo", "champion", 2)
    prune(root, "demo", Rules(1, timedelta(days=14)), apply=True)
    assert versions(root) == [1, 2, 3]
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [2, 3]


def test_what_cannot_be_understood_is_not_pruned(root: Path) -> None:
    (root / "demo" / "3" / "manifest.json").write_text("{")
    assert all(each.reasons for each in prune(root, "demo", RULES, apply=True))
    (root / "demo" / "aliases.json").write_text("[]")
    with pytest.raises(RegistryError, match=r"aliases\.json"):
        prune(root, "demo", RULES, apply=True)
    assert sorted(LocalDirectory(root, 0.0).scan()["demo"].versions) == [1, 2, 3]


def test_links_are_not_followed(root: Path) -> None:
    (root / "demo" / "1").rename(root / "demo" / "store")
    (root / "demo" / "1").symlink_to("store")
    (root / "other").symlink_to("demo")
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [1, 3]
    with pytest.raises(RegistryError, match="not in the repository itself"):
        prune(root, "other", RULES, apply=True)
    assert (root / "demo" / "store" / "model.onnx").is_file()


@pytest.mark.parametrize(("step", "left"), [("journal", [1, 2, 3]), ("removal", [3])])
def test_a_kill_leaves_whole_versions_or_none(root: Path, step: str, left: list[int]) -> None:
    with start(PRUNER, str(root), step) as process:
        try:
            go(process)
            assert line_of(process) == "there"
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert versions(root) == left
    hidden = [path for path in (root / "demo").iterdir() if path.name.startswith(".pruned-")]
    assert len(hidden) == (2 if step == "removal" else 0)
    # the next one finishes the work, and the locks of the killed one are gone
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [3]
    assert sorted(path.name for path in (root / "demo").iterdir()) == ["3", JOURNAL_FILE]


def test_the_hidden_folder_of_a_living_prune_is_left_to_it(root: Path) -> None:
    with start(PRUNER, str(root), "removal") as process:
        try:
            go(process)
            assert line_of(process) == "there"
            prune(root, "demo", RULES, apply=True)
            assert len(list((root / "demo").glob(".pruned-*"))) == 2
        finally:
            process.kill()


def test_the_lock_of_the_model_is_waited_for(root: Path) -> None:
    with locked(root / "demo"), start(PRUNER, str(root), "whole") as process:
        try:
            go(process)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            assert versions(root) == [1, 2, 3]
        finally:
            process.kill()


@pytest.mark.parametrize("turn", range(6))
def test_whoever_loads_a_version_has_it_whole_or_is_told_that_it_is_gone(root: Path, turn: int) -> None:
    with start(LOADER, str(root)) as loader, start(PRUNER, str(root), "whole") as pruner:
        try:
            if turn == 0:
                go(loader)
                assert line_of(loader) == "loaded"
                go(pruner)
                assert line_of(pruner) == "done"
                assert versions(root) == [1, 3]
            elif turn == 1:
                assert line_of(loader) == "ready"
                go(pruner)
                assert line_of(pruner) == "done"
                assert loader.stdin is not None
                loader.stdin.write("\n")
                loader.stdin.flush()
                assert line_of(loader) == "version 1 was removed"
                assert versions(root) == [3]
            else:
                go(loader, pruner)
                said, done = line_of(loader), line_of(pruner)
                assert done == "done"
                assert (said, versions(root)) in [("loaded", [1, 3]), ("version 1 was removed", [3])]
        finally:
            loader.kill()
            pruner.kill()


def test_the_journal_is_one_json_object_per_line(root: Path) -> None:
    prune(root, "demo", RULES, apply=True)
    lines = [json.loads(line) for line in (root / "demo" / JOURNAL_FILE).read_text().splitlines()]
    assert [(line["version"], sorted(line)) for line in lines] == [
        (version, ["at", "parent", "version", "who"]) for version in (1, 2)
    ]


def test_a_disk_that_refuses_half_way_leaves_whole_versions(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = append_line

    def full(path: Path, line: str) -> None:
        if '"version":2' in line:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, line)

    with monkeypatch.context() as patch:
        patch.setattr("server.registry.prune.append_line", full)
        with pytest.raises(OSError, match="No space left"):
            prune(root, "demo", RULES, apply=True)
    assert versions(root) == [2, 3]
    assert not list((root / "demo").glob(".pruned-*"))
    prune(root, "demo", RULES, apply=True)
    assert versions(root) == [3]


def test_what_was_measured_goes_with_its_version(root: Path) -> None:
    for number in (1, 3):
        kept = root / "demo" / MEASURED_FOLDER / str(number)
        kept.mkdir(parents=True)
        (kept / "cpu.onnx.json").write_text("{}")
    prune(root, "demo", RULES, apply=True)
    assert [path.name for path in (root / "demo" / MEASURED_FOLDER).iterdir()] == ["3"]
