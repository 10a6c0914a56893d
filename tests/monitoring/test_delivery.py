"""Events on their way: by a webhook, a Redis stream and a command, all of them real; tried until they are received."""

import base64
import hashlib
import hmac
import json
import logging
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from feature_client.errors import StoreError
from server.monitoring.delivery import Courier, Undelivered, wait_s
from server.monitoring.event_command import EventCommand
from server.monitoring.events import Event, signed_headers
from server.monitoring.outbox import Outbox
from server.monitoring.redis_events import RedisEvents
from server.monitoring.webhook import Webhook, retry_after_s
from tests.feature_client.servers import free_port, tcp_server
from tests.monitoring.receiving import Receiver, raised, receiver

PATIENCE_S = 20.0
ROOT = Path(__file__).parents[2]
AWAY = Undelivered("away")


def until(true: Callable[[], Any], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.005)


@given(attempts=st.integers(1, 10_000), longest_s=st.floats(1.0, 1e5), draw=st.floats(0, 1, exclude_max=True))
def test_waits_double_up_to_the_longest(attempts: int, longest_s: float, draw: float) -> None:
    full_s = min(longest_s, 2.0 ** min(attempts - 1, 100))
    assert 0.8 * full_s <= wait_s(attempts, AWAY, longest_s, draw) <= full_s
    assert wait_s(attempts, Undelivered("no", rejected=True), longest_s, draw) == longest_s
    assert wait_s(attempts, Undelivered("full", retry_after_s=1e9), longest_s, draw) == longest_s
    assert wait_s(1, Undelivered("full", retry_after_s=7.0), 60.0, draw) == 7.0


class Listed:
    """Fails as it is told to, then receives."""

    name = "listed"

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.got = list(failures), list[Event]()

    def deliver(self, event: Event) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got.append(event)

    def close(self) -> None: ...


@contextmanager
def courier(outbox: Outbox, destination: Any, longest_s: float = 0.01) -> Iterator[tuple[Courier, list[tuple[str, str]]]]:
    told: list[tuple[str, str]] = []
    made = Courier(outbox, destination, longest_s, lambda event, result: told.append((event.id, result)))
    made.start()
    try:
        yield made, told
    finally:
        made.stop()
        destination.close()
        made.join(PATIENCE_S)
        assert not made.is_alive()


def test_an_event_is_tried_until_it_is_received_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, two = raised("a"), raised("b", 2)
    outbox = Outbox(None, ["listed"])
    outbox.put(one)
    listed = Listed(Undelivered("away"), Undelivered("gone", rejected=True), KeyError("bug"))
    with courier(outbox, listed) as (thread, told):
        until(lambda: listed.got, "received")
        outbox.put(two)
        thread.wake()
        until(lambda: len(outbox) == 0, "both received")
    assert listed.got == [one, two]
    assert told == [(one.id, result) for result in ("failed", "rejected", "rejected", "delivered")] + [(two.id, "delivered")]
    said = [
        (each.levelname, each.getMessage(), getattr(each, "reason", "")) for each in caplog.records if each.name != "asyncio"
    ]
    assert said[:4] == [
        ("WARNING", "a retrain event was not received", "away"),
        ("ERROR", "a retrain event was not received", "gone"),
        ("ERROR", "an event could not be delivered", ""),
        ("ERROR", "a retrain event was not received", "KeyError"),
    ]


def test_an_event_that_is_rejected_holds_up_no_other() -> None:
    bad, good = raised("bad", 1), raised("good", 2)
    outbox = Outbox(None, ["picky"])
    outbox.put(bad)
    outbox.put(good)

    class Picky(Listed):
        name = "picky"

        def deliver(self, event: Event) -> None:
            if event == bad:
                raise Undelivered("no", rejected=True)
            super().deliver(event)

    picky = Picky()
    with courier(outbox, picky, longest_s=3600.0):
        until(lambda: picky.got == [good], "the other one is received")
    assert outbox.waiting("picky") == [bad]


