"""How many values each view has served with which status."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import status_text
from feature_client.view import View

_STATUSES = 256


class Counts:
    """Totals of a server, which never fall: whoever serves a view, and comes and goes, counts here. Thread-safe.

    A batch costs one pass over its statuses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, NDArray[np.int64]] = {}

    def counter(self, view_of: Mapping[str, View], names: Sequence[str]) -> "Counter":
        """What counts batches whose statuses are in the order of `names`."""
        return Counter(self, [view_of[name].ref for name in names])

    def add(self, refs: Sequence[str], found: NDArray[np.int64]) -> None:
        """Shapes: `found` `[V, 256]`, one line for each of `refs`."""
        with self._lock:
            for ref, each in zip(refs, found, strict=True):
                self._totals[ref] = self._totals.get(ref, 0) + each

    def readings(self) -> dict[tuple[str, str], int]:
        """By view and status as it is shown, for those that ever were."""
        with self._lock:
            totals = {ref: each.copy() for ref, each in self._totals.items()}
        return {
            (ref, status_text(status)): int(each[status])
            for ref, each in totals.items()
            for status in np.flatnonzero(each).tolist()
        }


class Counter:
    """Counts the batches of one loaded version."""

    def __init__(self, counts: Counts, refs: Sequence[str]) -> None:
        self._counts = counts
        self._refs = list(dict.fromkeys(refs))
        self._offsets = np.array([self._refs.index(ref) * _STATUSES for ref in refs], dtype=np.int64)[:, None]

    def add(self, statuses: NDArray[np.uint8]) -> None:
        """Shapes: uint8 `[F, N]`."""
        found = np.bincount((statuses + self._offsets).ravel(), minlength=len(self._refs) * _STATUSES)
        self._counts.add(self._refs, found.reshape(len(self._refs), _STATUSES))
