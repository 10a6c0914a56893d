"""What every store of rows offers: keys to bytes, newest wins. Pure: names, no behaviour.

A store knows neither views nor features: rows are packed and judged elsewhere (`row`, `served`), so that all stores hold the
same bytes, and one conformance suite runs against each kind.
"""

from collections.abc import Sequence
from typing import Protocol

Key = bytes
Row = bytes

LONGEST_S = 3600.0
"""Whoever gives more time than this, be it without end, gives this: what waits takes no more."""


class Store(Protocol):
    """Rows by key. Thread-safe. `name` says where it is, for people, without passwords."""

    name: str

    def read(self, keys: Sequence[Key], budget_s: float) -> list[Row | None]:
        """The rows of these keys, None where there is none, in one round trip (one per node of a cluster).

        Returns within the budget. What the store answers later is not lost on it, and never reaches another call.
        Raises: StoreTimeout when the budget ends first, StoreError when the store cannot be asked, StorePartial (a StoreError)
        when only a part of it can, as with one node of a cluster gone: it carries the rows that came, and which did not.
        Never tries again by itself.
        """
        ...

    def write(self, rows: Sequence[tuple[Key, Row]], expire_s: int) -> int:
        """Write rows, each whole or not at all; the number written. The newest wins: a row stays unless the new one's (event
        time, available time) is at least its own; tombstones count as rows.

        `expire_s`: after how long a row that nobody writes again is forgotten, 0 never; each gets up to a tenth more.
        Raises: StoreError; then some may have been written, and writing all of them again is safe.
        """
        ...

    def claim_text(self, key: str, text: str) -> str:
        """Keep a small text beside the rows, under a key unless there is one; what is there afterwards. Raises: StoreError."""
        ...

    def ping(self, budget_s: float) -> None:
        """Raises: StoreError where the store does not answer within the budget."""
        ...

    def close(self) -> None:
        """Let go of connections, and of a process that was started for this store. Idempotent."""
        ...
