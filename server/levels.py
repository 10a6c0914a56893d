"""What a scrape asks a server beside its counters: queues, devices, caches, the door, features. Roof.

Each is a look at one instant, on the thread that renders.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from server.core.versions import VersionKey
from server.dataplane.interface import QueueSnapshot
from server.features.readings import FeatureReading
from server.lifecycle.cache import AnswerCache
from server.lifecycle.manager import Manager
from server.optional import Plane
from server.telemetry.readings import DoorReading
from server.transport.listen import Door


class Levels:
    """Ownership: of nothing. `manager` and `door` are asked for at each look: a server has them a little later."""

    def __init__(
        self,
        plane: Plane,
        manager: Callable[[], Manager],
        door: Callable[[], Door | None],
        features: Callable[[], FeatureReading | None],
    ) -> None:
        self._plane: Any = plane
        self._manager, self._door, self._features = manager, door, features

    def queue(self, key: VersionKey) -> QueueSnapshot | None:
        """On all its devices. None where it has no queue any more."""
        replica = self._manager().published.ready.get(key)
        queues: Sequence[Any] = [] if replica is None else [self._plane.snapshot(each.queue_id) for each in replica.everywhere]
        there = [queue for queue in queues if queue is not None]
        return sum(there[1:], there[0]) if there else None

    def devices(self, key: VersionKey) -> dict[str, bool]:
        """The devices of a version, and whether it serves there."""
        replica = self._manager().published.ready.get(key)
        if replica is None:
            return {}
        return dict.fromkeys(replica.lost, False) | {each.device: True for each in replica.everywhere}

    def cache(self, key: VersionKey) -> AnswerCache | None:
        """Its response cache, where it has one."""
        replica = self._manager().published.ready.get(key)
        return None if replica is None else replica.cache

    def features(self) -> FeatureReading | None:
        """Without the verdicts on versions that are gone: nobody could do anything about those."""
        reading = self._features()
        if reading is None:
            return None
        there = {(row.model, row.version) for row in self._manager().index()}
        contracts = {key: holds for key, holds in reading.contracts.items() if (key[0], str(key[1])) in there}
        return replace(reading, contracts=contracts)

    def door(self) -> DoorReading | None:
        """None before there is a door, and where it is grpcio's, which does not tell."""
        door: Any = self._door()
        if door is None or self._plane.kind == "python":
            return None
        return DoorReading(door.counters(), self._plane.native.copies(), self._plane.native.calls())
