"""What the last look at the repository found, and when to look again.

Floor 4, beside the manager whose thread alone looks: a repository out of reach takes nothing back that was found before.
"""

import logging
from collections.abc import Mapping

from server.core.clock import NS_PER_S, Clock
from server.core.errors import RegistryError
from server.lifecycle.found import FoundModel, Source

_RETRY_NS = NS_PER_S

_log = logging.getLogger(__name__)


class Scans:
    """Ownership: the manager's thread. `found` and `problem` are replaced as a whole, so any thread may read them."""

    def __init__(self, source: Source, settle_ns: int, clock: Clock) -> None:
        self._source = source
        self._settle_ns = settle_ns
        self._clock = clock
        self.found: Mapping[str, FoundModel] = {}
        self.problem = ""
        """Why the last scan found nothing new; empty when it did."""
        self.again_at_ns: int | None = None
        """When to scan again though nobody asks for it."""
        self._first_ns: int | None = None

    @property
    def due(self) -> bool:
        """Whether it is time to scan again."""
        return self.again_at_ns is not None and self._clock() >= self.again_at_ns

    def scan(self, *, wait_for_files: bool) -> bool:
        """Look. False where the repository cannot be read: what was found before still holds. With `wait_for_files`, what was
        still being written is looked at again.
        """
        now_ns = self._clock()
        self.again_at_ns = None
        try:
            self.found = self._source.scan()
        except (OSError, RegistryError) as error:
            self.problem = f"the repository cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            _log.warning("%s", self.problem)
            self.again_at_ns = now_ns + _RETRY_NS
            return False
        self.problem = ""
        if self._first_ns is None:
            self._first_ns = now_ns
        if wait_for_files and self._unsettled():
            self.again_at_ns = now_ns + self._settle_ns
        return True

    def awaits_files(self, *, wanted: bool) -> bool:
        """Whether there is more to come before the start is over: the first scan; where `wanted`, what is still being written.
        Files that never settle are waited for twice as long as they might need.
        """
        if self._first_ns is None:
            return True
        return wanted and self._unsettled() and self._clock() - self._first_ns < 2 * self._settle_ns

    def _unsettled(self) -> bool:
        return any(not version.settled for model in self.found.values() for version in model.versions.values())
