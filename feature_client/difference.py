"""What differs between two descriptions of a view, a line each, in words that say what to look at. **Pure.**"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from feature_client.errors import DefinitionError
from feature_client.fingerprint import Description

_SOURCE_LINES = 6
"""Lines of source that are shown of a function that changed."""

_FEATURE = {"dtype": "type", "shape": "shape", "default": "default", "null": "null policy", "max_age_us": "max_age_us"}
_ENTITY = {"name": "name of the entity", "keys": "join keys"}
_SOURCE = {
    "name": "name of the event log",
    "event_time": "event time",
    "created_time": "created time",
    "event_id": "event id",
    "columns": "columns of the event log",
}


def differences(old: Description, new: Description) -> list[str]:
    """Every difference, `what: old -> new`, the view's own declarations first. Empty exactly where the documents are equal.

    Where one side has no state (definitions alone have none), the state is not compared.
    Raises: DefinitionError for a document that is hashed rightly, but was made by somebody else's program.
    """
    try:
        return _differences(old, new)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DefinitionError(f"its recorded description is none: {type(error).__name__}: {error}") from error


def _differences(old: Description, new: Description) -> list[str]:
    before, after = old.document, new.document
    lines = list(_changed({"format": "format of the description", "view": "view", "kind": "kind"}, before, after))
    lines += _table("entity", _ENTITY, before["entity"], after["entity"])
    lines += _table("source", _SOURCE, before["source"], after["source"])
    lines += _ordered("input", before["inputs"], after["inputs"], {})
    lines += _ordered("feature", before["features"], after["features"], _FEATURE)
    lines += _changed({}, before["policy"], after["policy"])
    lines += _changed({"function": "function"}, before, after)
    lines += _functions(old, new)
    if before["state"] is not None and after["state"] is not None:
        lines += _members("state", before["state"], after["state"])
    return lines


def _changed(words: Mapping[str, str], before: Mapping[str, Any], after: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """The keys with a word, or all where there are no words."""
    for key in words or sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{words.get(key, key)}{where}: {_text(before.get(key))} -> {_text(after.get(key))}"


def _table(name: str, words: Mapping[str, str], before: Any, after: Any) -> Iterator[str]:
    if before is None or after is None:
        if before != after:
            yield f"{name}: {_text(before)} -> {_text(after)}"
        return
    yield from _changed(words, before, after)


def _ordered(kind: str, before: list[Any], after: list[Any], words: Mapping[str, str]) -> Iterator[str]:
    old, new = dict(before), dict(after)
    yield from _members(kind, old, new, words)
    both = [[name for name in side if name in old and name in new] for side in (old, new)]
    if both[0] != both[1]:
        yield f"order of the {kind}s: {', '.join(both[0])} -> {', '.join(both[1])}"


def _members(
    kind: str, old: Mapping[str, Any], new: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> Iterator[str]:
    for name in old:
        if name not in new:
            yield f"{kind} '{name}' is gone"
        else:
            yield from _changed(words or {}, old[name], new[name], f" of the {kind} '{name}'")
    yield from (f"{kind} '{name}' is new" for name in new if name not in old)


def _functions(old: Description, new: Description) -> Iterator[str]:
    before, after = old.document["closure"], new.document["closure"]
    for name in sorted(before.keys() | after.keys()):
        if name not in after or name not in before:
            yield f"'{name}', a function or class that is used, is {'gone' if name not in after else 'new'}"
            continue
        one, other = before[name], after[name]
        if one.get("code") != other.get("code"):
            yield f"code of '{name}': {_lines(old.texts.get(name, ''), new.texts.get(name, ''))}"
        if one.get("defaults") != other.get("defaults"):
            yield f"default arguments of '{name}': {one.get('defaults')} -> {other.get('defaults')}"
        for each in sorted(one["names"].keys() | other["names"].keys()):
            pair = one["names"].get(each), other["names"].get(each)
            # a name that only one side uses is told by the code that uses it
            if pair[0] != pair[1] and None not in pair:
                yield f"'{each}' in '{name}': {pair[0]} -> {pair[1]}"
            elif pair[0] != pair[1] and one.get("code") == other.get("code"):
                yield f"'{each}' in '{name}': {_text(pair[0])} -> {_text(pair[1])}"


def _lines(old: str, new: str) -> str:
    changed = [
        line[0] + " " + line[1:].strip()
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    more = f" (and {len(changed) - _SOURCE_LINES} lines more)" if len(changed) > _SOURCE_LINES else ""
    return " | ".join(changed[:_SOURCE_LINES]) + more if changed else "it differs"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return "nothing" if value is None or value == "" else str(value)
