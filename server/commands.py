"""The command line over the registry: `podium register | alias | models | lineage`.

Floor 7: it puts registry pieces together and prints; every rule lives below. Never talks to a running server: a server notices
what changed in the repository by itself.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from server.core.errors import InvalidRequest, NotFound, PodiumError
from server.core.versions import VersionKey
from server.registry.aliases import read_history, remove_alias, set_alias
from server.registry.environment import collect_code, collect_environment
from server.registry.lineage import Lineage, render, trace
from server.registry.manifest import ManifestFields, parse_fields
from server.registry.names import check_model_name
from server.registry.register import GoldenSource, register
from server.registry.resolve import resolve, resolve_version
from server.registry.source import FoundModel, FoundVersion, LocalDirectory

DEFAULT_LOCK_FILE = Path("constraints.txt")
MODEL_FILES = {".onnx": "model.onnx", ".pt2": "program.pt2", ".json": "fake.json"}
"""The name under which a version holds its model file, by the suffix of the file that is registered."""

_NO_WAIT_S = 0.0
_METRICS_SHOWN = 3


class ModelRow(BaseModel):
    """One line of `podium models`: a version, or a model that has none (`version` None)."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int | None
    aliases: tuple[str, ...]
    problem: str | None
    size_bytes: int
    created_at: datetime | None
    metrics: dict[str, float]


def add_commands(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the registry's commands; each parser sets `run`, which takes the parsed arguments and returns an exit code."""
    _add_register(subparsers)
    alias = subparsers.add_parser("alias", help="move or remove an alias (champion, challenger, any)")
    _add_repository(alias)
    alias.add_argument("name", metavar="NAME", help="model")
    alias.add_argument("alias", metavar="ALIAS")
    target = alias.add_mutually_exclusive_group(required=True)
    target.add_argument("version", metavar="VERSION", nargs="?", help="version number, or @ALIAS for where that one is")
    target.add_argument("--remove", action="store_true", help="remove the alias instead")
    alias.set_defaults(run=_reporting(_run_alias))
    models = subparsers.add_parser("models", help="list every version in the repository")
    _add_repository(models)
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(run=_reporting(_run_models))
    lineage = subparsers.add_parser("lineage", help="which exact model is this, and what is missing to rebuild it")
    _add_repository(lineage)
    lineage.add_argument("reference", metavar="NAME[@ALIAS|:N]", help="without alias or number: the champion, else the newest")
    lineage.add_argument("--json", action="store_true", help="print JSON instead of text")
    lineage.set_defaults(run=_reporting(_run_lineage))


def _add_register(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    parser = subparsers.add_parser("register", help="write a version into the repository, whole or not at all")
    _add_repository(parser)
    parser.add_argument("--name", required=True, help="model")
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="FILE",
        help="model file: .onnx, .pt2 (torch.export), or .json (fake backend)",
    )
    parser.add_argument(
        "--file", action="append", default=[], type=_file_argument, metavar="REL=PATH", help="another file of the version"
    )
    parser.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    parser.add_argument(
        "--manifest-fields",
        type=Path,
        metavar="JSON",
        help="author, run_id, code, data, seeds, hyperparameters, environment, metrics, recipe, parent",
    )
    parser.add_argument("--parent", metavar="VERSION", help="version number or @ALIAS that this one was made from")
    parser.add_argument("--golden", type=Path, metavar="NPZ", help="golden examples")
    parser.add_argument("--golden-rtol", type=float, default=1e-5, help="relative tolerance (default %(default)g)")
    parser.add_argument("--golden-atol", type=float, default=1e-6, help="absolute tolerance (default %(default)g)")
    parser.add_argument("--alias", action="append", default=[], help="move this alias to the new version")
    parser.add_argument("--settings", type=Path, metavar="TOML", help="becomes the model's model.toml")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help=f"constraints that pinned the packages (default {DEFAULT_LOCK_FILE})",
    )
    parser.set_defaults(run=_reporting(_run_register))


