"""What may be called what, how a version is written on a command line, and how a name moved. **Pure.**

Floor 2 beside the registry it names. A name that passes here is one path component, so no name can lead out of the
repository; ':' and '@' are excluded because they separate a model from its version or alias.
"""

import re
from dataclasses import dataclass

from pydantic import AwareDatetime, BaseModel, ConfigDict

from server.core.errors import InvalidRequest

INCOMING_PREFIX = ".incoming-"
"""How the hidden folder of a version that is still being registered begins."""

PRUNED_PREFIX = ".pruned-"
"""How the hidden folder of a version that is being removed begins."""

MEASURED_FOLDER = ".measured"
"""The hidden folder of a model in which what loads have measured of its versions is kept."""

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
# 18 digits stay inside int64, which is what a version is on the wire; "01" would be a second spelling of 1
_VERSION = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A version as somebody wrote it: a number, an alias, or neither (`NAME` alone). Never both."""

    model: str
    version: int | None = None
    alias: str | None = None


class AliasMove(BaseModel):
    """One move of an alias, a line of its model's history. None is "nowhere": before the first move, and after a removal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    who: str
    alias: str
    before: int | None
    after: int | None


class Pruned(BaseModel):
    """One removal of a version, a line of its model's `pruned.log`; written before the removal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    who: str
    version: int
    parent: int | None


def check_model_name(name: str) -> None:
    """Return for a name that may be a folder of the repository.

    Raises: InvalidRequest. Triton's words are kept because clients match on them.
    """
    if not name.strip():
        raise InvalidRequest("Model name cannot be empty. Please enter a valid name to deploy.")
    if "/" in name or "\\" in name or "\0" in name or name in {".", ".."}:
        raise InvalidRequest(f"invalid model name {name!r}, model name must not contain path traversal characters")
    if not _MODEL.fullmatch(name):
        raise InvalidRequest(
            f"model name {name!r} must be at most 128 letters, digits, '_', '-' and '.', and not start with '-' or '.'"
        )


def check_alias_name(alias: str) -> None:
    """Return for a legal alias; an alias can never be mistaken for a version number.

    Raises: InvalidRequest.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidRequest(
            f"alias {alias!r} must start with a lower-case letter and be at most 64 lower-case letters, digits, '_' and '-'"
        )


def version_number(text: str) -> int | None:
    """The version a folder name (or an argument) states, None where it states none.

    >>> version_number("12"), version_number("012"), version_number("0"), version_number("1.5")
    (12, None, None, None)
    """
    return int(text) if _VERSION.fullmatch(text) else None


def parse_reference(text: str) -> Reference:
    """Read `NAME`, `NAME:3` or `NAME@champion`.

    Raises: InvalidRequest naming the part that is wrong.

    >>> parse_reference("flight_delay@champion")
    Reference(model='flight_delay', version=None, alias='champion')
    """
    model, separator, rest = text, "", ""
    for index, letter in enumerate(text):
        if letter in ":@":
            model, separator, rest = text[:index], letter, text[index + 1 :]
            break
    check_model_name(model)
    if separator == "@":
        check_alias_name(rest)
        return Reference(model, alias=rest)
    if separator == ":":
        version = version_number(rest)
        if version is None:
            raise InvalidRequest(f"version {rest!r} of {text!r} must be an integer > 0; an alias is written NAME@ALIAS")
        return Reference(model, version=version)
    return Reference(model)