def test_a_confirmation_that_cannot_be_written_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path, ["listed", "other"])
    outbox.put(raised())

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.monitoring.outbox.write_atomically", full)
    listed = Listed()
    with courier(outbox, listed) as (_, told):
        until(lambda: told, "told")
    assert told == [(raised().id, "received")]
    assert (outbox.waiting("listed"), outbox.waiting("other")) == ([], [raised()])
    assert "that an event was received cannot be written" in {record.getMessage() for record in caplog.records}
    assert Outbox(tmp_path, ["listed", "other"]).waiting("listed") == [raised()]


# webhooks

KEY = b"the key of this test"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    return path


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def verified(request: tuple[dict[str, str], bytes], key: bytes = KEY) -> Any:
    """What a receiver does, by the standard library alone; its document."""
    headers, body = request
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert any(hmac.compare_digest(f"v1,{expected}", each) for each in headers["webhook-signature"].split(" "))
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return json.loads(body)


def test_a_webhook_gets_a_signed_event(hook: Receiver, key_file: Path) -> None:
    Webhook(hook.url, key_file, 10.0).deliver(raised())
    ((headers, body),) = hook.requests
    assert body == raised().body
    assert verified((headers, body))["id"] == headers["webhook-id"] == raised().id
    assert headers["content-type"] == "application/cloudevents+json; charset=utf-8"


def test_the_documents_example_verifies_what_is_sent(hook: Receiver, key_file: Path) -> None:
    (code,) = re.findall(r"```python\n(import base64.+?)```", (ROOT / "docs" / "CONFIG.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    Webhook(hook.url, key_file, 10.0).deliver(raised())
    ((headers, body),) = hook.requests
    assert names["verified"](headers, body, KEY)
    assert not names["verified"](headers, body + b" ", KEY)
    assert not names["verified"](headers, body, b"another key")
    assert not names["verified"](headers | {"webhook-id": "another"}, body, KEY)
    old = signed_headers(raised(), [KEY], int(time.time()) - 301)
    assert not names["verified"](old, body, KEY)


@pytest.mark.parametrize(
    ("status", "rejected"),
    [
        *((status, None) for status in (200, 204)),
        *((status, True) for status in (302, 400, 404, 410)),
        *((status, False) for status in (408, 425, 429, 500, 503)),
    ],
)
def test_what_a_status_means(status: int, rejected: bool | None, hook: Receiver, key_file: Path) -> None:
    hook.answers = [(status, {"Location": hook.url})]
    webhook = Webhook(hook.url, key_file, 10.0)
    if rejected is None:
        webhook.deliver(raised())
    else:
        with pytest.raises(Undelivered, match=f"^the webhook answered {status}$") as failure:
            webhook.deliver(raised())
        assert failure.value.rejected == rejected
        assert failure.value.retry_after_s is None
    assert len(hook.requests) == 1, "a redirect was followed"


def test_a_receiver_says_when_to_come_back(hook: Receiver, key_file: Path) -> None:
    hook.answers = [(503, {"Retry-After": "17"}), (429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})]
    webhook = Webhook(hook.url, key_file, 10.0)
    for expected in (17.0, 0.0):
        with pytest.raises(Undelivered) as failure:
            webhook.deliver(raised())
        assert failure.value.retry_after_s == expected


def test_what_retry_after_can_say() -> None:
    assert retry_after_s("", 0) is None
    assert retry_after_s("-5", 0) is None
    assert retry_after_s("Thu, 01 Jan 1970 00:00:09 -0000", 4.0) == 5.0


def test_who_does_not_answer_is_tried_again(key_file: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Undelivered, match=r"^no answer within 0.2 s$") as failure:
            Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}/", key_file, 0.2).deliver(raised())
    assert not failure.value.rejected
    with pytest.raises(Undelivered, match=r"^the webhook cannot be reached: Client") as failure:
        Webhook(f"http://127.0.0.1:{free_port()}/?token=secret", key_file, 5.0).deliver(raised())
    assert "secret" not in str(failure.value)
    assert not failure.value.rejected


