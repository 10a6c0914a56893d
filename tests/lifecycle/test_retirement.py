from dataclasses import replace
from pathlib import Path

import pytest

from server.core.versions import State, VersionKey
from server.lifecycle.policy import Identity
from server.lifecycle.replica import Replica, queue_rules
from server.lifecycle.retirement import Retirement
from server.lifecycle.table import Table
from tests.lifecycle.doubles import SETTINGS, Backend, HandClock, Leases, Metrics, Plane, replica
from tests.lifecycle.test_ledger import Scene as Books

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


@pytest.mark.parametrize("close_fault", [None, RuntimeError("jammed")])
def test_what_a_closed_backend_did_not_give_back_is_told(
    close_fault: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    scene, books = Scene(), Books()
    bare, backend = scene.serve(1)
    reservation, _ = books.hold(KEY, 100)
    backend.close_fault = close_fault
    scene.table.leave(KEY)
    scene.retirement.leave(replace(bare, reservation=reservation))
    scene.retirement.close_idle()
    missing = 100 * 2**20
    assert scene.table.actual()[KEY].reason == f"unloaded; {missing} bytes of cpu were not given back"
    assert f"{missing} of {missing} bytes of cpu were not given back" in caplog.text
    assert books.ledger.reading.budgets[0].unreturned_bytes == missing
    assert books.ledger.reading.holdings == ()


def test_what_came_back_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    scene, books = Scene(), Books()
    bare, backend = scene.serve(1)
    reservation, give_back = books.hold(KEY, 100)
    backend.close = give_back  # type: ignore[method-assign]
    scene.table.leave(KEY)
    scene.retirement.leave(replace(bare, reservation=reservation))
    scene.retirement.close_idle()
    assert scene.table.actual()[KEY].reason == "unloaded"
    assert "given back" not in caplog.text
