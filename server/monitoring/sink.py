"""What takes samples at the end of their way. Pure: names, no behaviour."""

from collections.abc import Sequence
from typing import Protocol

from server.core.versions import VersionKey
from server.monitoring.samples import Samples


class Lost(Exception):
    """Some rows are lost, of those that a call brought or of earlier ones that still waited inside the sink; all others are
    safe, or wait still. Any other exception loses all that a call brought.

    `losses`: version, arm, how many rows, and about when they were served, microseconds since 1970.
    """

    def __init__(self, losses: Sequence[tuple[VersionKey, str, int, int]], reason: str) -> None:
        self.losses = tuple(losses)
        self.rows = sum(rows for _, _, rows, _ in losses)
        super().__init__(f"{self.rows} rows are lost: {reason}")


class Sink(Protocol):
    """Where samples go. One thread calls it, its own, so it may take its time: what waits meanwhile is bounded, and drops are
    counted. What it raises is logged.
    """

    name: str
    """What its waiting and dropped rows are counted under."""

    def write(self, samples: Sequence[Samples]) -> None:
        """Take some samples, in the order in which they were served. If it raises, they count as lost: all, or a `Lost`'s."""
        ...

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """So many rows of about that instant were chosen, and will not come. For who must know how complete a window is."""
        ...

    def idle(self) -> None:
        """Called at least once a second, with or without samples: for what depends on time."""
        ...

    def close(self) -> None:
        """Nothing more will come. Idempotent."""
        ...
