"""The engine on a real data plane."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from weakref import ref

from server.core.clock import monotonic_ns
from server.core.tensors import Array
from server.dataplane.limit import InflightLimit
from server.dataplane.python.plane import PythonPlane, settle
from server.dataplane.ticket import Ticket
from server.service.engine import Engine
from tests.dataplane.histories import rows_of, rules


class Replica:
    """As much of a replica as an engine needs: its own backend and recorder."""

    key = "m:1"

    @property
    def backend(self) -> "Replica":
        return self

    recorder = backend

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        return {"Y": inputs["X"]}

    def batch(self, **counts: Any) -> None:
        """Counted nowhere."""


def test_an_idle_engine_keeps_nothing_of_its_last_batch() -> None:
    plane = PythonPlane(monotonic_ns, InflightLimit(10, 2**30), lambda answers, executed_ns: settle(answers))
    replica = Replica()
    kept = ref(replica)
    plane.open(rules(handle=replica))
    del replica
    engine = Engine(plane, "cpu", monotonic_ns, lambda replica, error: None, lambda: None)
    engine.start()
    reply: Future[Any] = Future()
    plane.submit(1, Ticket(rows_of(1, 3), reply, monotonic_ns()))
    reply.result(10)
    plane.close(1)
    assert plane.wait_idle(1, 10)
    while "cpu" not in plane._sleeping:
        assert engine.is_alive()
    assert kept() is None
    plane.stop()
    engine.join(10)
