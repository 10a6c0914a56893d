"""`podium measured`: what loads have found of a version, as a table for people or as settings of the fake backend.

Floor 7: it puts registry pieces together and prints; every rule lives below.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from pathlib import Path

from server.commands.verb import add_repository, reporting, size_text, source_of
from server.core.errors import NotFound
from server.core.measured import Measured, fake_toml, settings_digest
from server.registry.measured_files import MeasuredFiles, files_digest
from server.registry.resolve import resolve
from server.registry.source import FoundModel, FoundVersion


def add_measured(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium measured`."""
    parser = subparsers.add_parser("measured", help="what loads have measured of a version: times per batch size, memory")
    add_repository(parser)
    parser.add_argument("reference", metavar="NAME[@ALIAS|:N]", help="without alias or number: the champion, else the newest")
    parser.add_argument("--measured-dir", type=Path, metavar="DIR", help="the server's measured_dir, where it has one")
    parser.add_argument("--device-kind", metavar="KIND", help="only what was measured on this kind of device")
    parser.add_argument("--toml", action="store_true", help="print a [fake] table with the times of one kind of device")
    parser.set_defaults(run=reporting(_run_measured))


def _run_measured(arguments: Namespace) -> int:
    models = source_of(arguments).scan()
    key = resolve(models, arguments.reference)
    model = models[key.model]
    found = model.versions[key.version]
    documents = list(MeasuredFiles(arguments.measured_dir).all(found))
    kinds = sorted({each.device_kind for each in documents})
    if not documents:
        raise NotFound(f"nothing was measured of {key} yet, or it could not be kept: a load does both")
    wanted = [each for each in documents if arguments.device_kind in (None, each.device_kind)]
    if not wanted:
        raise NotFound(f"{key} was not measured on '{arguments.device_kind}'; it was on: {', '.join(kinds)}")
    if arguments.toml:
        print(_toml(wanted, kinds), end="")
    else:
        print("\n\n".join(_text(each, model, found) for each in wanted))
    return 0


def _toml(wanted: Sequence[Measured], kinds: Sequence[str]) -> str:
    timed = [each for each in wanted if each.costs_ns]
    if not timed:
        raise NotFound("no times were measured: no sample of that version ran when it was loaded")
    if len(timed) > 1:
        raise NotFound(f"there are several; say one of them with --device-kind: {', '.join(kinds)}")
    return fake_toml(timed[0])


def _text(measured: Measured, model: FoundModel, found: FoundVersion) -> str:
    held = "not told by the device" if measured.memory_bytes is None else size_text(measured.memory_bytes)
    copies = f", {measured.instances} instances" if measured.instances > 1 else ""
    lines = [
        ("version", f"{measured.model}:{measured.version}{copies}"),
        ("measured", f"{measured.measured_at:%Y-%m-%d %H:%M %Z} on {measured.device_kind} by {measured.platform}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in sorted(measured.libraries.items())) or "-"),
        ("memory", held),
        ("about", _about(measured, model, found)),
    ]
    head = "\n".join(f"{name:<9}  {value}" for name, value in lines)
    if not measured.costs_ns:
        return f"{head}\n(no times: no sample ran)"
    rows = [f"{rows:>6}  {ns / 1e3:>12.1f}  {rows * 1e9 / ns:>12.0f}" for rows, ns in sorted(measured.costs_ns.items())]
    return "\n".join((head, "  ROWS            US        ROWS/S", *rows))


def _about(measured: Measured, model: FoundModel, found: FoundVersion) -> str:
    """Whether a load would take it for its estimate."""
    differs = []
    if measured.files != files_digest(found):
        differs.append("files")
    if model.settings is None or measured.settings != settings_digest(measured.backend, model.settings):
        differs.append("settings")
    return f"other {' and '.join(differs)} than there are now" if differs else "the files and settings that are there now"
