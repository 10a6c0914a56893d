"""What the native plane is told of versions that serve, and what it counted, brought home."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from server.core.errors import InvalidRequest
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import State, VersionKey
from server.dataplane.native.routes import RouteRules
from server.lifecycle.published import EMPTY, Published, publish
from server.lifecycle.replica import Replica
from server.service.fast_lane import FastLane, routes_of
from server.telemetry.recorder import VersionRecorder

SIGNATURE = Signature("m", (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), 4)


class Recording:
    """A lane that keeps what it is told, and tells what a test puts in."""

    def __init__(self) -> None:
        self.routes: list[Mapping[tuple[str, str], RouteRules]] = []
        self.is_open: list[bool] = []
        self.uses: list[tuple[int, str, int]] = []
        self.refusals: list[tuple[int, dict[str, int]]] = []

    def publish(self, routes: Mapping[tuple[str, str], RouteRules]) -> None:
        self.routes.append(routes)

    def open_lane(self, is_open: bool) -> None:
        self.is_open.append(is_open)

    def take_uses(self) -> list[tuple[int, str, int]]:
        taken, self.uses = self.uses, []
        return taken

    def take_refusals(self) -> list[tuple[int, dict[str, int]]]:
        taken, self.refusals = self.refusals, []
        return taken


class OfFeatures:
    """Features that want the input "x"."""

    signature = SIGNATURE

    def check(self, given: frozenset[str]) -> None:
        if "x" not in given:
            raise InvalidRequest("no x")


def replica(queue_id: int, version: int = 1, *, features: Any = None, **settings: Any) -> Replica:
    chosen = ModelSettings.model_validate(settings)
    cache: Any = object() if chosen.cache.max_bytes else None
    backend: Any = None
    key = VersionKey("m", version)
    return Replica(
        queue_id,
        key,
        backend,
        SIGNATURE,
        chosen,
        (1, 4),
        (0, 0),
        "cpu",
        VersionRecorder(key),
        "s",
        cache=cache,
        features=features,
    )


def published(*replicas: Replica, aliases: Mapping[str, int] | None = None) -> Published:
    ready = {each.key: each for each in replicas}
    return publish(ready, dict.fromkeys(ready, State.READY), {"m": aliases or {}}, EMPTY)


def test_a_version_is_known_by_every_name_that_callers_may_use() -> None:
    one, two = replica(1, 1), replica(2, 2)
    routes = routes_of(published(one, two, aliases={"champion": 1}), 0)
    assert {name: route.rules.queue_id for name, route in routes.items()} == {
        ("m", ""): 1,
        ("m", "1"): 1,
        ("m", "2"): 2,
        ("m", "champion"): 1,
    }
    assert routes["m", ""] is routes["m", "champion"]


@pytest.mark.parametrize("settings", [{"cache": {"max_bytes": 100}}, {"decoupled": True}])
def test_what_needs_a_look_at_each_request_is_left_out(settings: dict[str, Any]) -> None:
    assert routes_of(published(replica(1, **settings)), 0) == {}


@pytest.mark.parametrize(("own", "expected"), [({}, 7), ({"default_timeout_us": 0}, 0), ({"default_timeout_us": 9}, 9)])
def test_a_models_timeout_goes_before_the_servers(own: dict[str, int], expected: int) -> None:
    assert routes_of(published(replica(1, queue=own)), 7)["m", ""].default_timeout_us == expected


def test_features_say_which_inputs_will_do() -> None:
    bare = routes_of(published(replica(1)), 0)["m", ""]
    assert (bare.has_features, bare.fits(frozenset())) == (False, True)
    route = routes_of(published(replica(1, features=OfFeatures())), 0)["m", ""]
    assert (route.has_features, route.fits(frozenset()), route.fits(frozenset({"x"}))) == (True, False, True)


def test_counts_come_home_also_those_of_versions_that_have_just_left() -> None:
    lane, counted = Recording(), list[tuple[VersionKey, str, int]]()
    kept = FastLane(lane, lambda *use: counted.append(use), 0, unguarded=True)
    first, second = replica(1), replica(2)
    kept.publish(published(first))
    kept.publish(published(second))
    lane.uses = [(1, "shop", 3), (2, "", 2), (9, "nobody knows", 1)]
    lane.refusals = [(1, {"queue_full": 2, "expired": 1, "cancelled": 0}), (9, {"queue_full": 1})]
    kept.settle()
    kept.settle()
    assert counted == [(first.key, "shop", 3), (second.key, "", 2)]
    refused = first.recorder.snapshot().refused
    assert (refused["queue_full"], refused["expired"], refused["cancelled"]) == (2, 1, 0)


def test_a_version_on_several_devices_is_one_route_and_counts_on_all_of_them() -> None:
    lane, counted = Recording(), list[tuple[VersionKey, str, int]]()
    kept = FastLane(lane, lambda *use: counted.append(use), 0, unguarded=True)
    first = replica(4)
    second = replace(first, queue_id=5, device="cuda:1", sibling_of=4)
    both = replace(first, siblings=(second,))
    kept.publish(published(both))
    left = both.without(first)
    assert left is not None
    for table in (published(both), published(left)):
        assert routes_of(table, 0)["m", ""].rules.entrance == 4  # callers go on by the same number
    kept.publish(published(left))
    lane.uses = [(5, "shop", 2), (4, "shop", 1)]
    lane.refusals = [(5, {"queue_full": 2})]
    kept.settle()
    assert counted == [(first.key, "shop", 2), (first.key, "shop", 1)]
    assert first.recorder.snapshot().refused["queue_full"] == 2


def test_those_who_left_long_ago_are_forgotten() -> None:
    lane, counted = Recording(), list[tuple[VersionKey, str, int]]()
    kept = FastLane(lane, lambda *use: counted.append(use), 0, unguarded=True)
    for queue_id in range(1, 67):
        kept.publish(published(replica(queue_id)))
    lane.uses = [(1, "", 1), (2, "", 1)]
    kept.settle()
    assert counted == [(VersionKey("m", 1), "", 1)]


@pytest.mark.parametrize(("unguarded", "on", "is_open"), [(True, False, True), (True, True, False), (False, False, False)])
def test_guards_and_tracing_close_the_lane(unguarded: bool, on: bool, is_open: bool) -> None:
    lane = Recording()
    FastLane(lane, lambda *use: None, 0, unguarded=unguarded).trace(on)
    assert lane.is_open == [is_open]
