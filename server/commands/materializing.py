"""`podium features materialize`: fill a store with the latest rows that event logs make.

Floor 7: it puts pieces of `feature_client` together and prints; every rule lives below.
"""

import importlib
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feature_client.definitions import Definitions, load_definitions
from feature_client.errors import DefinitionError
from feature_client.materialize import Filled, materialize
from feature_client.store import Store
from feature_client.view import View
from server.commands.event_files import add_events, read_logs
from server.commands.verb import reporting

_QUIET_S = 5.0
"""How long a fill goes on before a log hears of it, and then how long between two lines."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def add_materialize(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium features materialize`."""
    parser = subparsers.add_parser("materialize", help="fill a store with the latest row of each entity")
    parser.add_argument("views", metavar="VIEW", nargs="*", help="NAME@VERSION (default: every stored view)")
    parser.add_argument("--definitions", type=Path, nargs="+", metavar="FILE", required=True, help="Python files with views")
    add_events(parser)
    parser.add_argument("--store", default="", metavar="URL", help="default: REDIS_URL, a local server, an embedded one")
    parser.add_argument("--project", default="podium", help="whose rows: as in the server's settings (default: %(default)s)")
    parser.add_argument("--until", type=_instant, metavar="ISO", help="rows that were known by then; UTC unless it says so")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="where an interrupted fill goes on")
    parser.set_defaults(run=reporting(_run_materialize))


def stored_views(definitions: Definitions, refs: Sequence[str]) -> list[View]:
    """The views of these references, all stored ones for none. Raises: DefinitionError."""
    views = [definitions.view(ref) for ref in refs] or [each for each in definitions.views.values() if each.kind == "stored"]
    for view in views:
        if view.kind != "stored":
            raise DefinitionError(f"'{view.ref}' is a {view.kind} view: it has no rows to store")
    if not views:
        raise DefinitionError("there is no stored view in the definitions")
    return views


def _run_materialize(arguments: Namespace) -> int:
    definitions = load_definitions(arguments.definitions)
    views = stored_views(definitions, arguments.views)
    events = read_logs(arguments.events, views)
    # by name: a server, which knows this verb too, does not pay for a store that it does not open
    store: Store = importlib.import_module("feature_client.opening").open_store(arguments.store, require=True)
    progress = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        filled = materialize(
            store,
            arguments.project,
            views,
            definitions.fingerprints,
            events,
            until_us=arguments.until,
            checkpoint=arguments.checkpoint,
            progress=progress,
        )
    finally:
        progress.close()
        store.close()
    print("\n".join(_text(each, store.name) for each in filled))
    if store.name in ("embedded", "memory"):
        print("the rows ended with this command, and their store with them: name one by --store or REDIS_URL", file=sys.stderr)
    return 0


class _Bars:
    """A bar for each view, on a terminal."""

    def __init__(self) -> None:
        try:
            self._bar: Any = importlib.import_module("tqdm").tqdm
        except ImportError:
            self._bar = None
        self._now: Any = None
        self._view = ""

    def __call__(self, view: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if view != self._view:
            self.close()
            self._view = view
            self._now = self._bar(desc=view, total=total, initial=done, unit="rows", unit_scale=True, file=sys.stderr)
        self._now.update(done - self._now.n)

    def close(self) -> None:
        """Leave the last bar as it stands."""
        if self._now is not None:
            self._now.close()
            self._now = None


class _Lines:
    """Now and then a line, in a log."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, view: str, done: int, total: int) -> None:
        if time.monotonic() - self._said_s >= _QUIET_S and done < total:
            self._said_s = time.monotonic()
            print(f"{view}: {done:,} of {total:,} rows", file=sys.stderr)

    def close(self) -> None:
        """Nothing is open."""


def _text(filled: Filled, store: str) -> str:
    line = f"{filled.view}: {filled.rows:,} rows in {filled.duration_s:.1f} s ({filled.rows_per_s:,.0f} rows/s), store {store}"
    line += f"; {filled.skipped:,} were done before" if filled.skipped else ""
    return line + (f"; of {filled.kept:,} the store had newer ones" if filled.kept else "")


def _instant(text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} must be an instant as in ISO 8601: 2013-06-01T00:00:00") from None
    aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)
