"""What every verb over the registry shares: its repository, and how a failure ends.

Floor 7. Never prints a result.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from feature_client.errors import FeatureError
from server.core.errors import NotFound, PodiumError
from server.registry.names import check_model_name
from server.registry.source import FoundModel, LocalDirectory

DEFAULT_LOCK_FILE = Path("constraints.txt")
"""The constraints that pin the packages, beside the code."""

_NO_WAIT_S = 0.0


def add_repository(parser: ArgumentParser) -> None:
    """The flag that every verb has."""
    parser.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")


def reporting(command: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """A caller's mistake or a refusing disk ends in one line on stderr and exit code 1; a bug keeps its traceback."""

    def run(arguments: Namespace) -> int:
        try:
            return command(arguments)
        except (PodiumError, FeatureError) as error:
            print(f"podium: {error}", file=sys.stderr)
        except OSError as error:
            print(f"podium: {error.filename or 'disk'}: {error.strerror}", file=sys.stderr)
        return 1

    return run


def source_of(arguments: Namespace) -> LocalDirectory:
    """The repository that the arguments name."""
    return LocalDirectory(arguments.repository, _NO_WAIT_S)


def model_of(models: dict[str, FoundModel], name: str) -> FoundModel:
    """The model of that name. Raises: InvalidRequest, NotFound saying what there is."""
    check_model_name(name)
    if name not in models:
        raise NotFound(f"there is no model '{name}' in the repository; it has: {', '.join(sorted(models)) or 'none'}")
    return models[name]


def size_text(size_bytes: int) -> str:
    """A size in binary units, as a person reads it."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
