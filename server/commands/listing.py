"""`podium models` and `podium lineage`: what is in the repository, and where one version comes from.

Floor 7: it puts registry pieces together and prints; every rule lives below.
"""

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from server.commands.verb import add_repository, reporting, size_text, source_of
from server.core.errors import PodiumError
from server.core.versions import VersionKey
from server.registry.aliases import read_history
from server.registry.lineage import Lineage, render, trace
from server.registry.names import AliasMove
from server.registry.prune import read_pruned
from server.registry.resolve import resolve
from server.registry.source import FoundModel, FoundVersion, LocalDirectory
from server.registry.status import Deployment, deployment

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
    deployment: Deployment | None
    metrics: dict[str, float]


def add_models(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium models`."""
    models = subparsers.add_parser("models", help="list every version in the repository")
    add_repository(models)
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(run=reporting(_run_models))


def add_lineage(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium lineage`."""
    lineage = subparsers.add_parser("lineage", help="which exact model is this, and what is missing to rebuild it")
    add_repository(lineage)
    lineage.add_argument("reference", metavar="NAME[@ALIAS|:N]", help="without alias or number: the champion, else the newest")
    lineage.add_argument("--json", action="store_true", help="print JSON instead of text")
    lineage.set_defaults(run=reporting(_run_lineage))


def _run_models(arguments: Namespace) -> int:
    rows = [row for _, model in sorted(source_of(arguments).scan().items()) for row in _rows(model)]
    if arguments.json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        print(
            _table(
                [
                    ("MODEL", "VERSION", "ALIASES", "STATUS", "SINCE", "BY", "STATE", "SIZE", "CREATED", "METRICS"),
                    *map(_cells, rows),
                ]
            )
        )
    return 0


def _run_lineage(arguments: Namespace) -> int:
    source = source_of(arguments)
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
    history, pruned = read_history(model.folder), read_pruned(model.folder)
    return trace(key, str(found.folder), manifests, model.aliases, verified, files, history, pruned)


def _rows(model: FoundModel) -> list[ModelRow]:
    history = read_history(model.folder)
    rows = [_row(model, found, history) for found in model.versions.values()]
    lost = sorted(alias for alias, version in model.aliases.items() if version not in model.versions)
    if model.problem is None and rows and not lost:
        return rows
    problem = model.problem or (f"aliases of versions that are not there: {', '.join(lost)}" if lost else "no versions")
    about = ModelRow(
        model=model.name,
        version=None,
        aliases=tuple(lost),
        problem=problem,
        size_bytes=0,
        created_at=None,
        deployment=None,
        metrics={},
    )
    return [about, *rows]


def _row(model: FoundModel, found: FoundVersion, history: Sequence[AliasMove]) -> ModelRow:
    manifest = found.manifest
    return ModelRow(
        model=model.name,
        version=found.key.version,
        aliases=tuple(sorted(alias for alias, version in model.aliases.items() if version == found.key.version)),
        problem=found.problem,
        size_bytes=found.size_bytes,
        # without a manifest the newest file is the only date there is
        created_at=manifest.created_at if manifest is not None else datetime.fromtimestamp(found.newest_s, UTC),
        deployment=deployment(found.key.version, manifest, model.aliases, history),
        metrics=manifest.metrics if manifest is not None else {},
    )


def _cells(row: ModelRow) -> tuple[str, ...]:
    shown = [f"{name}={value:.4g}" for name, value in list(row.metrics.items())[:_METRICS_SHOWN]]
    more = [f"+{len(row.metrics) - _METRICS_SHOWN}"] if len(row.metrics) > _METRICS_SHOWN else []
    return (
        row.model,
        "-" if row.version is None else str(row.version),
        ",".join(row.aliases) or "-",
        *_deployed(row.deployment),
        row.problem or "ok",
        "-" if row.version is None else size_text(row.size_bytes),
        _minute(row.created_at),
        " ".join(shown + more) or "-",
    )


def _deployed(found: Deployment | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return found.status, _minute(found.since), found.by or "-"


def _minute(instant: datetime | None) -> str:
    return "-" if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
