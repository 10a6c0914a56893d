"""Models that ask to be trained again, end to end: verdicts in, events out, over restarts and receivers that are away."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.core.monitoring_settings import DeliverySettings, ModelMonitoring, RetrainSettings
from server.core.versions import VersionKey
from server.monitoring.delivery import Destination
from server.monitoring.event_command import EventCommand
from server.monitoring.redis_events import RedisEvents
from server.monitoring.retraining import Retraining, destinations_of
from server.monitoring.webhook import Webhook
from tests.feature_client.servers import tcp_server
from tests.monitoring.receiving import Receiver, receiver
from tests.monitoring.test_delivery import until, verified
from tests.verdicts import HOUR_US, KEY, START_US, alarming, quality, verdict

NOW_US = START_US + 2 * HOUR_US
DAY_S = 86_400.0
ROOT = Path(__file__).parents[2]
SETTINGS = ModelMonitoring(retrain=RetrainSettings(cool_down_s=DAY_S))


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Receiver]:
    (tmp_path / "key").write_bytes(b"the key of this test")
    with receiver() as made:
        yield made


def retraining(
    folder: Path | None, *destinations: Destination, retry_max_s: float = 0.01, settings: ModelMonitoring = SETTINGS
) -> Retraining:
    made = Retraining(destinations, folder, retry_max_s, lambda: START_US)
    made.serve(KEY, settings)
    return made


def webhook(hook: Receiver, tmp_path: Path) -> Destination:
    return Webhook(hook.url, tmp_path / "key", 10.0)


class Nobody:
    """Never receives anything."""

    name = "webhook"

    def deliver(self, event: Any) -> None:
        raise AssertionError("a bug of a destination")

    def close(self) -> None: ...


def test_an_alarm_reaches_everybody_once_and_then_there_is_silence(hook: Receiver, tmp_path: Path) -> None:
    with tcp_server(tmp_path / "redis") as server:
        got = tmp_path / "got"
        copy = f"import sys; open({str(got)!r}, 'ab').write(sys.stdin.buffer.read())"
        stated = DeliverySettings(
            webhook=hook.url,
            hmac_key_file=str(tmp_path / "key"),
            redis=server.url,
            stream="retrain",
            command=(sys.executable, "-c", copy),
            timeout_s=20.0,
        )
        hook.answers = [(503, {}), (429, {"Retry-After": "0"})]
        models = retraining(tmp_path / "events", *destinations_of(stated, RedisEvents))
        try:
            (event,) = models.consider([verdict(0), alarming(1)], (), NOW_US)
            until(lambda: models.waiting == 0, "delivered to all")
            assert models.consider([alarming(2)], (), NOW_US + HOUR_US) == []
            entries: Any = server.admin.xrange("retrain")
            assert [fields[b"event"] for _, fields in entries] == [event.body]
            assert got.read_bytes() == event.body
            documents = [verified(request, b"the key of this test") for request in hook.requests]
            assert [each["id"] for each in documents] == [event.id] * 3
            until(lambda: models.events().get(("ranker", "drift", "delivered")) == 1, "counted")
            assert models.events() == {
                ("ranker", "drift", "raised"): 1,
                ("ranker", "drift", "received"): 3,
                ("ranker", "drift", "delivered"): 1,
                ("ranker", "drift", "failed"): 2,
            }
            (later,) = models.consider([alarming(30)], (), NOW_US + 24 * HOUR_US)
            assert later.id != event.id
        finally:
            models.close()
    assert all(
        isinstance(each, kind) for each, kind in zip(models._destinations, (Webhook, RedisEvents, EventCommand), strict=True)
    )


def test_an_event_that_was_not_received_is_delivered_by_the_next_process_under_the_same_id(
    hook: Receiver, tmp_path: Path
) -> None:
    folder = tmp_path / "events"
    hook.answers = [(500, {})]
    first = retraining(folder, webhook(hook, tmp_path), retry_max_s=3600.0)
    (event,) = first.consider([alarming(1)], (), NOW_US)
    assert hook.came.acquire(timeout=20)
    first.close()
    (folder / "state.json").unlink()  # killed before that was written: what waits says enough
    second = retraining(folder, webhook(hook, tmp_path))
    try:
        until(lambda: second.waiting == 0, "delivered")
        assert [headers["webhook-id"] for headers, _ in hook.requests] == [event.id] * 2
        assert hook.requests[0][1] == hook.requests[1][1] == event.body
        assert second.consider([alarming(2)], (), NOW_US + HOUR_US) == []
    finally:
        second.close()
    third = retraining(folder, webhook(hook, tmp_path))
    try:
        assert third.consider([alarming(3)], (), NOW_US + 23 * HOUR_US) == [], "its silence outlives the process"
        assert len(third.consider([alarming(4)], (), NOW_US + 24 * HOUR_US)) == 1
    finally:
        third.close()


RECEIVING = """
import os, sys, time
with open(sys.argv[1] + ".new", "wb") as file:
    file.write(b"%d " % os.getpid() + sys.stdin.buffer.read())
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
LIFE = """
import sys, time
from pathlib import Path
from server.monitoring.event_command import EventCommand
from tests.monitoring.test_retraining import NOW_US, RECEIVING, retraining
from tests.verdicts import alarming
command = EventCommand((sys.executable, "-c", RECEIVING, sys.argv[2]), 600.0)
retraining(Path(sys.argv[1]), command).consider([alarming(1)], (), NOW_US)
time.sleep(600)
"""


