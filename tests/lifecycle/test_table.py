import pytest

from server.core.errors import NotFound, NotReady
from server.core.versions import State, VersionKey
from server.lifecycle.policy import Failure, Identity
from server.lifecycle.table import Table
from tests.lifecycle.doubles import SETTINGS, Metrics, replica

KEY = VersionKey("m", 1)
FIRST, SECOND = Identity("a", SETTINGS), Identity("b", SETTINGS)


def loaded() -> tuple[Table, Metrics]:
    metrics = Metrics()
    table = Table(metrics)
    table.know({"m": {}}, {KEY})
    table.loading(KEY)
    metrics.add(KEY)
    assert table.ready(replica(KEY, 1), FIRST) is None
    return table, metrics


def state(table: Table) -> State:
    return table.actual()[KEY].state


def test_a_version_comes_and_goes() -> None:
    metrics = Metrics()
    table = Table(metrics)
    with pytest.raises(NotFound, match="'m' is not found"):
        table.published.lookup("m", "")
    table.know({"m": {}}, {KEY})
    with pytest.raises(NotFound, match="no available versions"):
        table.published.lookup("m", "")
    table.loading(KEY)
    with pytest.raises(NotReady, match="not at ready state"):
        table.published.lookup("m", "1")
    metrics.add(KEY)
    mine = replica(KEY)
    table.ready(mine, FIRST)
    assert table.published.lookup("m", "") is mine
    assert metrics.ready == {KEY}
    assert table.leave(KEY) is mine
    assert table.leave(KEY) is None
    assert state(table) is State.UNLOADING
    assert metrics.ready == set()
    with pytest.raises(NotFound, match="no available versions"):
        table.published.lookup("m", "")
    table.unloaded(KEY)
    assert (state(table), table.actual()[KEY].reason) == (State.UNAVAILABLE, "unloaded")
    # gone from disk and memory: a stranger
    table.know({}, set())
    with pytest.raises(NotFound, match="'m' is not found"):
        table.published.lookup("m", "1")


def test_a_reload_is_ready_all_along_and_replaces_at_once() -> None:
    table, metrics = loaded()
    old = table.published.lookup("m", "")
    table.loading(KEY)
    assert state(table) is State.READY
    table.load_failed(KEY, Failure(SECOND, 1, 0, "bad"))
    assert state(table) is State.READY
    assert table.published.lookup("m", "") is old
    new = replica(KEY, 2)
    assert table.ready(new, SECOND) is old
    assert table.published.lookup("m", "") is new
    assert table.actual()[KEY].failure is None
    assert metrics.ready == {KEY}


def test_a_failed_load_says_why_until_it_is_forgiven() -> None:
    table = Table(Metrics())
    table.loading(KEY)
    table.load_failed(KEY, Failure(FIRST, 1, 0, "bad"))
    actual = table.actual()[KEY]
    assert (actual.state, actual.reason, actual.failure) == (State.UNAVAILABLE, "bad", Failure(FIRST, 1, 0, "bad"))
    table.forgive("other")
    assert table.actual()[KEY].failure is not None
    table.forgive("m")
    assert table.actual()[KEY].failure is None


def test_only_the_replica_that_serves_can_die() -> None:
    table, metrics = loaded()
    mine = table.published.lookup("m", "")
    assert not table.dead(replica(KEY, 9), "x")
    assert table.dead(mine, "device lost")
    assert not table.dead(mine, "again")
    actual = table.actual()[KEY]
    assert (actual.state, actual.reason) == (State.UNAVAILABLE, "device lost")
    assert actual.failure == Failure(FIRST, 1, 0, "device lost", dead=True)
    assert metrics.ready == set()


def test_a_reload_finishes_although_the_old_replica_died_meanwhile() -> None:
    table, _ = loaded()
    table.loading(KEY)
    assert table.dead(table.published.lookup("m", ""), "x")
    new = replica(KEY, 2)
    assert table.ready(new, SECOND) is None
    assert table.published.lookup("m", "") is new


def test_what_is_published_does_not_change_under_its_readers() -> None:
    table, _ = loaded()
    held = table.published
    table.leave(KEY)
    assert held.lookup("m", "").key == KEY
    assert table.published is not held
