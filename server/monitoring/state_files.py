"""The files in which monitors remember: one for each version, whole or not there.

Floor 4: the monitors' only hands on the disk. Never decides what is remembered.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from server.core.versions import VersionKey
from server.monitoring.state_document import Saved, unpack
from server.registry.durable import write_atomically

SUFFIX = ".monitor"
KEPT_S = 90 * 86_400
"""Files of versions that have not been monitored for so long are removed."""
_log = logging.getLogger("podium.monitoring")


def file_name(key: VersionKey) -> str:
    """What a version's file is called. Of its model's name what a file may have, and a hash of all of it.

    >>> file_name(VersionKey("fraud/eu", 3))
    'fraud-eu-3-c54a8a16.monitor'
    """
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter == "_") else "-" for letter in key.model[:64])
    return f"{plain}-{key.version}-{hashlib.sha256(key.model.encode()).hexdigest()[:8]}{SUFFIX}"


class StateFiles:
    """Files in one folder, which is made. Used by one thread at a time. Raises: OSError where the folder cannot be made."""

    def __init__(self, folder: Path, now_s: float) -> None:
        self._folder = folder
        self._refused = False
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{SUFFIX}-*"):
            left.unlink(missing_ok=True)  # what an earlier process was writing when it was killed
        for old in folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):
                if old.stat().st_mtime < now_s - KEPT_S:
                    old.unlink()

    def read(self, key: VersionKey) -> Saved | None:
        """What was remembered of a version, None where there is nothing that can be used.

        A file that is damaged, of another format or another version is set aside (`.unreadable` after its name), and said.
        """
        path = self._folder / file_name(key)
        try:
            saved = unpack(path.read_bytes())
            if saved.key != key:
                raise ValueError(f"it is of {saved.key}")
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("what a monitor remembers cannot be read", extra={"file": path.name, "reason": str(error)})
            return None
        except ValueError as error:
            aside = path.with_name(path.name + ".unreadable")
            _log.warning("what a monitor remembers cannot be used", extra={"reason": str(error), "kept_as": aside.name})
            with suppress(OSError):
                path.replace(aside)
            return None
        return saved

    def write(self, documents: Mapping[VersionKey, bytes]) -> bool:
        """Write each, whole or not at all; whether all of them are. A disk that refuses is said once, until it no longer
        does."""
        try:
            for key, data in documents.items():
                write_atomically(self._folder / file_name(key), data)
        except OSError as error:
            if not self._refused:
                _log.error("what monitors remember cannot be kept", extra={"reason": str(error)})
            self._refused = True
            return False
        self._refused = False
        return True
