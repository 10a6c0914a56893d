"""A sink that loses a part of what it was given, or something of before, says which, and that alone is counted."""

from collections.abc import Sequence

from server.core.versions import VersionKey
from server.monitoring.lane import Lane
from server.monitoring.samples import Samples
from server.monitoring.sink import Lost
from tests.monitoring.sampled import KEY, samples_of


class Leaking:
    """Loses 3 rows of the first call, and 4 that it had taken when it is closed."""

    name = "leaking"

    def __init__(self) -> None:
        self.calls = 0
        self.losses: list[tuple[VersionKey, str, int, int]] = []

    def write(self, samples: Sequence[Samples]) -> None:
        self.calls += 1
        if self.calls == 1:
            raise Lost([(KEY, "champion", 3, 70_000_000)], "the disk is full")

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        self.losses.append((key, arm, rows, time_us))

    def idle(self) -> None:
        pass

    def close(self) -> None:
        raise Lost([(KEY, "shadow", 4, 0)], "the disk is full")


def test_only_what_a_sink_says_is_lost_counts_as_lost() -> None:
    sink = Leaking()
    lane = Lane(sink, 1000, 2**20)
    lane.offer(samples_of(10), 10, 1)
    lane.close()
    assert lane.counts() == (3, 0, {"sink_failed": 7})
    assert sink.losses == [(KEY, "champion", 3, 60_000_000)]
