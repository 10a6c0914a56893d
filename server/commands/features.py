"""`podium features`: what the installed definitions are, what differs between two of them, and who reads what.

Floor 7: it puts pieces of `feature_client` and of the registry together and prints; every rule lives below.
"""

import json
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from feature_client.contract import Contract, read_contract
from feature_client.definitions import Definitions, load_definitions
from feature_client.difference import differences
from feature_client.errors import ContractError
from feature_client.fingerprint import Description
from server.commands.auditing import add_audit
from server.commands.materializing import add_materialize
from server.commands.verb import add_repository, reporting, source_of
from server.core.errors import NotFound
from server.core.versions import VersionKey
from server.lifecycle.policy import desired
from server.registry.resolve import resolve
from server.registry.source import FoundModel

DIFFERENT = 10
"""The exit code of a comparison that found differences, as `podium reproduce` has it for what is equivalent only."""

_SHOWN = 16
"""Digits of a fingerprint that are shown: those of the stamp that rows carry."""


def add_features(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium features`."""
    features = subparsers.add_parser("features", help="feature definitions: what they are, what differs, who reads them")
    verbs = features.add_subparsers(required=True, metavar="VERB")
    show = verbs.add_parser("show", help="the views of definition files")
    add_definitions(show, required=True)
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    show.set_defaults(run=reporting(_run_show))
    diff = verbs.add_parser("diff", help=f"what differs; exit 0 nothing, {DIFFERENT} something, 1 it cannot be said")
    add_repository(diff)
    for side in ("a", "b"):
        what = "FILE.py, FILE.py#VIEW@N, or a version's NAME[@ALIAS|:N]"
        diff.add_argument(side, metavar=side.upper(), help=what)
    diff.add_argument("--json", action="store_true", help="print JSON instead of text")
    diff.set_defaults(run=reporting(_run_diff))
    usage = verbs.add_parser("usage", help="which versions that serve read which views and features, and which nobody reads")
    add_repository(usage)
    add_definitions(usage, required=False)
    usage.add_argument("--json", action="store_true", help="print JSON instead of text")
    usage.set_defaults(run=reporting(_run_usage))
    add_materialize(verbs)
    add_audit(verbs)


def add_definitions(parser: ArgumentParser, *, required: bool) -> None:
    """The flag that names definition files. They are executed: name only files that you would run."""
    parser.add_argument(
        "--definitions", type=Path, nargs="+", metavar="FILE", required=required, default=[], help="Python files with views"
    )


def _run_show(arguments: Namespace) -> int:
    definitions = load_definitions(arguments.definitions)
    if arguments.json:
        print(json.dumps([_view_row(definitions, ref) for ref in definitions.views], indent=2))
    else:
        print("\n\n".join(_view_text(definitions, ref) for ref in definitions.views) or "no views")
    return 0


def _run_diff(arguments: Namespace) -> int:
    old, new = _side(arguments, arguments.a), _side(arguments, arguments.b)
    # a view that one side names alone is asked for on the other side too, unless that names one itself
    if "#" in arguments.a and "#" not in arguments.b:
        new = _only(new, next(iter(old)), arguments.b)
    elif "#" in arguments.b and "#" not in arguments.a:
        old = _only(old, next(iter(new)), arguments.a)
    lines = compare(old, new)
    print(json.dumps({"differences": lines}, indent=2) if arguments.json else "\n".join(lines or ["no differences"]))
    return DIFFERENT if lines else 0


def _run_usage(arguments: Namespace) -> int:
    views = load_definitions(arguments.definitions).views if arguments.definitions else None
    readers, problems = read_usage(source_of(arguments).scan())
    found = usage_rows(readers, None if views is None else {ref: view.names for ref, view in views.items()})
    if arguments.json:
        print(json.dumps({"views": found, "problems": problems}, indent=2))
    else:
        print("\n".join([*map(_usage_text, found), *(f"problem: {line}" for line in problems)]) or "no views")
    # what a broken contract reads is not known, so nobody may conclude from the rest that something is not read
    return 1 if problems else 0


def compare(old: Mapping[str, Description], new: Mapping[str, Description]) -> list[str]:
    """What differs between two sets of views, a line each.

    Where both have one view, these are compared, whatever they are called: two versions of a view can be.
    """
    if len(old) == len(new) == 1:
        ((before, old_view),), ((after, new_view),) = old.items(), new.items()
        name = before if before == after else f"{before} -> {after}"
        return [f"{name}: {line}" for line in differences(old_view, new_view)]
    lines = [f"{ref}: only in A" for ref in old if ref not in new]
    for ref in old:
        if ref in new:
            lines += [f"{ref}: {line}" for line in differences(old[ref], new[ref])]
    return lines + [f"{ref}: only in B" for ref in new if ref not in old]


def read_usage(models: Mapping[str, FoundModel]) -> tuple[dict[VersionKey, Contract], list[str]]:
    """The contracts of the versions that serve, or would if a server started now; and of those whose contract is broken, why.

    What serves is decided where a server decides it: aliases and the version policy of `model.toml`.
    """
    contracts: dict[VersionKey, Contract] = {}
    problems = []
    for key in sorted(desired(models, "poll", {}, {}, {})):
        try:
            contract = read_contract(models[key.model].versions[key.version].folder)
        except ContractError as error:
            problems.append(f"{key}: {error}")
            continue
        if contract is not None:
            contracts[key] = contract
    return contracts, problems


def usage_rows(readers: Mapping[VersionKey, Contract], installed: Mapping[str, Sequence[str]] | None) -> list[dict[str, Any]]:
    """A row for each view that is read or installed: which versions read it, and for each feature which versions do.

    `installed`: features by view; None where that was not asked.
    """
    features: dict[str, dict[str, list[str]]] = {ref: {name: [] for name in names} for ref, names in (installed or {}).items()}
    read_by: dict[str, list[str]] = {ref: [] for ref in features}
    for key, contract in readers.items():
        for ref, used in contract.used().items():
            of_view = features.setdefault(ref, {})
            for name in contract.recorded[ref].names:
                of_view.setdefault(name, [])
            for name in used:
                of_view[name].append(str(key))
            read_by.setdefault(ref, [])
            if used:
                read_by[ref].append(str(key))
    return [
        {
            "view": ref,
            "installed": None if installed is None else ref in installed,
            "read_by": read_by[ref],
            "features": features[ref],
        }
        for ref in sorted(features)
    ]


def _side(arguments: Namespace, text: str) -> Mapping[str, Description]:
    file, hash_sign, ref = text.partition("#")
    if file.endswith(".py"):
        definitions = load_definitions([Path(file)])
        return {ref: definitions.description(ref)} if hash_sign else definitions.descriptions
    models = source_of(arguments).scan()
    key = resolve(models, text)
    contract = read_contract(models[key.model].versions[key.version].folder)
    if contract is None:
        raise NotFound(f"{key} was made without features")
    return {name: each.description for name, each in contract.recorded.items()}


def _only(descriptions: Mapping[str, Description], ref: str, text: str) -> Mapping[str, Description]:
    if ref not in descriptions:
        raise NotFound(f"there is no view '{ref}' in {text}; it has: {', '.join(descriptions) or 'none'}")
    return {ref: descriptions[ref]}


def _view_row(definitions: Definitions, ref: str) -> dict[str, Any]:
    view, stamp = definitions.views[ref], definitions.fingerprints.get(ref)
    return {
        "view": ref,
        "fingerprint": None if stamp is None else stamp.hex(),
        **{
            key: value
            for key, value in definitions.descriptions[ref].document.items()
            if key not in ("format", "view", "state")
        },
        "units": {feature.name: feature.unit for feature in view.features},
    }


def _view_text(definitions: Definitions, ref: str) -> str:
    view, stamp = definitions.views[ref], definitions.fingerprints.get(ref)
    about = [f"{ref}  {view.kind}", f"fingerprint {'with its state only' if stamp is None else stamp.hex()[:_SHOWN]}"]
    if view.entity is not None and view.source is not None:
        keys = ", ".join(f"{key} {dtype}" for key, dtype in view.entity.keys.items())
        about += [f"entity {view.entity.name} ({keys})", f"of {view.source.name}"]
    about += [f"max age {timedelta(microseconds=view.max_age_us)}"] if view.max_age_us else []
    rows = [("FEATURE", "TYPE", "DEFAULT", "NULL", "MAX AGE", "UNIT")]
    for feature in view.features:
        shape = f" {list(feature.shape)}" if feature.shape else ""
        age = str(timedelta(microseconds=feature.max_age_us)) if feature.max_age_us else "-"
        rows.append(
            (feature.name, feature.dtype + shape, repr(feature.default), feature.null, age, feature.unit or "-"),
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(["  ".join(about), *(f"  {line.rstrip()}" for line in lines)])


def _usage_text(row: Mapping[str, Any]) -> str:
    read_by = ", ".join(row["read_by"]) or "nobody"
    lines = [f"{row['view']}  read by {read_by}" + ("  (not installed)" if row["installed"] is False else "")]
    for name, versions in row["features"].items():
        # only where it says more than the view's own line
        if versions != row["read_by"] or not versions:
            lines.append(f"  {name}  read by {', '.join(versions) or 'nobody'}")
    return "\n".join(lines)
