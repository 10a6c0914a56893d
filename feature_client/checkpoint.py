"""How far a long fill has come, in a file that is whole whenever it is looked at.

What counts is what was filled: rows done of something else (another definition, other events, another store) are none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_client.errors import StoreError


class Checkpoint:
    """Rows done by what they are of. Ownership: one process. `path` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        """Raises: StoreError for a file that is no checkpoint: it is not overwritten."""
        self._path = path
        self._done: dict[str, int] = {}
        if path is None or not path.exists():
            return
        try:
            made: Any = json.loads(path.read_bytes())
        except OSError as error:
            raise StoreError(f"the checkpoint '{path}' cannot be read: {error.strerror}") from None
        except ValueError:
            made = None
        if not isinstance(made, Mapping) or not all(type(rows) is int and rows >= 0 for rows in made.values()):
            raise StoreError(f"'{path}' is no checkpoint; remove it to begin anew")
        self._done = dict(made)

    def rows_done(self, what: str) -> int:
        """0 for what is not known."""
        return self._done.get(what, 0)

    def reached(self, what: str, rows: int) -> None:
        """Keep how far it has come. Raises: StoreError."""
        self._done[what] = rows
        if self._path is None:
            return
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.write_text(json.dumps(self._done), "utf-8")
            beside.replace(self._path)
        except OSError as error:
            raise StoreError(f"the checkpoint '{self._path}' cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """Everything is done: the next fill is another one. Raises: StoreError."""
        if self._path is None:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"the checkpoint '{self._path}' cannot be removed: {error.strerror}") from None
