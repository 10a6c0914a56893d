"""Batches that are given to their device before their turn, on both kinds of data plane."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from server.core.clock import NS_PER_S, monotonic_ns
from server.core.errors import BackendFailed, DeviceLost, OutOfDeviceMemory
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.dataplane.interface import DataPlane
from server.dataplane.ticket import Ticket
from server.service.ahead import Ahead
from server.service.engine import Engine
from tests.dataplane.histories import rows_of, rules
from tests.dataplane.planes import new_of

PATIENCE_S = 20.0


class Device:
    """A replica whose backend executes one batch at a time, by itself, and lets nobody go before another has begun."""

    key = VersionKey("m", 1)
    features = None
    constraints = None

    def __init__(self, batches: int, trouble: Callable[[int], Exception | None] = lambda rows: None) -> None:
        self.batches, self.trouble = batches, trouble
        self.begun = self.waited = 0
        self.lock = threading.Condition()
        self.runs: Counter[int] = Counter()
        self.dead: list[str] = []

    @property
    def backend(self) -> "Device":
        return self

    recorder = backend

    def batch(self, **counts: Any) -> None:
        """Counted nowhere."""

    def arrays(self, shapes: Any) -> dict[str, Any]:
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def begin(self, inputs: Mapping[str, Array]) -> "Pending":
        error = self.trouble(len(inputs["X"]))
        if error is not None:
            raise error
        with self.lock:
            self.begun += 1
            self.lock.notify_all()
        return Pending(self, inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        self.runs[len(inputs["X"])] += 1
        error = self.trouble(len(inputs["X"]))
        if error is not None:
            raise error
        return {"Y": inputs["X"]}


class Pending:
    def __init__(self, device: Device, inputs: Mapping[str, Array]) -> None:
        self.device, self.inputs = device, inputs

    def wait(self) -> None:
        device = self.device
        with device.lock:
            # not by its own number: of two that are taken at once, either may be the first to be handed over
            behind = min(device.waited + 2, device.batches)
            assert device.lock.wait_for(lambda: device.begun >= behind, PATIENCE_S), "nothing was staged behind it"
            device.waited += 1

    def outputs(self) -> dict[str, Any]:
        return {"Y": self.inputs["X"]}


class Served:
    """A data plane with two slots, and its engines."""

    def __init__(self, kind: str, device: Device, max_batch: int) -> None:
        self.engines: list[Engine] = []
        self.device = device
        self.plane: Any = new_of(kind)(on_device=self._start, slots=lambda name: 2)
        self.plane.open(rules(handle=device, device="lazy:0", max_batch=max_batch, allocate=device.arrays))

    def _start(self, name: str) -> None:
        plane: DataPlane = self.plane
        dead = self.device.dead
        engine = Engine(plane, name, monotonic_ns, lambda replica, error: dead.append(str(error)), lambda: None)
        self.engines.append(engine)

    def go(self) -> None:
        for engine in self.engines:
            engine.start()

    def submit(self, tag: int, rows: int = 1) -> "Future[Any]":
        reply: Future[Any] = Future()
        self.plane.submit(1, Ticket(rows_of(tag, rows), reply, monotonic_ns(), monotonic_ns() + 60 * NS_PER_S))
        return reply

    def stop(self) -> None:
        self.plane.stop()
        for engine in self.engines:
            engine.join(PATIENCE_S)


def test_the_next_batch_is_on_its_device_before_the_one_before_has_left(plane: str) -> None:
    device = Device(batches=12)
    served = Served(plane, device, max_batch=1)
    replies = [served.submit(tag) for tag in range(12)]
    served.go()
    assert [reply.result(PATIENCE_S)["Y"].tolist() for reply in replies] == [
        rows_of(tag, 1).arrays["X"].tolist() for tag in range(12)
    ]
    served.stop()
    assert (device.begun, device.waited, device.runs) == (12, 12, Counter())


def test_what_cannot_begin_is_halved_as_what_cannot_run_is(plane: str) -> None:
    device = Device(1, lambda rows: BackendFailed("three is too many") if rows > 2 else None)
    served = Served(plane, device, max_batch=8)
    replies = [served.submit(tag) for tag in range(8)]
    served.go()
    for tag, reply in enumerate(replies):
        assert reply.result(PATIENCE_S)["Y"].tolist() == rows_of(tag, 1).arrays["X"].tolist()
    served.stop()
    assert device.runs == {4: 2, 2: 4}


def test_a_batch_too_large_for_its_device_is_halved_once(plane: str) -> None:
    full = OutOfDeviceMemory("no room")
    device = Device(1, lambda rows: full if rows > 2 else None)
    served = Served(plane, device, max_batch=8)
    replies = [served.submit(tag) for tag in range(6)]
    served.go()
    # 6 rows are executed as 8, and halves of 3 as 4
    for reply in replies:
        with pytest.raises(OutOfDeviceMemory):
            reply.result(PATIENCE_S)
    assert device.runs == {4: 2}
    replies = [served.submit(tag) for tag in range(2)]
    assert all(reply.result(PATIENCE_S) for reply in replies)
    served.stop()


def test_a_device_that_is_lost_when_a_batch_begins_is_told_once_its_turn_comes(plane: str) -> None:
    device = Device(1, lambda rows: DeviceLost("gone"))
    served = Served(plane, device, max_batch=8)
    reply = served.submit(1)
    served.go()
    with pytest.raises(DeviceLost):
        reply.result(PATIENCE_S)
    served.stop()
    assert device.dead == ["gone"]
    assert device.runs == {}


def test_outputs_are_given_away_once() -> None:
    ended: list[int] = []
    ahead = Ahead(Device(0).begin, {"X": np.zeros((1, 1))}, lambda: ended.append(1))
    assert list(ahead()) == ["Y"]
    with pytest.raises(RuntimeError):
        ahead()
    assert ended == [1]
