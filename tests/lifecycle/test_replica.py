from pathlib import Path

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.policy import Serve
from server.lifecycle.replica import Loaded, queue_rules, replica_of
from tests.lifecycle.doubles import SETTINGS, Backend, Leases, Recorder, Version, replica


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


def test_a_replica_keeps_the_lease_of_its_load() -> None:
    backend, lease = Backend(VersionKey("m", 3)), Leases()(Path("somewhere"))
    serve = Serve(Version(VersionKey("m", 3), stamp="b"), SETTINGS)
    mine = replica_of(12, serve, Loaded(backend, (1, 2), (5, 6), lease=lease), Recorder())
    assert (mine.lease, mine.backend, mine.stamp) == (lease, backend, "b")
    assert replica_of(12, serve, Loaded(backend, (1, 2), (5, 6)), Recorder()).lease is None
