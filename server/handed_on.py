"""What one life of a process hands to the next: the models that callers loaded, with the settings that they brought.

Roof. It is in no file that anybody else could write, and as long as it has to be: memory with a number, which stays open over
the new beginning and is closed once it was read.
"""

import os
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from server.core.settings import ModelSettings

Loads = Mapping[str, ModelSettings | None]
"""What was loaded from the repository, by model; with None, by its own settings."""

NOTHING = -1

_LOADS: TypeAdapter[dict[str, ModelSettings | None]] = TypeAdapter(dict[str, ModelSettings | None])


def hand_on(loads: Loads) -> int:
    """Keep them. Returns: the number of an open file that is to be inherited."""
    number = os.memfd_create("podium-loads", 0)
    with open(number, "wb", closefd=False) as file:
        file.write(_LOADS.dump_json(dict(loads)))
    return number


def handed_on(number: int) -> Loads | None:
    """What was kept, once. None where it was nothing, or is not what this file writes."""
    if number == NOTHING:
        return None
    try:
        with open(number, "rb") as file:
            file.seek(0)
            return _LOADS.validate_json(file.read())
    except (OSError, ValidationError):
        return None
