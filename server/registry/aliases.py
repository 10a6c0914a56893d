"""Names that move: champion, challenger or any other, each on one version of its model (`aliases.json`).

Floor 2. Moves are atomic and serialised across processes, and every move leaves a line in `aliases.log`. Never decides
which version deserves a name.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from server.core.errors import InvalidRequest, NotFound, RegistryError
from server.registry.durable import append_line, locked, write_atomically
from server.registry.environment import current_user
from server.registry.manifest import Version, faults
from server.registry.names import AliasMove, check_alias_name

ALIASES_FILE = "aliases.json"
HISTORY_FILE = "aliases.log"

_ALIASES = TypeAdapter(dict[str, Version])


def parse_aliases(data: bytes) -> dict[str, int]:
    """Read an aliases.json: `{"champion": 3}`. Raises: RegistryError."""
    try:
        aliases = _ALIASES.validate_json(data, strict=True)
        for alias in aliases:
            check_alias_name(alias)
    except ValidationError as error:
        raise RegistryError(f"{ALIASES_FILE}: {faults(error)}") from None
    except InvalidRequest as error:
        raise RegistryError(f"{ALIASES_FILE}: {error}") from None
    return aliases


def read_aliases(model_folder: Path) -> dict[str, int]:
    """The model's aliases; none where the file is not there. Raises: RegistryError when it cannot be understood."""
    try:
        return parse_aliases((model_folder / ALIASES_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RegistryError(f"{ALIASES_FILE}: {error.strerror}") from None


def set_alias(model_folder: Path, alias: str, version: int) -> int | None:
    """Move an alias to a version, and return the version it was on. Two movers at once: both happen, one after the other.

    Raises: NotFound for a version that is not there; InvalidRequest for an illegal alias; RegistryError.
    """
    with locked(_existing(model_folder)):
        return move_alias(model_folder, alias, version)


def remove_alias(model_folder: Path, alias: str) -> int:
    """Remove an alias, and return the version it was on. Raises: NotFound when there is none; RegistryError."""
    with locked(_existing(model_folder)):
        before = read_aliases(model_folder).get(alias)
        if before is None:
            raise NotFound(f"model '{model_folder.name}' has no alias '{alias}'")
        _write(model_folder, alias, before, None)
        return before


def move_alias(model_folder: Path, alias: str, version: int) -> int | None:
    """`set_alias` for a caller that holds the model folder's lock already."""
    check_alias_name(alias)
    if not (model_folder / str(version)).is_dir():
        raise NotFound(f"alias '{alias}' cannot be moved: model '{model_folder.name}' has no version {version}")
    before = read_aliases(model_folder).get(alias)
    if before != version:
        _write(model_folder, alias, before, version)
    return before


def read_history(model_folder: Path) -> list[AliasMove]:
    """Every recorded move, oldest first. A line cut off by a crash is left out."""
    try:
        lines = (model_folder / HISTORY_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    moves = []
    for line in lines:
        try:
            moves.append(AliasMove.model_validate_json(line, strict=True))
        except ValidationError:
            continue
    return moves


def _write(model_folder: Path, alias: str, before: int | None, after: int | None) -> None:
    aliases = read_aliases(model_folder)
    if after is None:
        del aliases[alias]
    else:
        aliases[alias] = after
    move = AliasMove(at=datetime.now(UTC), who=current_user(), alias=alias, before=before, after=after)
    # the line first: a crash in between leaves a move that was announced and not made (the next line's `before` shows it),
    # which is better than one that was made and never announced
    append_line(model_folder / HISTORY_FILE, move.model_dump_json())
    write_atomically(model_folder / ALIASES_FILE, (json.dumps(aliases, indent=2, sort_keys=True) + "\n").encode())


def _existing(model_folder: Path) -> Path:
    if not model_folder.is_dir():
        raise NotFound(f"there is no model '{model_folder.name}' in the repository")
    return model_folder