def test_a_certificate_that_nobody_vouches_for_is_not_believed(key_file: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def accept() -> None:
            connection, _ = listening.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(Undelivered, match="cannot be reached: ClientConnectorCertificateError"):
            Webhook(f"https://localhost:{listening.getsockname()[1]}/", key_file, 5.0).deliver(raised())
        thread.join(PATIENCE_S)


def test_a_key_that_changes_is_read_again(hook: Receiver, key_file: Path) -> None:
    webhook = Webhook(hook.url, key_file, 10.0)
    webhook.deliver(raised())
    key_file.write_bytes(b"another key\n")
    webhook.deliver(raised())
    key_file.write_bytes(b"")
    with pytest.raises(Undelivered, match="hmac_key_file: it holds no key") as failure:
        webhook.deliver(raised())
    assert failure.value.rejected
    key_file.unlink()
    with pytest.raises(Undelivered, match="hmac_key_file: there is no key"):
        webhook.deliver(raised())
    first, second = hook.requests
    assert verified(first, KEY)
    assert verified(second, b"another key")


@pytest.mark.parametrize(("content", "why"), [(b"", "it holds no key"), (b"whsec_!!", "no base64"), (None, "there is no key")])
def test_without_a_key_there_is_no_webhook(content: bytes | None, why: str, key_file: Path) -> None:
    key_file.unlink()
    if content is not None:
        key_file.write_bytes(content)
    with pytest.raises(ValueError, match=why):
        Webhook("http://127.0.0.1:1/", key_file, 1.0)


# a Redis stream


def test_a_stream_gets_events_with_their_ids(tmp_path: Path) -> None:
    with tcp_server(tmp_path / "redis") as server:
        events = RedisEvents(server.url, "retrain")
        events.deliver(raised())
        events.deliver(raised())
        entries: Any = server.admin.xrange("retrain")
        assert [fields[b"id"].decode() for _, fields in entries] == [raised().id] * 2
        assert entries[0][1] == {
            b"id": raised().id.encode(),
            b"model": b"m",
            b"reason": b"drift",
            b"event": raised().body,
        }
        server.admin.set("text", "no stream")
        with pytest.raises(Undelivered, match="WRONGTYPE") as failure:
            RedisEvents(server.url, "text").deliver(raised())
        assert failure.value.rejected
        url = server.url
    with pytest.raises(Undelivered) as failure:
        RedisEvents(url, "retrain").deliver(raised())
    assert not failure.value.rejected
    events.close()


def test_a_url_that_cannot_be_one() -> None:
    with pytest.raises(StoreError):
        RedisEvents("http://example", "retrain")


# a command


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def test_a_command_gets_the_event_on_its_standard_input(tmp_path: Path) -> None:
    copy = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"
    EventCommand(python(copy, str(tmp_path / "got; echo $HOME")), 20.0).deliver(raised())
    assert (tmp_path / "got; echo $HOME").read_bytes() == raised().body


def test_a_command_that_does_not_read_has_received_all_the_same() -> None:
    EventCommand(("true",), 20.0).deliver(raised())


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(Undelivered, match=r"ended with status 3: x+\nno room left$") as failure:
        EventCommand(python("import sys; print('x' * 9999 + '\\nno room left', file=sys.stderr); sys.exit(3)"), 20.0).deliver(
            raised()
        )
    assert not failure.value.rejected
    assert len(str(failure.value)) < 700
    with pytest.raises(Undelivered, match=r"ended with status 1$"):
        EventCommand(("false",), 20.0).deliver(raised())
    with pytest.raises(Undelivered, match="cannot be run") as failure:
        EventCommand(("/no/such/program",), 20.0).deliver(raised())
    assert failure.value.rejected


def gone(process_id: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


CHILDREN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(child.pid))
import os
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(Undelivered, match="has not ended within 2 s"):
        EventCommand(python(CHILDREN, str(tmp_path / "child")), 2.0).deliver(raised())
    child = int((tmp_path / "child").read_text())
    until(lambda: gone(child), "its child is killed")


def test_a_command_ends_with_the_server(tmp_path: Path) -> None:
    outbox = Outbox(None, ["command"])
    outbox.put(raised())
    command = EventCommand(python(CHILDREN, str(tmp_path / "child")), 600.0)
    with courier(outbox, command, longest_s=600.0):
        until((tmp_path / "child").exists, "it runs")
    until(lambda: gone(int((tmp_path / "child").read_text())), "its child is killed")
    assert outbox.waiting("command") == [raised()]
    with pytest.raises(Undelivered, match="the server ends"):
        command.deliver(raised())