def test_a_process_that_is_killed_while_it_delivers_has_lost_nothing(tmp_path: Path) -> None:
    folder, got = tmp_path / "events", tmp_path / "got"
    life = subprocess.Popen([sys.executable, "-c", LIFE, str(folder), str(got)], cwd=ROOT)
    try:
        until(got.exists, "an event has reached the command")
    finally:
        life.kill()
        life.wait()
    process_id, _, body = got.read_bytes().partition(b" ")
    os.kill(int(process_id), signal.SIGKILL)  # it leads a session of its own, and outlives who started it
    copy = f"import sys; open({str(tmp_path / 'again')!r}, 'wb').write(sys.stdin.buffer.read())"
    models = retraining(folder, EventCommand((sys.executable, "-c", copy), 20.0))
    try:
        until(lambda: models.waiting == 0, "delivered")
        assert (tmp_path / "again").read_bytes() == body
        assert models.consider([alarming(2)], (), NOW_US + HOUR_US) == []
    finally:
        models.close()


def test_while_nobody_receives_there_is_one_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = retraining(tmp_path, Nobody(), settings=ModelMonitoring(retrain=RetrainSettings(cool_down_s=0.0)))
    try:
        assert len(models.consider([alarming(1)], (), NOW_US)) == 1
        assert models.consider([alarming(2)], (), NOW_US + 100 * HOUR_US) == []
        until(lambda: models.events().get(("ranker", "drift", "rejected")), "tried")
    finally:
        models.close()
    assert models.waiting == 1


def test_without_destinations_events_are_raised_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = retraining(tmp_path)
    (event,) = models.consider([alarming(1)], (), NOW_US)
    assert models.consider([alarming(2)], (), NOW_US) == []
    models.close()
    assert models.waiting == 0
    (record,) = [each for each in caplog.records if each.getMessage() == "a model asks to be trained again"]
    assert vars(record)["event_id"] == event.id


def test_without_a_folder_it_says_that_events_are_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    models = retraining(None, Nobody())
    models.close()
    models.close()
    assert "in memory alone" in caplog.records[0].getMessage()


def test_what_cannot_be_kept_was_not_raised_and_is_due_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = retraining(tmp_path, Nobody())

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("server.monitoring.outbox.write_atomically", full)
        patched.setattr("server.monitoring.retraining.write_atomically", full)
        assert models.consider([alarming(1)], (), NOW_US) == []
        assert models.consider([alarming(2)], (), NOW_US + 120_000_000) == []
    assert models.events() == {("ranker", "drift", "unkept"): 1}
    assert len(models.consider([alarming(3)], (), NOW_US)) == 1
    models.close()
    said = {record.getMessage() for record in caplog.records}
    assert {"a retrain event could not be kept", "what is remembered of retraining cannot be written"} <= said


def test_when_too_many_wait_nothing_more_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = retraining(tmp_path, Nobody())
    other = VersionKey("second", 1)
    models.serve(other, SETTINGS)
    monkeypatch.setattr(models._outbox, "_limit", 1)
    raised = models.consider([alarming(1), replace(alarming(1), key=other)], (), NOW_US)
    models.close()
    assert [event.model for event in raised] == ["ranker"]
    assert models.events()["second", "drift", "unkept"] == 1


def test_what_is_remembered_and_cannot_be_read_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state.json").write_text("{")
    models = retraining(tmp_path, Nobody())
    assert len(models.consider([alarming(1)], (), NOW_US)) == 1
    models.close()
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].getMessage() == "what was remembered of retraining cannot be read"


def test_the_newest_version_that_serves_decides_and_who_left_asks_for_nothing(tmp_path: Path) -> None:
    models = retraining(tmp_path, Nobody())
    newer = KEY._replace(version=KEY.version + 1)
    models.serve(newer, ModelMonitoring(retrain=RetrainSettings(on=())))
    assert models.consider([alarming(1)], (quality(),), NOW_US) == []
    models.leave(newer)
    models.leave(newer)
    models.leave(VersionKey("never", 1))
    assert len(models.consider([alarming(2)], (quality(),), NOW_US)) == 1
    models.leave(KEY)
    assert models.consider([alarming(3)], (quality(),), NOW_US + 100 * HOUR_US) == []
    models.close()


def test_where_nothing_is_stated_there_is_nobody() -> None:
    def none(url: str, stream: str) -> Destination:
        raise AssertionError(url)

    assert destinations_of(DeliverySettings(), none) == []
