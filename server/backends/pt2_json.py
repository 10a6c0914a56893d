"""Reading values out of parsed JSON, each for what it must be. **Pure.** Floor 2.

Where a value is wrong the error says where it stands: nothing is guessed, converted or left to fail later.
"""

import re
from typing import Any, NoReturn

from server.core.errors import LoadFailed

_LARGEST = 2**63
_LONGEST_TEXT = 10_000
_SHOWN = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(where: str, why: str) -> NoReturn:
    """Raise LoadFailed with the place and the reason."""
    raise LoadFailed(f"{where}: {why}")


def mapping(value: object, where: str) -> dict[str, Any]:
    """A JSON object."""
    return value if isinstance(value, dict) else refuse(where, f"{_shown(value)} is no object")


def sequence(value: object, where: str) -> list[Any]:
    """A JSON list."""
    return value if isinstance(value, list) else refuse(where, f"{_shown(value)} is no list")


def text(value: object, where: str) -> str:
    """A string of bearable length that UTF-8 can hold."""
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT and not _SURROGATE.search(value):
        return value
    return refuse(where, f"{_shown(value)} is no string, or too long")


def whole(value: object, where: str, least: int = -_LARGEST) -> int:
    """An integer of 64 bits, `least` at least; `true` is none."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST:
        return value
    return refuse(where, f"{_shown(value)} is no integer from {least} on that 64 bits hold")


def real(value: object, where: str) -> float:
    """A number, or one of the three words that stand for those JSON does not have.

    >>> real("-Infinity", "here")
    -inf
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)
    if isinstance(value, float) or value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    return refuse(where, f"{_shown(value)} is no number")


def truth(value: object, where: str) -> bool:
    """true or false."""
    return value if isinstance(value, bool) else refuse(where, f"{_shown(value)} is neither true nor false")


def variant(value: object, where: str) -> tuple[str, Any]:
    """The one entry of an object that is one of several things: what it is, and its value."""
    entries = list(mapping(value, where).items())
    return entries[0] if len(entries) == 1 else refuse(where, f"{len(entries)} entries where one says what it is")


def field(value: object, name: str, where: str) -> Any:
    """A field that must be there."""
    found = mapping(value, where)
    return found[name] if name in found else refuse(where, f"'{name}' is missing")


def _shown(value: object) -> str:
    return ascii(value)[:_SHOWN]
