"""`podium features audit`: whether what was served is what the training path makes of the event log.

Floor 7: it puts pieces of `feature_client` and of the registry together and prints; every rule lives below.
"""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feature_client.audit import AuditReport, Example, FeatureAudit, audit
from feature_client.contract import read_contract
from feature_client.definitions import Definitions, load_definitions
from feature_client.errors import EventError
from feature_client.feature_set import FeatureSet, States
from feature_client.golden_rows import shown
from feature_client.samples import Sampled, read_samples
from feature_client.schema import US_PER_S, status_text
from feature_client.timelines import Ints
from server.commands.event_files import add_events, read_logs
from server.commands.verb import add_repository, reporting, source_of
from server.core.errors import NotFound
from server.registry.resolve import resolve
from server.registry.source import FoundModel

DIFFERENT = 10
"""The exit code of an audit that found mismatches."""
MAX_LAG_S = 2 * 86_400
"""How far rows may be behind unless it is stated: what a daily fill that failed once leaves. Where serving looks under keys
that nobody fills, every value is the default of no row, which training has as well: this finds it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def add_audit(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium features audit`."""
    what = f"recompute served rows from the event log; exit 0 equal, {DIFFERENT} mismatches, 1 it cannot be said"
    parser = subparsers.add_parser("audit", help=what)
    add_repository(parser)
    parser.add_argument("--samples", type=Path, nargs="+", required=True, metavar="FILE", help="what a server sampled")
    parser.add_argument("--definitions", type=Path, nargs="+", required=True, metavar="FILE", help="Python files with views")
    add_events(parser)
    lag = f"seconds by which a row may be behind the log, or ahead of its instant (default: {MAX_LAG_S}, two days)"
    parser.add_argument("--max-lag", type=_seconds, default=MAX_LAG_S * US_PER_S, metavar="S", help=lag)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=reporting(_run_audit))


def _run_audit(arguments: Namespace) -> int:
    definitions = load_definitions(arguments.definitions)
    samples = list(read_samples(arguments.samples))
    if not samples:
        raise EventError("there is no sample in these files: nothing was compared")
    feature_sets = _feature_sets(samples, definitions, source_of(arguments).scan())
    views = {view.ref: view for features in feature_sets.values() for view in features.stored}
    report = audit(samples, feature_sets, read_logs(arguments.events, views.values()), arguments.max_lag)
    if not any(each.rows for each in report.features):
        raise EventError("every feature in these samples was stated by the calls themselves: nothing was compared")
    print(json.dumps(_json(report), indent=2) if arguments.json else _text(report))
    return DIFFERENT if report.mismatches else 0


def _feature_sets(
    samples: Sequence[Sampled], definitions: Definitions, models: Mapping[str, FoundModel]
) -> dict[str, FeatureSet]:
    views: dict[str, tuple[str, ...]] = {}
    for each in samples:
        if views.setdefault(each.origin, each.views) != each.views:
            raise EventError(f"samples of '{each.origin}' are of different views: they are not of one version")
    return {
        origin: FeatureSet([definitions.view(ref) for ref in refs], _states(origin, refs, definitions, models))
        for origin, refs in views.items()
    }


def _states(origin: str, refs: Sequence[str], definitions: Definitions, models: Mapping[str, FoundModel]) -> States:
    """What the model views had learnt when the version was made: kept with the version."""
    learnt = [ref for ref in refs if definitions.view(ref).kind == "model"]
    if not learnt:
        return {}
    key = resolve(models, origin)
    contract = read_contract(models[key.model].versions[key.version].folder)
    states = {} if contract is None else contract.states
    missing = [ref for ref in learnt if ref not in states]
    if missing:
        raise NotFound(f"{key} has no state of {', '.join(missing)}, which its samples say it reads")
    return states


def _text(report: AuditReport) -> str:
    rows = [("ORIGIN", "VIEW", "FEATURE", "ROWS", "MISMATCHES", "FIRST")]
    rows += [
        (each.origin, each.view, each.feature, f"{each.rows:,}", f"{each.mismatches:,}", _first(each))
        for each in report.features
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(_distances("lag", "behind the log", report.delays_us, report))
    if len(report.ahead_us):
        lines.append(_distances("ahead", "known only after the instant they were served as of", report.ahead_us, report))
    if report.unknown:
        lines.append(f"unknown: {report.unknown:,} of {report.reads:,} stored rows were never made by the log")
    if report.unanswered:
        lines.append(
            f"unanswered: {report.unanswered:,} of {report.rows:,} rows lack what came too late, or not as it was written"
        )
    values = sum(each.mismatches for each in report.features)
    compared = sum(each.rows for each in report.features)
    limit_s = (report.max_lag_us or 0) / US_PER_S
    lines.append(f"{report.rows:,} rows audited: {values:,} of {compared:,} values mismatch")
    lines.append(f"{report.too_late:,} of {report.reads:,} stored rows more than {limit_s:g} s behind the log, or ahead")
    return "\n".join(lines)


def _distances(word: str, what: str, distances_us: Ints, report: AuditReport) -> str:
    line = f"{word}: {len(distances_us):,} of {report.reads:,} stored rows were {what}"
    found = _summary(distances_us)
    if not found["rows"]:
        return line
    return f"{line}, by {found['p50'] / US_PER_S:g} s at the median, {found['max'] / US_PER_S:g} s at most"


def _first(each: FeatureAudit) -> str:
    example = each.example
    if example is None:
        return "-"
    entity = ", ".join(f"{name}={shown(value)}" for name, value in example.keys.items())
    ulps = "" if example.ulps is None else f", {example.ulps} ULPs"
    return (
        f"{entity} at {_iso(example.as_of_us)}: served {shown(example.served)} {status_text(example.served_status)},"
        f" recomputed {shown(example.recomputed)} {status_text(example.recomputed_status)}{ulps}"
    )


def _json(report: AuditReport) -> dict[str, Any]:
    return {
        "mismatches": report.mismatches,
        "rows": report.rows,
        "reads": report.reads,
        "unanswered": report.unanswered,
        "unknown": report.unknown,
        "too_late": report.too_late,
        "lag_us": _summary(report.delays_us),
        "ahead_us": _summary(report.ahead_us),
        "features": [
            {
                "origin": each.origin,
                "view": each.view,
                "feature": each.feature,
                "rows": each.rows,
                "mismatches": each.mismatches,
                "example": None if each.example is None else _json_example(each.example),
            }
            for each in report.features
        ],
    }


def _summary(distances_us: Ints) -> dict[str, Any]:
    ordered = sorted(distances_us.tolist())
    return {
        "rows": len(ordered),
        "p50": ordered[len(ordered) // 2] if ordered else None,
        "max": ordered[-1] if ordered else None,
    }


def _json_example(example: Example) -> dict[str, Any]:
    return {
        "keys": {name: shown(value) for name, value in example.keys.items()},
        "as_of_us": example.as_of_us,
        "known_us": example.known_us,
        # as texts: JSON has neither NaN nor bytes
        "served": shown(example.served),
        "recomputed": shown(example.recomputed),
        "ulps": example.ulps,
        "served_status": status_text(example.served_status),
        "recomputed_status": status_text(example.recomputed_status),
    }


def _iso(instant_us: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=instant_us)).isoformat()
    except OverflowError:
        return str(instant_us)


def _seconds(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise ArgumentTypeError(f"{text!r} must be a number of seconds, 0 or more")
    return round(seconds * US_PER_S)
