"""Events that wait: none is lost, whenever the process that keeps them is killed."""

import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from server.core.versions import VersionKey
from server.monitoring.events import Cause, Event, event
from server.monitoring.outbox import Outbox

BOTH = ("webhook", "redis")


def made(model: str = "m", time_us: int = 5) -> Event:
    return event([Cause("drift", VersionKey(model, 1), "champion", "moved", 0, 1, 0)], time_us)


class Killed(BaseException):
    """The process ends here: nothing after it happens."""


def test_an_event_is_kept_until_everybody_has_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, BOTH)
    older, newer = made("a", 3), made("b", 9)
    assert outbox.put(newer)
    assert outbox.put(older)
    assert outbox.put(older)
    assert len(outbox) == 2
    assert outbox.waiting("webhook") == [older, newer]
    assert not outbox.confirm(older.id, "webhook")
    assert (outbox.waiting("webhook"), outbox.waiting("redis")) == ([newer], [older, newer])
    assert outbox.confirm(older.id, "redis")
    assert not outbox.confirm(older.id, "redis")
    assert outbox.models() == {"b": newer}
    assert [path.name for path in tmp_path.iterdir()] == [f"{newer.id}.event"]


def test_the_next_process_finds_what_waits_and_for_whom(tmp_path: Path) -> None:
    outbox, one = Outbox(tmp_path, BOTH), made()
    outbox.put(one)
    outbox.confirm(one.id, "redis")
    again = Outbox(tmp_path, BOTH)
    assert (again.waiting("webhook"), again.waiting("redis")) == ([one], [])
    assert len(Outbox(tmp_path, ("redis",))) == 0  # who has yet to confirm it is no destination any more
    assert list(tmp_path.iterdir()) == []


def test_in_memory_nothing_is_written(tmp_path: Path) -> None:
    outbox = Outbox(None, BOTH)
    assert outbox.put(made())
    assert not outbox.confirm(made().id, "redis")
    assert outbox.confirm(made().id, "webhook")
    assert len(outbox) == 0


def test_for_nobody_nothing_is_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, ())
    assert outbox.put(made())
    assert len(outbox) == 0


def test_there_is_room_for_so_many(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, BOTH, limit=2)
    assert outbox.put(made("a"))
    assert outbox.put(made("b"))
    assert not outbox.put(made("c"))
    assert outbox.put(made("a"))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, BOTH)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.monitoring.outbox.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        outbox.put(made())
    assert len(outbox) == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"event": 5}', b'{"event": "{}", "confirmed": []}'])
def test_a_file_that_cannot_be_read_is_left_for_somebody_who_can(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Outbox(tmp_path, BOTH).put(made())
    strange = tmp_path / "strange.event"
    strange.write_bytes(content)
    renamed = tmp_path / "renamed.event"
    renamed.write_bytes((tmp_path / f"{made().id}.event").read_bytes())
    outbox = Outbox(tmp_path, BOTH)
    assert outbox.waiting("redis") == [made()]
    assert (strange.exists(), renamed.exists()) == (True, True)
    assert [record.getMessage() for record in caplog.records] == ["an event that waits cannot be read"] * 2


DISK = ("os.fsync", "pathlib.Path.open", "pathlib.Path.replace", "pathlib.Path.unlink")
"""Every call by which an outbox changes the disk."""


class Disk:
    """Carries out so many calls; the next one is the last, made or not, and after it the process is gone."""

    def __init__(self, patched: pytest.MonkeyPatch, calls: int, last_is_made: bool) -> None:
        self.left, self.last_is_made, self.gone = calls, last_is_made, False
        for name in DISK:
            patched.setattr(name, self._cut(resolve_name(name)))

    def _cut(self, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.gone:
                raise Killed
            if self.left:
                self.left -= 1
                return real(*arguments, **named)
            self.gone = True
            if self.last_is_made and hasattr(opened := real(*arguments, **named), "close"):
                opened.close()
            raise Killed

        return call


@pytest.mark.parametrize("last_is_made", [False, True])
def test_killed_at_any_instant_nothing_is_lost_and_nothing_confirmed_is_delivered_again(
    last_is_made: bool, tmp_path: Path
) -> None:
    cut, kept_then, finished = 0, 0, False
    while not finished:
        folder = tmp_path / str(cut)
        folder.mkdir()
        one, kept, received, confirmed = made(), False, set[str](), set[str]()
        with pytest.MonkeyPatch.context() as patched:
            Disk(patched, cut, last_is_made)
            try:
                outbox = Outbox(folder, BOTH)
                kept = outbox.put(one)
                for destination in BOTH:
                    received.add(destination)
                    outbox.confirm(one.id, destination)
                    confirmed.add(destination)
                finished = True
            except Killed:
                kept_then += kept
        found = Outbox(folder, BOTH)
        for destination in BOTH:
            waiting = found.waiting(destination)
            assert waiting in ([], [one])
            if kept and destination not in received:
                assert waiting == [one], "lost"
            if destination in confirmed:
                assert waiting == [], "confirmed, and yet delivered again"
        for destination in BOTH:
            for each in found.waiting(destination):
                found.confirm(each.id, destination)
        assert [path.name for path in folder.iterdir()] == [], "something is left for ever"
        cut += 1
    assert cut > 9, "an event is opened, forced to disk, renamed, its folder forced; twice, and removed"
    assert kept_then > 4


def test_an_events_file_says_who_has_it(tmp_path: Path) -> None:
    outbox, one = Outbox(tmp_path, BOTH), made()
    outbox.put(one)
    outbox.confirm(one.id, "webhook")
    document = json.loads((tmp_path / f"{one.id}.event").read_bytes())
    assert document == {"event": one.body.decode(), "confirmed": ["webhook"]}
