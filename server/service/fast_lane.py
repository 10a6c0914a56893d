"""Which versions the native data plane may answer for by itself, and by what rules.

Floor 5: between what the lifecycle publishes and the data plane. Whoever needs a look at each request in Python (answers that
are remembered, versions with any number of answers) is left out: the door's own handlers answer for those, as they do for every
request that is not plain.
"""

from server.core.errors import InvalidRequest
from server.core.settings import QueueSettings
from server.dataplane.native.routes import RouteRules
from server.features.interface import Features
from server.lifecycle.published import Published
from server.lifecycle.replica import Replica, queue_rules


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
