"""Which files of samples are to go. **Pure.**"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that is whole. `closed_s`: when it became so, seconds since 1970."""

    path: Path
    nbytes: int
    closed_s: float


def to_remove(files: Iterable[Kept], now_s: float, retention_s: float, max_total_bytes: int) -> list[Path]:
    """Those that are too old, and the oldest of the others while all have too many bytes; the oldest first.

    >>> files = [Kept(Path(name), 10, float(name)) for name in ("30", "10", "20", "40")]
    >>> [path.name for path in to_remove(files, now_s=45, retention_s=30, max_total_bytes=25)]
    ['10', '20']
    """
    oldest_first = sorted(files, key=lambda file: (file.closed_s, file.path))
    total = sum(file.nbytes for file in oldest_first)
    gone = []
    for file in oldest_first:
        if file.closed_s >= now_s - retention_s and total <= max_total_bytes:
            break
        gone.append(file.path)
        total -= file.nbytes
    return gone
