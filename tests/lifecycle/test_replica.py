from pathlib import Path
from typing import Any

import pytest

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.policy import Serve
from server.lifecycle.replica import Loaded, queue_rules, replica_of
from tests.lifecycle.doubles import SETTINGS, Backend, Leases, Recorder, Version, replica, version


def test_the_data_plane_is_told_all_that_settings_say() -> None:
    settings = ModelSettings.model_validate(
        {
            "batching": {"padding": False, "max_queue_delay_us": 250},
            "queue": {"max_requests": 7, "early_drop": False},
        }
    )
    mine = replica(VersionKey("m", 3), 12, settings)
    rules = queue_rules(mine)
    assert rules.handle is mine
    assert (rules.queue_id, rules.key, rules.device) == (12, VersionKey("m", 3), "cpu")
    assert rules.signature is mine.signature
    assert (rules.buckets, rules.costs_ns) == ((1, 2, 4), (5, 6, 7))
    assert (rules.padding, rules.max_requests, rules.early_drop, rules.queue_delay_ns) == (False, 7, False, 250_000)
    assert replica(VersionKey("m", 3), 12, settings) != mine


@pytest.mark.parametrize("max_bytes", [0, 4096])
def test_a_load_brings_a_cache_of_its_own_where_the_settings_want_one(max_bytes: int) -> None:
    settings = ModelSettings.model_validate({"cache": {"max_bytes": max_bytes}})
    backend: Any = replica(VersionKey("m", 3), 1, settings).backend
    found: Any = version(3)
    made = [replica_of([number], Serve(found, settings), Loaded(backend, (1,), (0,)), None) for number in (1, 2)]
    if not max_bytes:
        assert [each.cache for each in made] == [None, None]
        return
    assert [each.cache.max_bytes for each in made if each.cache is not None] == [max_bytes] * 2
    assert made[0].cache is not made[1].cache


def test_a_replica_keeps_the_lease_of_its_load() -> None:
    backend, lease = Backend(VersionKey("m", 3)), Leases()(Path("somewhere"))
    serve = Serve(Version(VersionKey("m", 3), stamp="b"), SETTINGS)
    mine = replica_of([12], serve, Loaded(backend, (1, 2), (5, 6), lease=lease), Recorder())
    assert (mine.lease, mine.backend, mine.stamp) == (lease, backend, "b")
    assert replica_of([12], serve, Loaded(backend, (1, 2), (5, 6)), Recorder()).lease is None


def test_a_replica_has_the_baseline_of_its_load() -> None:
    backend: Any = replica(VersionKey("m", 3), 1).backend
    found: Any = version(3)
    made = replica_of([1], Serve(found, SETTINGS), Loaded(backend, (1,), (0,), baseline="its"), None)
    assert made.baseline == "its"
