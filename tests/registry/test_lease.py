"""Leases: who holds a folder, seen by other processes, and what the kernel does when one dies."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.core.errors import RegistryError
from server.registry.lease import Hold, hold, lease

REPOSITORY_ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from server.registry.lease import lease
held = lease(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "1"
    path.mkdir()
    return path


def taken(held: Hold | None) -> Hold:
    assert held is not None
    return held


def test_many_may_lease_and_none_may_remove_meanwhile(folder: Path) -> None:
    one, other = lease(folder), lease(folder)
    assert hold(folder) is None
    one.release()
    assert hold(folder) is None
    other.release()
    other.release()
    taken(hold(folder)).release()


@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_a_lease_writes_nothing(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    before = folder.stat().st_mtime_ns
    lease(folder).release()
    assert (folder.stat().st_mtime_ns, list(folder.iterdir())) == (before, [])


def test_a_lease_ends_with_its_process_however_that_ends(folder: Path) -> None:
    with another_process(folder) as process:
        assert hold(folder) is None
        process.kill()
        process.wait(30)
        taken(hold(folder)).release()


def test_a_lease_waits_for_whoever_writes_or_removes(folder: Path) -> None:
    writer = taken(hold(folder))
    with pytest.raises(RegistryError, match=r"^version 1 is held by whoever writes or removes it$"):
        lease(folder, wait_s=0)
    timer = threading.Timer(0.05, writer.release)
    timer.start()
    lease(folder, wait_s=60).release()
    timer.join()


def test_there_is_no_lease_on_what_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(handle: int, how: int) -> None:
        # renamed away between being opened and being locked
        if folder.exists():
            folder.rename(folder.with_name(".pruned-1"))
        real(handle, how)

    with monkeypatch.context() as patch:
        patch.setattr("server.registry.lease.fcntl.flock", flock)
        with pytest.raises(RegistryError, match=r"^version 1 was removed$"):
            lease(folder)
    # nothing of the attempt is left
    taken(hold(folder.with_name(".pruned-1"))).release()
    with pytest.raises(RegistryError, match=r"^version 1 was removed$"):
        lease(folder)
    folder.with_name("file").touch()
    with pytest.raises(RegistryError, match="cannot be opened: Not a directory"):
        lease(folder.with_name("file"))


def test_another_folder_of_that_name_is_not_the_one_that_was_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(handle: int, how: int) -> None:
        folder.rename(folder.with_name("old"))
        folder.mkdir()
        real(handle, how)

    monkeypatch.setattr("server.registry.lease.fcntl.flock", flock)
    with pytest.raises(RegistryError, match="was removed"):
        lease(folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_without_locks_a_version_is_loaded_and_never_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("server.registry.lease.fcntl.flock", flock)
    lease(folder).release()
    assert "version folders cannot be leased here" in caplog.text
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=os.strerror(number)):
        hold(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_any_other_fault_refuses_the_lease(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("server.registry.lease.fcntl.flock", flock)
    with pytest.raises(RegistryError, match="cannot be leased: Input/output error"):
        lease(folder)
