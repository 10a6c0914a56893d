"""Definitions as an operator installs them who has a store that Feast fills."""

from feature_client.feast_view import feast_view
from feature_client.schema import Array, Feature, hours
from feature_client.view import feature_view

ROUTE = feast_view(
    "route",
    feast_name="route_stats",
    entity="route",
    keys={"origin": "string", "gate": "int32"},
    features=[Feature("route_delay", "float32", 0.5)],
    feast_features={"route_delay": "delay"},
    max_age_us=hours(24),
)


@feature_view(inputs={"route_delay": "float32"}, features=[Feature("delayed", "float32", 0.0)])
def delayed(route_delay: Array) -> dict[str, Array]:
    return {"delayed": (route_delay > 10.0).astype("float32")}