def _add_repository(parser: ArgumentParser) -> None:
    parser.add_argument("--repository", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")


def _reporting(command: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """A caller's mistake or a refusing disk ends in one line on stderr and exit code 1; a bug keeps its traceback."""

    def run(arguments: Namespace) -> int:
        try:
            return command(arguments)
        except PodiumError as error:
            print(f"podium: {error}", file=sys.stderr)
        except OSError as error:
            print(f"podium: {error.filename or 'disk'}: {error.strerror}", file=sys.stderr)
        return 1

    return run


def _run_register(arguments: Namespace) -> int:
    stored = MODEL_FILES.get(arguments.model.suffix)
    if stored is None:
        raise InvalidRequest(f"{arguments.model} is no model file: its name must end in {' or '.join(MODEL_FILES)}")
    files = {stored: arguments.model}
    for path, source in arguments.file:
        if path in files:
            raise InvalidRequest(f"file {path!r} is given twice")
        files[path] = source
    golden = None
    if arguments.golden is not None:
        golden = GoldenSource(arguments.golden, arguments.golden_rtol, arguments.golden_atol)
    key = register(
        arguments.repository,
        arguments.name,
        files,
        _fields(arguments),
        version=arguments.version,
        golden=golden,
        aliases=arguments.alias,
        settings_file=arguments.settings,
    )
    print(f"registered {key}" + "".join(f" @{alias}" for alias in arguments.alias))
    return 0


def _fields(arguments: Namespace) -> ManifestFields:
    """What the caller states, completed by what this process can see: commit of the working folder, environment."""
    stated = ManifestFields()
    if arguments.manifest_fields is not None:
        stated = parse_fields(arguments.manifest_fields.read_bytes())
    found: dict[str, object] = {}
    if stated.code is None:
        found["code"] = collect_code(Path.cwd())
    if stated.environment is None:
        lock = arguments.lock or (DEFAULT_LOCK_FILE if DEFAULT_LOCK_FILE.is_file() else None)
        found["environment"] = collect_environment(lock)
    if arguments.parent is not None:
        found["parent"] = resolve_version(_model(_source(arguments).scan(), arguments.name), arguments.parent).version
    return stated.model_copy(update=found)


def _run_alias(arguments: Namespace) -> int:
    check_model_name(arguments.name)
    folder = arguments.repository / arguments.name
    if arguments.remove:
        before = remove_alias(folder, arguments.alias)
        print(f"{arguments.name}@{arguments.alias} removed (was version {before})")
        return 0
    model = _model(_source(arguments).scan(), arguments.name)
    key = resolve_version(model, arguments.version)
    problem = model.versions[key.version].problem
    if problem is not None:
        raise InvalidRequest(f"alias '{arguments.alias}' cannot be moved to {key}, which would not load: {problem}")
    moved_from = set_alias(folder, arguments.alias, key.version)
    was = "new" if moved_from is None else f"was version {moved_from}"
    print(f"{arguments.name}@{arguments.alias} is version {key.version} ({was})")
    return 0


def _run_models(arguments: Namespace) -> int:
    rows = [row for _, model in sorted(_source(arguments).scan().items()) for row in _rows(model)]
    if arguments.json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        print(_table([("MODEL", "VERSION", "ALIASES", "STATE", "SIZE", "CREATED", "METRICS"), *map(_cells, rows)]))
    return 0


def _run_lineage(arguments: Namespace) -> int:
    source = _source(arguments)
    models = source.scan()
    lineage = _lineage(source, models[(key := resolve(models, arguments.reference)).model], key)
    print(lineage.model_dump_json(indent=2) if arguments.json else render(lineage))
    return 0 if lineage.verified is None else 1


def _lineage(source: LocalDirectory, model: FoundModel, key: VersionKey) -> Lineage:
    found = model.versions[key.version]
    verified = None
    try:
        source.verify(found)
        files = found.manifest.files if found.manifest is not None else source.digests(found)
    except PodiumError as error:
        verified, files = str(error), found.manifest.files if found.manifest is not None else {}
    manifests = {version: each.manifest for version, each in model.versions.items()}
    return trace(key, str(found.folder), manifests, model.aliases, verified, files, read_history(model.folder))


def _source(arguments: Namespace) -> LocalDirectory:
    return LocalDirectory(arguments.repository, _NO_WAIT_S)


def _model(models: dict[str, FoundModel], name: str) -> FoundModel:
    check_model_name(name)
    if name not in models:
        raise NotFound(f"there is no model '{name}' in the repository; it has: {', '.join(sorted(models)) or 'none'}")
    return models[name]


def _rows(model: FoundModel) -> list[ModelRow]:
    rows = [_row(model, found) for found in model.versions.values()]
    lost = sorted(alias for alias, version in model.aliases.items() if version not in model.versions)
    if model.problem is None and rows and not lost:
        return rows
    problem = model.problem or (f"aliases of versions that are not there: {', '.join(lost)}" if lost else "no versions")
    about = ModelRow(
        model=model.name, version=None, aliases=tuple(lost), problem=problem, size_bytes=0, created_at=None, metrics={}
    )
    return [about, *rows]


def _row(model: FoundModel, found: FoundVersion) -> ModelRow:
    manifest = found.manifest
    return ModelRow(
        model=model.name,
        version=found.key.version,
        aliases=tuple(sorted(alias for alias, version in model.aliases.items() if version == found.key.version)),
        problem=found.problem,
        size_bytes=found.size_bytes,
        # without a manifest the newest file is the only date there is
        created_at=manifest.created_at if manifest is not None else datetime.fromtimestamp(found.newest_s, UTC),
        metrics=manifest.metrics if manifest is not None else {},
    )


def _cells(row: ModelRow) -> tuple[str, ...]:
    shown = [f"{name}={value:.4g}" for name, value in list(row.metrics.items())[:_METRICS_SHOWN]]
    more = [f"+{len(row.metrics) - _METRICS_SHOWN}"] if len(row.metrics) > _METRICS_SHOWN else []
    return (
        row.model,
        "-" if row.version is None else str(row.version),
        ",".join(row.aliases) or "-",
        row.problem or "ok",
        "-" if row.version is None else _size(row.size_bytes),
        "-" if row.created_at is None else row.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M"),
        " ".join(shown + more) or "-",
    )


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _file_argument(text: str) -> tuple[str, Path]:
    path, separator, source = text.partition("=")
    if not separator or not path or not source:
        raise ArgumentTypeError(f"{text!r} must be REL=PATH")
    return path, Path(source)
