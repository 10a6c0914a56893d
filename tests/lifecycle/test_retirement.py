from dataclasses import replace
from pathlib import Path

import pytest

from server.core.versions import State, VersionKey
from server.lifecycle.policy import Identity
from server.lifecycle.replica import Replica, queue_rules
from server.lifecycle.retirement import Retirement
from server.lifecycle.table import Table
from tests.lifecycle.doubles import SETTINGS, Backend, HandClock, Leases, Metrics, Plane, replica

KEY = VersionKey("m", 1)


class Scene:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.table = Table(self.metrics)
        self.plane = Plane()
        self.retirement = Retirement(self.table, self.plane, self.metrics, HandClock())

    def serve(self, queue_id: int) -> tuple[Replica, Backend]:
        self.table.loading(KEY)
        self.metrics.add(KEY)
        mine = replica(KEY, queue_id)
        self.plane.open(queue_rules(mine))
        self.table.ready(mine, Identity("a", SETTINGS))
        assert isinstance(mine.backend, Backend)
        return mine, mine.backend


def test_nothing_is_closed_under_a_running_request() -> None:
    scene = Scene()
    mine, backend = scene.serve(1)
    scene.plane.begin(1)
    scene.table.leave(KEY)
    scene.retirement.leave(mine)
    scene.retirement.close_idle()
    assert (len(scene.retirement), backend.closed) == (1, 0)
    assert scene.retirement.leaving() == [mine]
    scene.plane.end(1)
    scene.retirement.close_idle()
    assert (len(scene.retirement), backend.closed) == (0, 1)
    assert scene.table.actual()[KEY].reason == "unloaded"
    assert scene.metrics.recorders == {}


def test_a_replaced_replica_takes_nothing_of_its_successors_along() -> None:
    scene = Scene()
    old, old_backend = scene.serve(1)
    _, new_backend = scene.serve(2)
    scene.retirement.leave(old)
    scene.retirement.close_idle()
    assert (old_backend.closed, new_backend.closed) == (1, 0)
    assert scene.table.actual()[KEY].state is State.READY
    assert scene.metrics.ready == {KEY}


def test_the_dead_are_buried_once_and_their_reason_stays() -> None:
    scene = Scene()
    mine, backend = scene.serve(1)
    assert scene.retirement.bury(mine, "device lost")
    assert not scene.retirement.bury(mine, "device lost")
    scene.retirement.close_idle()
    assert backend.closed == 1
    assert scene.table.actual()[KEY].reason == "device lost"
    assert scene.metrics.recorders == {}


def test_one_backend_that_cannot_be_closed_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    old, old_backend = scene.serve(1)
    new, new_backend = scene.serve(2)
    old_backend.close_fault = RuntimeError("jammed")
    scene.table.leave(KEY)
    scene.retirement.leave(old)
    scene.retirement.leave(new)
    scene.retirement.close_idle()
    assert "jammed" in caplog.text
    assert (len(scene.retirement), new_backend.closed) == (0, 1)
    assert scene.table.actual()[KEY].state is State.UNAVAILABLE


@pytest.mark.parametrize("close_fault", [None, RuntimeError("jammed")])
def test_a_lease_is_given_back_once_the_backend_is_closed(close_fault: Exception | None) -> None:
    scene = Scene()
    leases = Leases()
    bare, backend = scene.serve(1)
    backend.close_fault = close_fault
    mine = replace(bare, lease=leases(Path("somewhere")))
    scene.plane.begin(1)
    scene.retirement.leave(mine)
    scene.retirement.close_idle()
    assert leases.out == [Path("somewhere")]
    scene.plane.end(1)
    scene.retirement.close_idle()
    assert (backend.closed, leases.out) == (1, [])
