"""Versions "on CUDA" over onnxruntime on the CPU: what was bound and run is seen, and failures come to order."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.backends.base import LoadTask
from server.backends.onnx_backend import OnnxBackend, PipelinedOnnx
from server.backends.onnx_cudart import CudaMemory
from server.backends.onnx_memory import DeviceMemory, HostMemory
from server.backends.onnx_runtime import open_session
from server.backends.onnx_session import open_on_device
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings, OnnxSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from tests.backends.cudart import FakeCudart


class Session:
    """A session on the CPU, seen from outside: what was bound and run with which graph, and failures to order."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.runs: list[int | None] = []
        self.threads: set[str] = set()
        self.captured: dict[int, Any] = {}
        self.fails: list[str] = []
        self.gate: threading.Event | None = None
        self.before: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def io_binding(self) -> Any:
        return Binding(self._real.io_binding())

    def run(self, names: Sequence[str], feed: Mapping[str, Any], options: Any) -> Any:
        self._before(None, None)
        return self._real.run(names, feed, options)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._before(options, binding.places)
        self._real.run_with_iobinding(binding.real, options)

    def _before(self, options: Any, places: Any) -> None:
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.before is not None:
            self.before()
        graph = graph_of(options)
        self.runs.append(graph)
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise RuntimeError(self.fails.pop())
        if graph is not None and graph > 0:
            # a captured graph reads and writes where it did when it was captured
            assert self.captured.setdefault(graph, dict(places)) == places


class Binding:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.places: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_input(self, name: str, kind: str, number: int, element: Any, shape: Any, address: int) -> None:
        self.places[name] = (tuple(shape), address)
        self.real.bind_input(name, kind, number, element, shape, address)

    def bind_output(self, name: str, *place: Any) -> None:
        self.places[name] = place[3:]
        self.real.bind_output(name, *place)


def graph_of(options: Any) -> int | None:
    """The captured graph that an execution is told to be, -1 for none; None where nothing is said."""
    try:
        return int(options.get_run_config_entry("gpu_graph_id"))
    except (AttributeError, RuntimeError, ValueError):
        return None


class Device:
    """Opens versions "on CUDA": the settings' device, sessions on the CPU, memory as the test wants it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.cudart = FakeCudart()
        self.host_memory = False
        self.sessions: list[Session] = []
        self.wanted: list[Any] = []
        self.refuses_graphs = ""
        self.opened: list[OnnxBackend] = []

    def open_session(self, folder: Path, onnx: OnnxSettings, wanted: Sequence[tuple[str, dict[str, str]]]) -> Any:
        self.wanted.append(dict(wanted))
        if self.refuses_graphs and any("enable_cuda_graph" in options for _, options in wanted):
            raise LoadFailed(self.refuses_graphs)
        session = Session(open_session(folder, onnx, [("CPUExecutionProvider", {})]))
        self.sessions.append(session)
        return session

    def memory(self) -> DeviceMemory:
        return HostMemory() if self.host_memory else CudaMemory(0, self.cudart, kind="cpu")

    def plain(self, without_library: bool = False, **given: Any) -> OnnxBackend:
        onnx = {"providers": ["cuda"]} | given.pop("onnx", {})
        task = LoadTask(VersionKey("m", 1), self._folder, ModelSettings.model_validate({"onnx": onnx, **given}))
        backend = open_on_device(task, None if without_library else self.memory)
        self.opened.append(backend)
        return backend

    def __call__(self, **given: Any) -> PipelinedOnnx:
        backend = self.plain(**given)
        assert isinstance(backend, PipelinedOnnx)
        return backend

    @property
    def session(self) -> Session:
        return self.sessions[-1]


def free_slots(backend: PipelinedOnnx) -> int:
    return len(backend._runner._free)


def rows(count: int, value: float = 1.0) -> Array:
    return np.full((count, 3), value, dtype=np.float32)
