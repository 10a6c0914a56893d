"""Samples and sinks for tests of what is on their way."""

import threading
from collections.abc import Sequence

import numpy as np

from server.core.versions import VersionKey
from server.monitoring.samples import Samples

KEY = VersionKey("m", 1)


def samples_of(rows: int, first: int = 0, *, key: VersionKey = KEY, arm: str = "champion") -> Samples:
    """Rows that can be told apart."""
    numbers = np.arange(first, first + rows)
    return Samples(
        key=key,
        arm=arm,
        epoch=0,
        weight=1.0,
        time_us=numbers.astype(np.int64),
        id_hash=numbers.astype(np.uint64),
        row=np.zeros(rows, dtype=np.int32),
        inclusion=np.ones(rows),
        queue_us=np.zeros(rows, dtype=np.int64),
        execute_us=np.zeros(rows, dtype=np.int64),
        inputs={"x": numbers.astype(np.float32).reshape(-1, 1)},
        callers={},
        outputs={"y": numbers.astype(np.float32).reshape(-1, 1)},
        features=(),
        statuses=np.empty((rows, 0), dtype=np.uint8),
    )


class Gathering:
    """A sink that keeps everything, and stands still or fails when told to."""

    name = "gathering"

    def __init__(self) -> None:
        self.got: list[Samples] = []
        self.losses: list[tuple[VersionKey, str, int, int]] = []
        self.open = threading.Event()
        self.open.set()
        self.writing = threading.Event()
        self.failures = 0
        self.idled = threading.Event()
        self.closed = 0

    def write(self, samples: Sequence[Samples]) -> None:
        self.writing.set()
        self.open.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no space left")
        self.got += samples

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        self.losses.append((key, arm, rows, time_us))

    def idle(self) -> None:
        self.idled.set()

    def close(self) -> None:
        self.closed += 1

    @property
    def rows(self) -> list[int]:
        return [int(number) for each in self.got for number in each.time_us]
