"""What the command prints of the servers' files, and of one server."""

import json
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server import consumers_command
from server.consumers_command import add_consumers_command
from server.telemetry.usage import UsageRow, uses_of, write_usage

NOW = datetime.now(UTC).replace(microsecond=0)


def row(version: int, consumer: str, requests: int, days_ago: int = 0) -> UsageRow:
    last = NOW - timedelta(days=days_ago)
    return UsageRow(
        model="m",
        version=version,
        consumer=consumer,
        requests=requests,
        first=last - timedelta(days=1),
        last=last,
        days={last.date(): requests},
    )


def run(*arguments: str) -> int:
    parser = ArgumentParser(prog="podium")
    add_consumers_command(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["consumers", *arguments])
    code: int = parsed.run(parsed)
    return code


class Now(datetime):
    """The day on which these tests began: they may go on beyond midnight."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Now":
        return cls.fromtimestamp(NOW.timestamp(), tz)


@pytest.fixture
def usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two servers, and what one of them was writing when it died."""
    monkeypatch.setattr(consumers_command, "datetime", Now)
    folder = tmp_path / "usage"
    folder.mkdir()
    (folder / "a.json").write_bytes(write_usage("a", uses_of([row(3, "night job", 5, 30), row(4, "checkout", 100)])))
    (folder / "b.json").write_bytes(write_usage("b", uses_of([row(4, "checkout", 11), row(4, "", 7, 2), row(4, "x", 200, 8)])))
    (folder / ".b.json-0123").write_bytes(b'{"schema')
    (folder / "b.json.unreadable").write_bytes(b"old")
    return folder


def test_versions_newest_first_with_all_servers_together(usage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("m", "--usage", str(usage)) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["CONSUMER", "REQUESTS", "LAST", "7", "DAYS", "TODAY", "FIRST", "LAST"]
    minute = NOW.strftime("%Y-%m-%d %H:%M")
    assert lines[0] == f"m:4  318 requests, the last {minute}"
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["x", "200", "0", "0"],
        ["checkout", "111", "111", "111"],
        ["(undeclared)", "7", "7", "0"],
    ]
    assert lines[2].endswith(minute)
    assert lines[4].startswith("m:3  5 requests")
    assert "night job" in lines[5]
    assert len({line.index("20", 40) for line in (lines[1], lines[2], lines[3], lines[5])}) == 1, (
        "columns stand below each other"
    )


def test_json_has_everything(usage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("m", "--usage", str(usage), "--json") == 0
    rows = [UsageRow.model_validate(each) for each in json.loads(capsys.readouterr().out)]
    assert [(each.version, each.consumer, each.requests) for each in rows] == [
        (4, "x", 200),
        (4, "checkout", 111),
        (4, "", 7),
        (3, "night job", 5),
    ]


def test_a_model_nobody_used(usage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("other", "--usage", str(usage)) == 0
    assert capsys.readouterr().out == "nobody is known to have used other\n"
    assert run("other", "--usage", str(usage), "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A side port that gives one answer to everybody."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join(30)


def test_one_server_may_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    body = '{"uses": [' + row(3, "a", 2).model_dump_json() + "]}"
    with answering(200, body.encode()) as (address, asked):
        assert run("m", "--server", address) == 0
    assert asked == ["/consumers?model=m"]
    assert "m:3  2 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "HTTP Error 404"),
        (200, b"[]", "its answer is of another form"),
        (200, b'{"uses": [1]}', "its answer is of another form"),
        (200, b"<html>", "Expecting value"),
    ],
)
def test_a_server_that_does_not_say(status: int, body: bytes, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(status, body) as (address, _):
        assert run("m", "--server", address) == 1
    written = capsys.readouterr()
    assert written.err.startswith(f"podium: {address} does not say who its consumers are: {reason}")
    assert (written.out, written.err.count("\n")) == ("", 1)


def test_what_is_wrong_is_said_in_one_line(usage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (usage / "c.json").write_bytes(b"{}")
    for arguments, text in (
        (("m", "--usage", str(tmp_path / "nowhere")), "there is no folder"),
        (("m", "--usage", str(usage)), "c.json holds no usage: schema_version"),
        (("../m", "--usage", str(usage)), "name"),
        (("m", "--server", "127.0.0.1:1"), "does not say who its consumers are"),
        (("m", "--server", "no such port"), "does not say who its consumers are"),
    ):
        assert run(*arguments) == 1
        written = capsys.readouterr()
        assert text in written.err
        assert written.err.startswith("podium: ")
        assert (written.out, written.err.count("\n")) == ("", 1)
