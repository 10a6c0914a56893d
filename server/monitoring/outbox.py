"""Events that have yet to reach somebody: kept where a killed process finds them again, until everybody has confirmed.

Floor 4. An event is on disk before the first attempt to deliver it, and goes after its last confirmation: killed at any
instant, it is delivered again rather than lost, and always under the same id. Never decides when to try.
"""

import json
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.monitoring.events import Event, event_of
from server.registry.durable import sync_folder, write_atomically

LIMIT = 1000
"""Events that may wait: a model has one at most, so there are more models than this, or nobody is there to take any."""
_SUFFIX = ".event"
_log = logging.getLogger("podium.monitoring")


@dataclass(frozen=True, slots=True)
class _Entry:
    """An event, and who has confirmed it."""

    event: Event
    confirmed: frozenset[str] = frozenset()

    def document(self) -> bytes:
        return json.dumps({"event": self.event.body.decode(), "confirmed": sorted(self.confirmed)}).encode()


class Outbox:
    """Thread-safe. `folder` None: events are in memory alone, and lost with the process. Ownership: one process a folder."""

    def __init__(self, folder: Path | None, destinations: Sequence[str], limit: int = LIMIT) -> None:
        """`destinations`: who must confirm; an event for which that is nobody is not kept.

        Raises: OSError for a folder that cannot be read.
        """
        self._folder = folder
        self._destinations = frozenset(destinations)
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.suffix == _SUFFIX and not path.name.startswith("."):
                self._take_up(path)
            elif path.name.startswith(".") and f"{_SUFFIX}-" in path.name:
                path.unlink()  # being written when its process was killed: nobody was told that it is kept
        for entry in list(self._entries.values()):
            self._settle(entry)

    def put(self, event: Event) -> bool:
        """Keep an event: it is on disk when this returns. False, and nothing kept, when too many wait.

        Raises: OSError where it cannot be written; nothing is kept then.
        """
        with self._lock:
            if event.id in self._entries or not self._destinations:
                return True
            if len(self._entries) >= self._limit:
                return False
            entry = _Entry(event)
            self._write(entry)
            self._entries[event.id] = entry
            return True

    def waiting(self, destination: str) -> list[Event]:
        """What this one has not confirmed, the oldest first."""
        with self._lock:
            found = [entry.event for entry in self._entries.values() if destination not in entry.confirmed]
        return sorted(found, key=lambda each: (each.time_us, each.id))

    def confirm(self, event_id: str, destination: str) -> bool:
        """This one has it. Returns: whether that was the last: then it is gone from disk.

        Raises: OSError where that cannot be written; this process knows it all the same, the next one delivers again.
        """
        with self._lock:
            known = self._entries.get(event_id)
            if known is None:
                return False
            entry = _Entry(known.event, known.confirmed | {destination})
            self._entries[event_id] = entry
            return self._settle(entry)

    def models(self) -> dict[str, Event]:
        """The newest event of each model that has one here."""
        with self._lock:
            return {each.event.model: each.event for each in sorted(self._entries.values(), key=lambda one: one.event.time_us)}

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def _settle(self, entry: _Entry) -> bool:
        """Remove what everybody has confirmed, and write what somebody has not."""
        if not self._destinations <= entry.confirmed:
            if entry.confirmed:
                self._write(entry)
            return False
        del self._entries[entry.event.id]
        if self._folder is not None:
            with suppress(FileNotFoundError):
                self._path(entry.event).unlink()
            sync_folder(self._folder)
        return True

    def _write(self, entry: _Entry) -> None:
        if self._folder is not None:
            write_atomically(self._path(entry.event), entry.document())

    def _path(self, event: Event) -> Path:
        assert self._folder is not None
        return self._folder / f"{event.id}{_SUFFIX}"

    def _take_up(self, path: Path) -> None:
        """What an earlier process has left. A file that cannot be understood stays where it is: somebody may be able to."""
        try:
            document = json.loads(path.read_bytes())
            event = event_of(document["event"].encode())
            if path.name != f"{event.id}{_SUFFIX}":
                raise ValueError(f"it holds the event {event.id}")
            self._entries[event.id] = _Entry(event, frozenset(document["confirmed"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            _log.error("an event that waits cannot be read", extra={"path": str(path), "reason": reason})
