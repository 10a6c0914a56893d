"""Which versions the native data plane may answer for by itself, and by what rules.

Floor 5: between what the lifecycle publishes and the data plane. Whoever needs a look at each request in Python (answers that
are remembered, versions with any number of answers) is left out: the door's own handlers answer for those, as they do for every
request that is not plain.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from server.core.errors import InvalidRequest
from server.core.settings import QueueSettings
from server.core.versions import VersionKey
from server.dataplane.native.routes import RouteRules
from server.features.interface import Features
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica, queue_rules

_KEPT = 64
"""Queues that are gone and still counted for: their last requests end after the table that leaves them out."""


def routes_of(published: Published, default_timeout_us: int) -> dict[tuple[str, str], RouteRules]:
    """The versions that serve, by model and every name that callers may use for the version."""
    made: dict[int, RouteRules] = {}
    routes: dict[tuple[str, str], RouteRules] = {}
    for name, replica in published.named().items():
        if replica.cache is not None or replica.settings.decoupled:
            continue
        if replica.queue_id not in made:
            made[replica.queue_id] = _route(replica, default_timeout_us)
        routes[name] = made[replica.queue_id]
    return routes


class Lane(Protocol):
    """As much of a native plane as this file needs."""

    def publish(self, routes: Mapping[tuple[str, str], RouteRules]) -> None:
        """What serves from now on."""
        ...

    def open_lane(self, is_open: bool) -> None:
        """Whether the lane may answer at all."""
        ...

    def take_uses(self) -> list[tuple[int, str, int]]:
        """Queue, consumer and requests since the last time."""
        ...

    def take_refusals(self) -> list[tuple[int, dict[str, int]]]:
        """Queue, and requests that were not executed by why, since the last time."""
        ...


class FastLane:
    """Keeps a native plane's lane up to date, and brings home what it counted. Thread-safe."""

    def __init__(
        self, lane: Lane, count_use: Callable[[VersionKey, str, int], None], default_timeout_us: int, *, unguarded: bool
    ) -> None:
        """`unguarded`: everybody may infer, and as much as they like. Guards look at each call, in Python."""
        self._lane = lane
        self._count_use = count_use
        self._default_timeout_us = default_timeout_us
        self._unguarded = unguarded
        self._lock = threading.Lock()  # guards what follows, and keeps counts in one pair of hands
        self._counted: OrderedDict[int, tuple[VersionKey, Any]] = OrderedDict()

    def publish(self, published: Published) -> None:
        """What serves from now on."""
        with self._lock:
            self._settle()
            queues = [each for replica in published.ready.values() for each in replica.everywhere]
            for replica in queues:
                self._counted[replica.queue_id] = replica.key, replica.recorder
                self._counted.move_to_end(replica.queue_id)
            while len(self._counted) > len(queues) + _KEPT:
                self._counted.popitem(last=False)
        self._lane.publish(routes_of(published, self._default_timeout_us))

    def trace(self, on: bool) -> None:
        """Where anything may be traced, each request is looked at in Python."""
        self._lane.open_lane(self._unguarded and not on)

    def settle(self) -> None:
        """Bring home what was counted."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        for queue_id, consumer, requests in self._lane.take_uses():
            if queue_id in self._counted:
                self._count_use(self._counted[queue_id][0], consumer, requests)
        for queue_id, refusals in self._lane.take_refusals():
            if queue_id in self._counted:
                for why, count in refusals.items():
                    self._counted[queue_id][1].refused(why, count)


def _route(replica: Replica, default_timeout_us: int) -> RouteRules:
    queue: QueueSettings = replica.settings.queue
    features = replica.features
    return RouteRules(
        rules=queue_rules(replica),
        default_timeout_us=default_timeout_us if queue.default_timeout_us is None else queue.default_timeout_us,
        allow_timeout_override=queue.allow_timeout_override,
        priority_levels=queue.priority_levels,
        default_priority=queue.default_priority,
        has_features=features is not None,
        fits=lambda names: features is None or _fits(features, names),
    )


def _fits(features: Features, names: frozenset[str]) -> bool:
    try:
        features.check(names)
    except InvalidRequest:
        return False
    return True
