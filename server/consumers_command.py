"""`podium consumers NAME`: who used which version of a model, and when: the answer to "may I retire version 3?".

Floor 7: it reads the files that servers wrote, or asks one server's side port, adds up and prints. It changes nothing.
"""

import json
import sys
import urllib.error
import urllib.request
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError

from server.core.errors import NotFound, PodiumError, RegistryError
from server.registry.names import check_model_name
from server.service.usage import SUFFIX
from server.telemetry.usage import UsageRow, merge, read_usage, rows_of

_ROWS = TypeAdapter(list[UsageRow])
_ANSWER_S = 10.0
_RECENT_DAYS = 7
_UNDECLARED = "(undeclared)"
_HEAD = ("  CONSUMER", "REQUESTS", f"LAST {_RECENT_DAYS} DAYS", "TODAY", "FIRST", "LAST")


def add_consumers_command(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the verb; its parser sets `run`, which takes the parsed arguments and returns an exit code."""
    parser = subparsers.add_parser("consumers", help="who used which version of a model, and when")
    parser.add_argument("name", metavar="NAME", help="model")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--usage", type=Path, default=Path("usage"), metavar="DIR", help="the servers' usage_dir (default: %(default)s)"
    )
    where.add_argument("--server", metavar="HOST:PORT", help="ask this server's side port instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_run)


def _run(arguments: Namespace) -> int:
    try:
        check_model_name(arguments.name)
        if arguments.server is not None:
            rows = _ask(arguments.server, arguments.name)
        else:
            rows = _read(arguments.usage, arguments.name)
    except PodiumError as error:
        print(f"podium: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"podium: {error.filename or arguments.usage}: {error.strerror or error}", file=sys.stderr)
        return 1
    if arguments.json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        print("\n".join(_lines(arguments.name, rows, datetime.now(UTC).date())))
    return 0


def _read(folder: Path, model: str) -> list[UsageRow]:
    """What the files of all servers say together. Raises: NotFound, RegistryError, OSError."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}: name the servers' usage_dir with --usage, or one server with --server")
    # hidden ones are being written, or were when a server died
    files = [path for path in sorted(folder.glob("*" + SUFFIX)) if not path.name.startswith(".")]
    return rows_of(merge(read_usage(path.read_bytes(), str(path)) for path in files), model)


def _ask(address: str, model: str) -> list[UsageRow]:
    """What one running server says. Raises: RegistryError."""
    url = f"http://{address}/consumers?{urlencode({'model': model})}"
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as response:
            return _ROWS.validate_python(json.load(response)["uses"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = "its answer is of another form" if isinstance(error, ValidationError | KeyError | TypeError) else error
        raise RegistryError(f"{address} does not say who its consumers are: {reason}") from None


def _lines(model: str, rows: Iterable[UsageRow], today: date) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        yield f"nobody is known to have used {model}"
        return
    table = [_HEAD, *(_cells(row, today) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    yield _line(_HEAD, widths)
    for version, group in groupby(rows, key=lambda row: row.version):
        uses = list(group)
        last = max(row.last for row in uses)
        yield f"{model}:{version}  {sum(row.requests for row in uses)} requests, the last {_minute(last)}"
        for row in uses:
            yield _line(_cells(row, today), widths)


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(row: UsageRow, today: date) -> tuple[str, ...]:
    recent = sum(count for day, count in row.days.items() if today - timedelta(days=_RECENT_DAYS) < day)
    return (
        "  " + (row.consumer or _UNDECLARED),
        str(row.requests),
        str(recent),
        str(row.days.get(today, 0)),
        _minute(row.first),
        _minute(row.last),
    )


def _minute(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
