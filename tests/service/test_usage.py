"""The file of one server: read at the start, whole at every instant, and no reason to stop serving."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from server.core.versions import VersionKey
from server.registry.durable import write_atomically
from server.service import usage
from server.service.usage import UsageFile, name_of
from server.telemetry.consumers import Consumers
from server.telemetry.usage import Uses, read_usage

KEY = VersionKey("m", 3)
SOON_S, NEVER_S = 0.001, 3600.0


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())


def kept(path: Path) -> dict[str, int]:
    uses: Uses = read_usage(path.read_bytes(), str(path))
    return {key.consumer: use.requests for key, use in uses.items()}


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - a thread's doing
        await asyncio.sleep(0.001)


def test_what_was_counted_is_written_and_gone_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    path = folder / "one.json"

    async def main() -> None:
        for total in (1, 2, 3):
            consumers = Consumers()
            file = UsageFile(consumers, folder, NEVER_S)
            await file.open("one")
            consumers.count(KEY, "a")
            await file.close()
            await file.close()
            assert kept(path) == {"a": total}
        assert [each.name for each in folder.iterdir()] == ["one.json"]

    run(main)


def test_it_is_written_again_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr(usage, "write_atomically", lambda path, data: writes.append(data))

    async def main() -> None:
        consumers = Consumers()
        file = UsageFile(consumers, tmp_path, SOON_S)
        await file.open("one")
        consumers.count(KEY, "a")
        await until(lambda: len(writes) == 1)
        consumers.count(KEY, "a")
        await until(lambda: len(writes) == 2)
        await file.close()
        assert len(writes) == 2

    run(main)


def test_without_a_folder_it_only_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folds: list[int] = []

    class Counting(Consumers):
        def fold(self) -> None:
            folds.append(1)
            super().fold()

    async def main() -> None:
        consumers = Counting()
        file = UsageFile(consumers, None, SOON_S)
        await file.open("one")
        consumers.count(KEY, "a")
        await until(lambda: bool(folds))
        await file.close()
        assert [row.requests for row in consumers.rows()] == [1]

    run(main)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []
    real = write_atomically
    full = True

    def write(path: Path, data: bytes) -> None:
        attempts.append(1)
        if full:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(usage, "write_atomically", write)

    async def main() -> None:
        nonlocal full
        consumers = Consumers()
        file = UsageFile(consumers, tmp_path, SOON_S)
        await file.open("one")
        consumers.count(KEY, "a")
        await until(lambda: len(attempts) >= 3)
        full = False
        await until((tmp_path / "one.json").exists)
        assert kept(tmp_path / "one.json") == {"a": 1}
        full = True
        consumers.count(KEY, "a")
        seen = len(attempts)
        await until(lambda: len(attempts) >= seen + 2)
        await file.close()

    with caplog.at_level(logging.ERROR):
        run(main)
    assert [record.getMessage() for record in caplog.records] == ["what consumers use cannot be kept"] * 2


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def main() -> None:
        consumers = Consumers()
        file = UsageFile(consumers, tmp_path / "file" / "usage", NEVER_S)
        await file.open("one")
        consumers.count(KEY, "a")
        await file.close()
        assert [row.requests for row in consumers.rows()] == [1]

    run(main)
    assert [record.getMessage() for record in caplog.records] == ["what consumers use cannot be kept"]


def test_a_file_nobody_can_read_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one.json").write_bytes(b"what is this")

    async def main() -> None:
        consumers = Consumers()
        file = UsageFile(consumers, tmp_path, NEVER_S)
        await file.open("one")
        consumers.count(KEY, "a")
        await file.close()

    run(main)
    assert (tmp_path / "one.json.unreadable").read_bytes() == b"what is this"
    assert kept(tmp_path / "one.json") == {"a": 1}
    assert [record.getMessage() for record in caplog.records] == ["what consumers used before cannot be read"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    for name in (".one.json-0123", ".one.json.unreadable", ".other.json-0123"):
        (tmp_path / name).write_bytes(b"{")

    async def main() -> None:
        file = UsageFile(Consumers(), tmp_path, NEVER_S)
        await file.open("one")
        await file.close()

    run(main)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".one.json.unreadable", ".other.json-0123"]


def test_a_server_that_nobody_named_is_called_after_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "pod-7")
    assert name_of("127.0.0.1:8001") == "pod-7-127.0.0.1-8001"
    assert name_of("[::1]:8001") == "pod-7--1-8001"
    assert name_of("unix:/run/podium/../grpc.sock") == "pod-7-unix-run-podium-..-grpc.sock"
    assert len(name_of("x" * 500)) == 128
