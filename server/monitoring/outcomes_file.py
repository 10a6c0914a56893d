"""The file in which outcomes are remembered: whole or not there.

Floor 4. Never decides what is remembered.
"""

import logging
from contextlib import suppress
from pathlib import Path

from server.monitoring.outcomes import Outcomes
from server.registry.durable import write_atomically

FILE = "outcomes.npz"
_log = logging.getLogger("podium.monitoring")


class OutcomesFile:
    """Used by one thread at a time. `folder` is there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._refused = False

    def restore(self, outcomes: Outcomes) -> None:
        """Go on from the file, if there is one. One that is damaged is set aside (`.unreadable` after its name), and said."""
        try:
            outcomes.restore(self._path.read_bytes())
        except FileNotFoundError:
            return
        except OSError as error:
            _log.error("what is known of outcomes cannot be read", extra={"file": FILE, "reason": str(error)})
        except ValueError as error:
            aside = self._path.with_name(FILE + ".unreadable")
            _log.warning("what is known of outcomes cannot be used", extra={"reason": str(error), "kept_as": aside.name})
            with suppress(OSError):
                self._path.replace(aside)

    def save(self, outcomes: Outcomes) -> bool:
        """Whether everything is on disk. A disk that refuses is said once, until it no longer does."""
        try:
            write_atomically(self._path, outcomes.document())
        except OSError as error:
            if not self._refused:
                _log.error("what is known of outcomes cannot be kept", extra={"reason": str(error)})
            self._refused = True
            return False
        self._refused = False
        return True
