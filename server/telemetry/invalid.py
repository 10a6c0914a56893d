"""Rows that broke a constraint, counted.

Floor 2: an engine's thread writes it once per batch that breaks any, a scrape reads it.
"""

import threading
from collections.abc import Mapping

InvalidRows = Mapping[tuple[str, str, str], int]
"""Rows by input (or one column of it), constraint ("at_least", "complete", …) and action ("reject" or "count"). How many there
can be is bounded by the settings of the model."""


class InvalidCounts:
    """Counts for one version. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, str], int] = {}

    def add(self, rows: InvalidRows) -> None:
        """Record the rows of one batch."""
        with self._lock:
            for name, count in rows.items():
                self._rows[name] = self._rows.get(name, 0) + count

    def rows(self) -> InvalidRows:
        """All rows so far. Ownership: a copy."""
        with self._lock:
            return dict(self._rows)
