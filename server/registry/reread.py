"""Small documents that are read again only when their file has changed.

Floor 2: makes a rescan of an unchanged repository cost one stat per document. Never used for model files.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from server.core.errors import RegistryError

DOCUMENT_LIMIT_BYTES = 16 * 2**20
"""No settings, aliases or manifest are larger: a model file under the wrong name must not be read into memory."""

T = TypeVar("T")
_Stamp = tuple[int, int, int]


class Reread(Generic[T]):
    """Parsed content by path. A file that was refused stays refused until it changes.

    Ownership: one thread. The parsed value is shared by all who asked: it must not be changed.
    """

    def __init__(self, parse: Callable[[bytes], T]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[_Stamp, T | RegistryError]] = {}

    def get(self, path: Path) -> T | None:
        """The document's value, None where there is no such file.

        Raises: RegistryError when it cannot be read or understood.
        """
        try:
            found = path.stat()
            stamp = (found.st_size, found.st_mtime_ns, found.st_ino)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                # the stamp was taken before reading: content that changes in between is read again next time
                known = (stamp, self._read(path, found))
                self._known[path] = known
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{path.name}: {error.strerror}") from None
        if isinstance(known[1], RegistryError):
            # a fresh error each time: a raised one keeps the frames it passed through alive
            raise RegistryError(str(known[1]))
        return known[1]

    def forget_except(self, used: Iterable[Path]) -> None:
        """Drop what was read from any other path: the memory of removed versions."""
        keep = set(used)
        self._known = {path: known for path, known in self._known.items() if path in keep}

    def _read(self, path: Path, found: os.stat_result) -> T | RegistryError:
        if found.st_size > DOCUMENT_LIMIT_BYTES:
            return RegistryError(f"{path.name} has {found.st_size} bytes, more than the {DOCUMENT_LIMIT_BYTES} allowed")
        data = path.read_bytes()
        try:
            return self._parse(data)
        except RegistryError as error:
            return RegistryError(str(error))
