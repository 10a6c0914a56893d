"""Something made from files, made anew when one of them changes; while that fails, the last that could be made holds.

Floor 6: certificates and tokens are replaced under a running server, often by hand. A file that is half written or wrong must
neither lock everybody out nor let anybody in: what was good stays, and one warning says so.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

_log = logging.getLogger("podium.door")
T = TypeVar("T")
_Stamps = tuple[tuple[int, int, int], ...]


class Kept(Generic[T]):
    """The value of `make()` over `paths`. Ownership: any thread; gRPC asks from its own."""

    def __init__(self, paths: Sequence[Path], make: Callable[[], T]) -> None:
        """Raises: OSError of `make`: what was never good cannot be kept."""
        self._paths = tuple(paths)
        self._make = make
        self._lock = threading.Lock()
        self._seen: _Stamps | str = self._look()
        self._value = make()

    def get(self) -> T:
        """The newest value that could be made. Costs one stat per file while nothing changes."""
        with self._lock:
            now = self._look()
            if now != self._seen:
                # the stamps were taken before reading: what changes in between is read again next time
                self._seen = now
                try:
                    self._value = self._make()
                except OSError as error:
                    _log.warning("a changed file is not used; what was read before holds", extra={"reason": str(error)})
                else:
                    _log.info("read again", extra={"files": [str(path) for path in self._paths]})
            return self._value

    def _look(self) -> _Stamps | str:
        try:
            return tuple((found.st_size, found.st_mtime_ns, found.st_ino) for found in map(Path.stat, self._paths))
        except OSError as error:
            return str(error)
