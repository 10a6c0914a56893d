"""Event logs on a command line: `--events NAME=PATH`, read as the views' own sources declare them.

Floor 7. What reads files of tables needs an extra; it is loaded by name when a command has files to read, so that the other
commands work without it.
"""

import importlib
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Mapping
from pathlib import Path

from feature_client.errors import EventError
from feature_client.schema import Columns
from feature_client.view import View
from server.core.errors import Unsupported


def add_events(parser: ArgumentParser) -> None:
    """The flag that names the files of event logs."""
    parser.add_argument(
        "--events",
        type=_named,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=PATH",
        help="an event log's file: Parquet, CSV or Arrow",
    )


def read_logs(named: Iterable[tuple[str, Path]], views: Iterable[View]) -> dict[str, Columns]:
    """The columns of the event logs that these views are computed from, by name.

    Raises: EventError for a log that no view needs, that is named twice or is missing, and as `read_events`; Unsupported.
    """
    sources = {view.source.name: view.source for view in views if view.source is not None}
    paths: dict[str, Path] = {}
    for name, path in named:
        if name not in sources:
            raise EventError(f"no view here is computed from '{name}'; there are: {', '.join(sources) or 'none'}")
        if name in paths:
            raise EventError(f"two files are named for '{name}': {paths[name]} and {path}")
        paths[name] = path
    missing = sources.keys() - paths.keys()
    if missing:
        raise EventError(f"there is no file for: {', '.join(sorted(missing))}; give --events NAME=PATH")
    try:
        reading = importlib.import_module("feature_client.columns")
    except ImportError as error:
        raise Unsupported(f"event logs need the extra 'features', which is not installed: {error}") from error
    found: Mapping[str, Columns] = {name: reading.read_events(path, sources[name]) for name, path in paths.items()}
    return dict(found)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise ArgumentTypeError(f"{text!r} must be NAME=PATH")
    return name, Path(path)
