"""Who reads the stream of all replicas comes to what one process would that saw everything, wherever it is killed."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.core.hashing import id_hash
from server.core.monitoring_settings import ModelMonitoring, QualitySettings
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import with_digest
from server.monitoring.build import build
from server.monitoring.monitors import Monitors
from server.monitoring.outcome import Outcome
from server.monitoring.redis_sink import RedisOutcomes, RedisSink, RedisWriter
from server.monitoring.redis_source import RedisSource
from server.monitoring.samples import Samples
from server.monitoring.stream_judging import StreamJudging
from server.monitoring.verdict import DriftState
from tests.feature_client.servers import Server, tcp_server
from tests.monitoring.rows import rows_of

STREAM = "podium:samples"
KEY, OTHER = VersionKey("fraud", 3), VersionKey("fraud", 4)
WINDOW_US = 60_000_000
FIRST_US = 1_700_000_000 * 1_000_000 // WINDOW_US * WINDOW_US
SETTINGS = ModelSettings(
    monitoring=ModelMonitoring(
        window_s=60, grace_s=10, min_rows=20, time_input="at", redact=("secret",), quality=QualitySettings(output="score")
    )
)


def served(
    seed: int, minute: int, *, key: VersionKey = KEY, arm: str = "champion", shift: float = 0.0, rows: int = 40
) -> Samples:
    """Rows of one minute."""
    generator = np.random.default_rng(seed)
    amounts = generator.normal(shift, 1, (rows, 1))
    made = replace(
        rows_of(rows, seed, key=key, arm=arm),
        time_us=FIRST_US + minute * WINDOW_US + np.sort(generator.integers(0, WINDOW_US, rows)),
        id_hash=np.array([id_hash(f"{seed}-{row}") for row in range(rows)], dtype=np.uint64),
        row=np.zeros(rows, dtype=np.int32),
        inputs={"amount": amounts.astype(np.float32)},
        callers={},
        outputs={"score": 1 / (1 + np.exp(-amounts))},
        features=(),
        statuses=np.empty((rows, 0), dtype=np.uint8),
    )
    assert isinstance(made, Samples)
    return made


BASELINE: Baseline = with_digest(build([served(0, 0, rows=3000)], SETTINGS))
FOUND = {KEY: (SETTINGS, BASELINE), OTHER: (SETTINGS, None)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tcp_server(tmp_path_factory.mktemp("judging")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    shared.command("FLUSHALL")
    return shared


def sink_to(server: Server) -> RedisSink:
    samples, losses = (RedisWriter(server.url, STREAM, 10**7) for _ in range(2))
    return RedisSink(samples, losses, lambda key: ((), {}))


def judging_of(
    server: Server,
    folder: Path | None,
    find: Callable[[VersionKey], Any] = FOUND.get,
    act: Callable[..., None] = lambda *given: None,
) -> StreamJudging:
    """At the end of the stream its clock is an hour on, so that what is complete is judged there, if it was not before."""
    later_us = time.time_ns() // 1000 + 3600 * 10**6
    later_us -= later_us % (10**9)
    return StreamJudging(
        lambda position, taking: RedisSource(server.url, STREAM, position, taking), find, folder, act, lambda: later_us
    )


def state(judging: StreamJudging) -> dict[str, Any]:
    """Everything that was found, for comparing: windows with their counts and numbers, detectors, quality."""
    versions = {
        f"{each.key} {each.arm}": [
            each.state,
            each.windows,
            each.open_rows,
            each.late_rows,
            each.learned_rows,
            each.misdated_rows,
            each.alarms,
        ]
        for each in judging.monitors.versions()
    }
    qualities = {f"{each.key} {each.arm}": each for each in judging.outcomes.readings()}
    return {"versions": repr(dict(sorted(versions.items()))), "qualities": repr(qualities), "counts": judging.outcomes.counts()}


def write_a_day(server: Server) -> int:
    """What two replicas and a caller that knows the truth put into the stream, in some order. The rows."""
    chosen = random.Random(5)
    replicas = [sink_to(server), sink_to(server)]
    truth = RedisOutcomes(RedisWriter(server.url, STREAM, 10**7))
    rows = 0
    for minute in range(24):
        for replica in (0, 1):
            seed = 1 + 2 * minute + replica
            sent = [served(seed, minute, shift=0.8 * (minute > 14))]
            if minute % 3 == 0:
                sent.append(served(seed + 1000, minute, arm="shadow", rows=7))
                sent.append(served(seed + 2000, minute, key=OTHER, rows=11))
            replicas[replica].write(sent)
            rows += sum(each.rows for each in sent)
            if chosen.random() < 0.3:
                replicas[replica].lost(KEY, "champion", chosen.randrange(1, 9), FIRST_US + minute * WINDOW_US)
                replicas[replica].idle()
        earlier = 1 + 2 * max(0, minute - 2)
        truth.send([Outcome("fraud", 0, f"{earlier}-{row}", 0, float(chosen.random() < 0.5)) for row in range(0, 40, 2)])
    truth.close()
    for each in replicas:
        each.close()
    return rows


def test_a_reader_that_is_killed_anywhere_comes_to_what_one_does_that_never_was(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_a_day(server)
    monkeypatch.setattr("server.monitoring.redis_source._ENTRIES", 3)
    whole = judging_of(server, None)
    while whole.step(0):
        pass
    expected = state(whole)
    assert whole.read_rows == rows
    assert "ALARM" in expected["versions"]
    assert "labelled=440" in expected["qualities"]
    chosen, starts, interrupted = random.Random(7), 0, 0
    for run in range(3):
        folder, done = tmp_path / str(run), False
        while not done:
            judging = judging_of(server, folder)
            starts += 1
            for _ in range(chosen.randrange(1, 12)):
                done = not judging.step(0)
                if done:
                    break
                if chosen.random() < 0.2:
                    judging.save()
            else:
                if chosen.random() < 0.3:
                    interrupted += interrupted_save(judging, monkeypatch)
                continue
        assert state(judging) == expected
        judging.save()
        assert state(judging_of(server, folder)) == expected
    assert starts > 10
    assert interrupted > 0


def interrupted_save(judging: StreamJudging, monkeypatch: pytest.MonkeyPatch) -> int:
    """A process that is killed when the monitors' files are written and nothing else is; 0 where it would have kept nothing."""

    class Killed(BaseException):
        pass

    def kill(path: Path, data: bytes) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("server.monitoring.stream_judging.write_atomically", kill)
        try:
            judging.save()
        except Killed:
            return 1
    return 0


