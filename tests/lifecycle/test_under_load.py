"""Reloads, version changes and death under requests, with the real data plane and engine: nobody notices but by the answer."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from server.backends.base import LoadTask
from server.core.clock import monotonic_ns
from server.core.errors import BackendDead, NotReady, PodiumError
from server.core.requests import InferRequest, WireTensor
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import settle
from server.dataplane.python.plane import PythonPlane
from server.lifecycle.loader import Loader
from server.lifecycle.manager import Manager
from server.service.engine import Engine
from server.service.predict import Predict
from tests.lifecycle.doubles import Backend, Metrics, Recorder, Repository, model, version

CALLERS = 3


class CountingRecorder(Recorder):
    def batch(self, **facts: Any) -> None: ...

    def refused(self, reason: str, count: int = 1) -> None: ...


class CountingMetrics(Metrics):
    def add(self, key: VersionKey) -> Recorder:
        return self.recorders.setdefault(key, CountingRecorder())


class GuardedBackend(Backend):
    """Remembers whether it was ever used after it was closed, or closed in use."""

    abused = False
    running = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.abused |= bool(self.closed)
        self.running = True
        try:
            return super().run(inputs)
        finally:
            self.running = False

    def close(self) -> None:
        self.abused |= self.running
        super().close()


class Scene:
    def __init__(self) -> None:
        self.repository = Repository(model("m", 1))
        self.backends: list[GuardedBackend] = []
        self.plane = PythonPlane(
            monotonic_ns, InflightLimit(1000, 2**30), lambda answers, _: settle(answers), self.start_engine
        )
        loader = Loader(
            verify=self.repository.verify,
            backends={"fake": self.open_backend},
            warm=lambda backend, buckets, runs, clock: (1000,) * len(buckets),
            load_golden=lambda path: pytest.fail("there are no examples"),
            compare_golden=lambda expected, got, rtol, atol, specs: None,
            read_labels=lambda folder, file: (),
            clock=monotonic_ns,
        )
        self.manager = Manager(
            source=self.repository, loader=loader, plane=self.plane, metrics=CountingMetrics(), mode="explicit", initial=("m",)
        )
        self.predict = Predict(self.plane, lambda: self.manager.published)
        self.engines: list[Engine] = []

    def open_backend(self, task: LoadTask) -> GuardedBackend:
        self.backends.append(GuardedBackend(task.key))
        return self.backends[-1]

    def start_engine(self, device: str) -> None:
        engine = Engine(
            self.plane, device, monotonic_ns, lambda replica, error: self.manager.mark_dead(replica, str(error)), lambda: None
        )
        self.engines.append(engine)
        engine.start()

    def ask(self, value: float) -> Array:
        reply: Future[dict[str, Array]] = Future()
        data = np.full((1, 2), value, np.float32)
        request = InferRequest("m", "", "", (WireTensor("x", "FP32", (1, 2), data.tobytes()),), (), monotonic_ns())
        self.predict.admit(request, reply)
        self.plane.wake()
        return reply.result(timeout=30)["y"]

    @contextmanager
    def running(self) -> Iterator[None]:
        self.manager.start()
        self.manager.load("m")
        try:
            yield
        finally:
            assert self.manager.stop(30)
            self.plane.stop()
            for engine in self.engines:
                engine.join()
        assert not any(backend.abused for backend in self.backends)
        assert all(backend.closed == 1 for backend in self.backends)


class Caller(threading.Thread):
    """Asks again and again; keeps count of the right answers, and everything that was not one."""

    def __init__(self, scene: Scene, stop: threading.Event, number: int) -> None:
        super().__init__()
        self.scene, self.stop, self.number = scene, stop, number
        self.answers = 0
        self.wrong: list[object] = []

    def run(self) -> None:
        while not self.stop.is_set():
            value = float(self.number * 1000 + self.answers % 1000)
            try:
                got = self.scene.ask(value)
            except (PodiumError, TimeoutError) as error:
                self.wrong.append(error)
                return
            if not np.array_equal(got[:1], np.full((1, 2), 2 * value, np.float32)):
                self.wrong.append((value, got))
            self.answers += 1


def test_no_request_fails_while_versions_are_reloaded_and_replaced() -> None:
    scene = Scene()
    stop = threading.Event()
    callers = [Caller(scene, stop, number) for number in range(CALLERS)]
    with scene.running(), ExitStack() as stack:
        stack.callback(stop.set)
        for caller in callers:
            caller.start()
        for turn in range(40):
            scene.repository.put(model("m", version(1 + turn // 10, f"stamp {turn}")))
            scene.manager.load("m")
        stop.set()
        for caller in callers:
            caller.join()
        assert scene.manager.published.lookup("m", "").key.version == 4
    assert [caller.wrong for caller in callers] == [[]] * CALLERS
    assert all(caller.answers for caller in callers)
    assert len(scene.backends) == 41


def test_the_request_that_meets_a_dead_backend_is_answered_and_the_version_is_out_of_service() -> None:
    scene = Scene()
    with scene.running():
        scene.backends[0].fault = BackendDead("device lost")
        with pytest.raises(BackendDead, match="device lost"):
            scene.ask(1.0)
        with pytest.raises(NotReady, match="'m' is not at ready state: device lost"):
            scene.ask(1.0)
        assert scene.manager.ready_problems() == ["m:1: its backend is dead: device lost"]
