"""The watch: wakes for what becomes visible, not for what is still incoming, and always on the timer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

import pytest

from server.registry import watch
from server.registry.durable import write_atomically
from server.registry.watch import changes

LONG_S = 600.0
WAIT_S = 20.0


@contextmanager
def woken(root: Path, rescan_s: float) -> Iterator["Queue[None]"]:
    """A queue that receives one item for each time the watch yields."""
    stop, seen = threading.Event(), Queue[None]()

    def follow() -> None:
        for _ in changes(root, stop, rescan_s):
            seen.put(None)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_it_wakes_when_it_stands_and_then_for_each_change(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with woken(tmp_path, LONG_S) as seen:
        seen.get(timeout=WAIT_S)
        for name in ("model.toml", "aliases.json"):
            (tmp_path / "demo" / name).write_text("")
            seen.get(timeout=WAIT_S)


def test_it_sleeps_while_a_version_is_incoming_and_wakes_when_it_is_there(tmp_path: Path) -> None:
    incoming = tmp_path / "demo" / ".incoming-1"
    incoming.mkdir(parents=True)
    with woken(tmp_path, LONG_S) as seen:
        seen.get(timeout=WAIT_S)
        (incoming / "model.onnx").write_bytes(b"model")
        with pytest.raises(Empty):
            seen.get(timeout=1.0)
        incoming.rename(tmp_path / "demo" / "1")
        seen.get(timeout=WAIT_S)


def test_what_a_load_has_measured_wakes_nobody(tmp_path: Path) -> None:
    (tmp_path / "demo" / "1").mkdir(parents=True)
    with woken(tmp_path, LONG_S) as seen:
        seen.get(timeout=WAIT_S)
        kept = tmp_path / "demo" / ".measured" / "1"
        kept.mkdir(parents=True)
        write_atomically(kept / "cpu.onnx.json", b"{}")
        with pytest.raises(Empty):
            seen.get(timeout=1.0)
        (tmp_path / "demo" / "1" / "model.onnx").write_bytes(b"model")
        seen.get(timeout=WAIT_S)


def test_it_wakes_on_the_timer_without_any_change(tmp_path: Path) -> None:
    with woken(tmp_path, 0.01) as seen:
        for _ in range(3):
            seen.get(timeout=WAIT_S)


def test_without_file_events_the_timer_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watch, "watch", refuse)
    with woken(tmp_path, 0.01) as seen:
        for _ in range(3):
            seen.get(timeout=WAIT_S)
    assert "inotify watch limit reached" in caplog.text