def test_it_finds_what_a_process_does_that_saw_every_row_itself(server: Server) -> None:
    write_a_day(server)
    judging = judging_of(server, None)
    while judging.step(0):
        pass
    alone = Monitors(None, lambda: FIRST_US + 10**12)
    alone.serve(KEY, SETTINGS, BASELINE, ("champion",))
    for minute in range(24):
        for replica in (0, 1):
            alone.add([served(1 + 2 * minute + replica, minute, shift=0.8 * (minute > 14))])
    alone.tick(FIRST_US + 10**12)
    (own,) = alone.versions()
    (other,) = [each for each in judging.monitors.versions() if (each.key, each.arm) == (KEY, "champion")]
    assert len(own.windows) > 20
    assert [each.findings for each in own.windows] == [each.findings for each in other.windows]
    assert [(each.rows, each.log_family, each.alarmed) for each in own.windows] == [
        (each.rows, each.log_family, each.alarmed) for each in other.windows
    ]
    assert (own.state, own.alarms) == (other.state, other.alarms)
    assert sum(each.dropped for each in other.windows) > 0
    assert own.state in (DriftState.ALARM, DriftState.DEGRADED)


def test_rows_of_a_version_that_is_not_in_the_repository_are_counted_as_that(server: Server) -> None:
    stranger = VersionKey("stranger", 1)
    sink = sink_to(server)
    sink.write([served(1, 0, key=stranger)])
    sink.lost(stranger, "champion", 3, 0)
    sink.close()
    judging = judging_of(server, None)
    while judging.step(0):
        pass
    assert judging.monitors.unknown_rows() == {stranger: 40}
    assert judging.dropped() == {("stream", "trimmed"): 0, ("stream", "damaged"): 0}
    assert not judging.settings()


