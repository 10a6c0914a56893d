"""`podium drift NAME[:VERSION]`: how it stands with what a server's versions are given and answer, with every number behind it.

Floor 7: it asks a server, or a `podium monitor`, and prints, draws or recomputes what it says. It changes nothing there.
"""

import dataclasses
import importlib
import json
import math
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.commands.drift_page import page
from server.commands.drift_recompute import Recomputed, recompute
from server.commands.drift_text import lines
from server.commands.verb import reporting
from server.core.errors import InvalidRequest
from server.monitoring.reading import KEPT_WINDOWS
from server.monitoring.verdict import DriftState
from server.registry.durable import write_atomically
from server.transport.drift_client import Caller, DriftNotTold, ask_drift
from server.transport.drift_reading import ReportedVersion

EXIT_ALARM = 3
"""With `--exit-code`: an alarm. 1 is an error, 2 wrong usage."""
_PLOTS = "server.commands.drift_plots"
_HISTORY = 168
"""Windows that pictures ask for where nobody said how many: a week of hours."""


def add_drift(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser("drift", help="what a server's monitors have found, with every number behind it")
    parser.add_argument("reference", metavar="NAME[:VERSION]", help="without a version: all that are monitored")
    parser.add_argument("--windows", type=int, metavar="N", help=f"how many windows back, at most {KEPT_WINDOWS} (default: 1)")
    parser.add_argument("--all", action="store_true", help="every check, not only the worst")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    parser.add_argument("--recompute", action="store_true", help="find every verdict again from its counts; 1 where it differs")
    parser.add_argument("--exit-code", action="store_true", help=f"exit with {EXIT_ALARM} where there is an alarm")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write pictures there (needs podium[plots])")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with all of it (needs podium[plots])")
    _add_server(parser)
    parser.set_defaults(run=_run)


def _add_server(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="a server or a podium monitor (default: %(default)s)"
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="TLS: certificates that the server's is trusted by, PEM")
    parser.add_argument("--cert-file", type=Path, metavar="FILE", help="TLS: one's own certificate, with --key-file")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="TLS: its key")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the bearer token")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="seconds to wait for the answer (default: %(default)s)")


def _run(arguments: Namespace) -> int:
    problem = _wrong(arguments)
    if problem:
        sys.stderr.write(f"podium drift: {problem}\n")
        return 2
    return reporting(_ask_and_tell)(arguments)


def _wrong(arguments: Namespace) -> str:
    if arguments.windows is not None and not 1 <= arguments.windows <= KEPT_WINDOWS:
        return f"--windows is from 1 to {KEPT_WINDOWS}"
    if bool(arguments.cert_file) != bool(arguments.key_file):
        return "--cert-file and --key-file are stated together"
    if (arguments.cert_file or arguments.token_file) and not arguments.ca_file and not _local(arguments.server):
        return "a key or a token goes over TLS only: state --ca-file"
    return ""


def _local(address: str) -> bool:
    return address.startswith(("127.", "localhost:", "[::1]:", "unix:"))


def _ask_and_tell(arguments: Namespace) -> int:
    caller = Caller(
        arguments.server,
        arguments.ca_file,
        arguments.cert_file,
        arguments.key_file,
        arguments.token_file,
        arguments.timeout_s,
    )
    model, _, version = arguments.reference.partition(":")
    drawn = arguments.plots is not None or arguments.html is not None
    windows = arguments.windows or (_HISTORY if drawn else 1)
    try:
        versions = ask_drift(caller, model, version, windows)
    except DriftNotTold as error:
        print(f"podium: {error}", file=sys.stderr)
        return 1
    differing = [each for each in map(recompute, versions) if each.differences] if arguments.recompute else []
    _print(arguments, versions, differing)
    if drawn:
        _draw(arguments, versions)
    if differing:
        return 1
    return EXIT_ALARM if arguments.exit_code and any(map(_alarms, versions)) else 0


def _print(arguments: Namespace, versions: Sequence[ReportedVersion], differing: Sequence[Recomputed]) -> None:
    if arguments.json:
        print(json.dumps({"versions": [_plain(each) for each in versions]}, indent=1, allow_nan=False))
    else:
        for version in versions:
            print("\n".join(lines(version, every=arguments.all)))
    if not arguments.recompute:
        return
    # beside JSON, which stays JSON
    target = sys.stderr if arguments.json else sys.stdout
    for one in differing:
        print("\n".join(one.lines()), file=target)
    if not differing:
        findings = sum(len(window.findings) for each in versions for window in each.reading.windows)
        print(f"recomputed: all {findings} findings come out as they were told", file=target)


def _alarms(version: ReportedVersion) -> bool:
    quality = version.reading.quality
    risk = quality is not None and quality.risk is not None and quality.risk.alarm
    return risk or version.reading.state == DriftState.ALARM


def _draw(arguments: Namespace, versions: Sequence[ReportedVersion]) -> None:
    """Raises: InvalidRequest where the pictures' package is not installed; OSError."""
    try:
        plots = importlib.import_module(_PLOTS)
    except ImportError as error:
        raise InvalidRequest(f"pictures need the extra 'plots', which is not installed: {error}") from None
    pictures: list[tuple[ReportedVersion, list[Any]]] = [(version, plots.pictures(version)) for version in versions]
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        for _, drawn in pictures:
            for picture in drawn:
                write_atomically(arguments.plots / picture.file_name, picture.png)
    if arguments.html is not None:
        write_atomically(arguments.html, page(pictures).encode())


def _plain(value: Any) -> Any:
    """Any value of a report as JSON has it. What JSON has no number for is a text, as protobuf writes it."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
