"""A server of one's own: private, gone with whoever started it, and clear about why there is none."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from feature_client import embedded
from feature_client.embedded import EmbeddedServer, server_program, start_embedded
from feature_client.errors import StoreError
from feature_client.redis_store import RedisStore
from tests.feature_client.rows_for_stores import row

ROOT = Path(__file__).parents[2]
STARTS = """
import signal, sys
from feature_client.embedded import start_embedded
# a shell may have started the tests with interrupts ignored, and so this
signal.signal(signal.SIGINT, signal.default_int_handler)
server = start_embedded()
print(server.pid, server.url.removeprefix("unix://"), flush=True)
sys.stdin.read(1)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def await_gone(pid: int, folder: Path) -> None:
    until = time.monotonic() + 20
    while alive(pid) or folder.exists():
        assert time.monotonic() < until, "the server outlives who started it"
        time.sleep(0.01)


def test_it_is_private_and_gone_when_closed() -> None:
    with start_embedded() as server:
        path = Path(server.url.removeprefix("unix://"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
        store = RedisStore(server.url)
        assert store.write([(b"k", row(1))], 60) == 1
        assert store.read([b"k"], 5) == [row(1)]
        store.close()
        assert alive(server.pid)
    assert not alive(server.pid)
    assert not path.parent.exists()
    server.close()


def test_two_are_two() -> None:
    with start_embedded() as first, start_embedded() as second:
        stores = RedisStore(first.url), RedisStore(second.url)
        stores[0].write([(b"k", row(1))], 60)
        assert stores[1].read([b"k"], 5) == [None]
        for store in stores:
            store.close()


@pytest.mark.parametrize("how", ["killed", "interrupted", "exits"])
def test_it_ends_with_the_process_that_started_it(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, path = parent.stdout.readline().split()
        assert alive(int(pid))
        if how == "exits":
            parent.communicate("x")
        else:
            parent.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        parent.wait()
        await_gone(int(pid), Path(path).parent)


def test_a_forked_child_does_not_take_it_along() -> None:
    with start_embedded() as server:
        child = os.fork()
        if child == 0:
            server.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store = RedisStore(server.url)
        store.ping(5)
        store.close()


def test_a_server_that_died_is_closed_all_the_same() -> None:
    server = start_embedded()
    os.kill(server.pid, signal.SIGKILL)
    server.close()
    assert not Path(server.url.removeprefix("unix://")).parent.exists()


def test_a_server_that_hangs_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STOP_S", 0.1)
    server = start_embedded()
    os.kill(server.pid, signal.SIGSTOP)
    server.close()
    assert not alive(server.pid)


def test_a_long_path_of_temporary_files_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with start_embedded() as server:
        assert len(server.url) < 110
    assert list(deep.iterdir()) == []


def test_without_a_program_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}" if name == "redis-server" else None)
    assert server_program() == Path("/opt/redis-server")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert server_program() is None
    with pytest.raises(StoreError, match="install the extra 'store'"):
        start_embedded()


@pytest.mark.parametrize(
    ("script", "says"),
    [("echo no such option >&2; exit 3", "ended at once: no such option"), ("exit 3", "ended at once: exit status 3")],
)
def test_a_program_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "server_program", lambda: program)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StoreError, match=says):
        start_embedded()
    assert list(tmp_path.iterdir()) == [program]


def test_a_program_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "server_program", lambda: program)
    with pytest.raises(StoreError, match="did not come up in time"):
        EmbeddedServer(start_s=0.05)
