"""Which versions of a model may be removed, and why the others may not. **Pure.**

Floor 2. A version goes only if no rule keeps it; where something cannot be known, everything stays.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.registry.names import AliasMove


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator wants kept beside what is in use. `newest` ≥ 1 versions; `recent`: after an alias left a version."""

    newest: int
    recent: timedelta


@dataclass(frozen=True, slots=True)
class Shelf:
    """One model as it is now.

    `parents` has every version, with the one that it was made from or None. `unreadable` are versions that have a manifest
    which cannot be read, so that their parents are not known. `leased` are those that a running server holds, or may hold.
    """

    parents: Mapping[int, int | None]
    aliases: Mapping[str, int]
    history: Sequence[AliasMove]
    leased: Collection[int] = frozenset()
    unreadable: Collection[int] = frozenset()


def reasons_to_keep(shelf: Shelf, rules: Rules, now: datetime) -> dict[int, tuple[str, ...]]:
    """For every version why it stays, in words; an empty tuple is a version that may go.

    Kept are: what an alias is on; the newest; what an alias left a short while ago (a rollback leads there); what is leased;
    and every ancestor of a version that is kept, so that lineage never breaks.
    """
    kept: dict[int, list[str]] = {version: [] for version in sorted(shelf.parents)}
    for alias, version in sorted(shelf.aliases.items()):
        if version in kept:
            kept[version].append(f"@{alias}")
    for version in sorted(kept)[-rules.newest :]:
        kept[version].append(f"one of the newest {rules.newest}" if rules.newest > 1 else "the newest")
    for alias, version in sorted(_left_since(shelf.history, now - rules.recent)):
        if version in kept and shelf.aliases.get(alias) != version:
            kept[version].append(f"was @{alias} less than {_days(rules.recent)} ago")
    for version in sorted(set(shelf.leased) & set(kept)):
        kept[version].append("leased by a running server")
    doubtful = [version for version in sorted(kept) if kept[version] and version in shelf.unreadable]
    if doubtful:
        return {version: (*why, f"the parents of version {doubtful[0]} cannot be read") for version, why in kept.items()}
    for version in [version for version, why in kept.items() if why]:
        child, parent = version, shelf.parents[version]
        while parent in kept and not kept[parent]:
            kept[parent].append(f"parent of {child}")
            if parent in shelf.unreadable:
                return {each: (*why, f"the parents of version {parent} cannot be read") for each, why in kept.items()}
            child, parent = parent, shelf.parents[parent]
    return {version: tuple(why) for version, why in kept.items()}


def _left_since(history: Sequence[AliasMove], since: datetime) -> set[tuple[str, int]]:
    return {(move.alias, move.before) for move in history if move.before is not None and move.at >= since}


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):g} days"