def test_settings_that_change_and_versions_that_go_are_noticed(server: Server) -> None:
    found: dict[VersionKey, Any] = dict(FOUND)
    sink, judging = sink_to(server), judging_of(server, None, found.get)
    sink.write([served(1, 0), served(2, 0, key=OTHER)])
    while judging.step(0):
        pass
    (before,) = [each for each in judging.monitors.versions() if each.key == KEY]
    found[KEY] = (
        SETTINGS.model_copy(update={"monitoring": SETTINGS.monitoring.model_copy(update={"window_s": 600.0})}),
        BASELINE,
    )
    del found[OTHER]
    judging.look()
    assert set(judging.settings()) == {KEY}
    (after,) = [each for each in judging.monitors.versions() if each.key == KEY]
    assert (before.open_rows, after.open_rows) == (40, 0)
    sink.write([served(3, 0, key=OTHER)])
    while judging.step(0):
        pass
    assert judging.monitors.unknown_rows() == {OTHER: 40}
    sink.close()


def test_a_stream_that_cannot_be_read_is_said_and_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tcp_server(tmp_path / "server") as server:
        sink, judging = sink_to(server), judging_of(server, None)
        sink.write([served(1, 0)])
        assert judging.lag_s() == 0.0
        assert judging.step(0) == 1
        assert 3000 - 1000 < judging.lag_s() < 3700
        server.kill()
        assert judging.step(0) == judging.step(0) == 0
        assert [each.message for each in caplog.records].count("the stream of samples cannot be read") == 1
        server.start()
        sink.write([served(2, 0)])
        while not judging.step(0):
            pass
        assert judging.read_rows == 80
        sink.close()


@pytest.mark.parametrize("name", ["stream.position", "stream.outcomes"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff"])
def test_files_that_cannot_be_understood_are_set_aside_and_nothing_is_counted_twice(
    server: Server, tmp_path: Path, name: str, damage: bytes
) -> None:
    write_a_day(server)
    judging = judging_of(server, tmp_path)
    while judging.step(0):
        pass
    judging.save()
    expected = state(judging)
    (tmp_path / name).write_bytes(damage)
    again = judging_of(server, tmp_path)
    assert (tmp_path / f"{name}.unreadable").read_bytes() == damage
    while again.step(0):
        pass
    assert state(again)["versions"] == expected["versions"]


def test_a_disk_that_refuses_keeps_what_was_there(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_a_day(server)
    judging = judging_of(server, tmp_path)
    judging.step(0)
    judging.save()
    before = json.loads((tmp_path / "stream.position").read_bytes())

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("server.monitoring.stream_judging.write_atomically", refuse)
        while judging.step(0):
            judging.save()
    assert json.loads((tmp_path / "stream.position").read_bytes()) == before
    again = judging_of(server, tmp_path)
    while again.step(0):
        pass
    assert state(again) == state(judging)


def test_a_stream_that_begins_anew_is_counted_though_its_ids_are_small(server: Server, tmp_path: Path) -> None:
    sink, judging = sink_to(server), judging_of(server, tmp_path)
    sink.write([served(1, 0)])
    while judging.step(0):
        pass
    judging.save()
    fields: Any = server.command("XRANGE", STREAM, "-", "+")[0][1]
    server.command("FLUSHALL")
    words = [word for pair in ({**fields, b"w": b"another", b"c": b"0"}).items() for word in pair]
    server.command("XADD", STREAM, "5-0", *words)
    again = judging_of(server, tmp_path)
    while not again.step(0):
        pass
    assert sum(each.open_rows for each in again.monitors.versions()) == 80
    sink.close()


def test_who_acts_is_told_once_of_each_window(server: Server) -> None:
    write_a_day(server)
    told: list[int] = []

    def act(verdicts: Sequence[Any], qualities: Sequence[Any], now_us: int) -> None:
        told.extend(each.start_us for each in verdicts if (each.key, each.arm) == (KEY, "champion"))

    judging = judging_of(server, None, act=act)
    while judging.step(0):
        pass
    judging.step(0.01)
    assert len(told) == len(set(told)) > 20
