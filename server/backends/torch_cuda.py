"""CUDA, as `device` describes a device. Floor 2: the one file that calls torch.cuda, and only when a device is opened.

Thin on purpose: whatever decides anything lies above it, where it runs without a GPU.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from server.backends.device import Event, Result
from server.backends.pipeline import Line
from server.core.errors import LoadFailed

_WARM_RUNS = 3
"""Before a capture: libraries choose their kernels and allocate in the first executions (torch's notes on CUDA graphs)."""
_SPINNING_CPUS = 8
"""A thread that spins hears of an event some 30 us sooner than one that sleeps; with fewer CPUs than this others need them."""
_capturing = threading.Lock()
"""torch allows one capture at a time in a process."""


class CudaEvent:
    """See `device.Event`."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def wait(self) -> None:
        """See `device.Event.wait`."""
        self.event.synchronize()


class CudaStream:
    """See `device.Stream`."""

    def __init__(self, index: int, *, spins: bool) -> None:
        self._stream = torch.cuda.Stream(index)
        self._blocking = not spins

    def enqueue(self, work: Callable[[], object]) -> None:
        """See `device.Stream.enqueue`."""
        with torch.cuda.stream(self._stream):
            work()

    def call(self, work: Callable[[], Result]) -> Result:
        """See `device.Stream.call`: CUDA itself puts it in line."""
        with torch.cuda.stream(self._stream):
            return work()

    def event(self) -> CudaEvent:
        """See `device.Stream.event`."""
        event = torch.cuda.Event(blocking=self._blocking)
        event.record(self._stream)
        return CudaEvent(event)

    def after(self, event: Event) -> None:
        """See `device.Stream.after`."""
        own: Any = event
        self._stream.wait_event(own.event)


class CudaGraph:
    """See `device.Graph`."""

    def __init__(self, graph: Any, results: list[Any]) -> None:
        self._graph = graph
        self.results = results

    def replay(self) -> None:
        """See `device.Graph.replay`."""
        self._graph.replay()


class CudaDevice:
    """One CUDA device of this process. Thread-safe."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"cuda:{index}"
        self._spins = len(os.sched_getaffinity(0)) >= _SPINNING_CPUS
        self._side: Any = None

    def stream(self) -> CudaStream:
        """See `device.Device.stream`."""
        return CudaStream(self.index, spins=self._spins)

    def host_bytes(self, nbytes: int) -> Any:
        """See `device.Device.host_bytes`: from torch's cache of pinned memory, which waits for copies that still read it."""
        with torch.cuda.device(self.index):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def bytes(self, nbytes: int) -> Any:
        """See `device.Device.bytes`."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.name)

    def pool(self) -> object:
        """See `device.Device.pool`."""
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], list[Any]], pool: object) -> CudaGraph:
        """See `device.Device.capture`. Other threads may use the device meanwhile; only this one is held to what a capture
        allows."""
        with _capturing, torch.cuda.device(self.index):
            # graphs share their pool's memory only if they were captured on one stream (torch's notes on it)
            self._side = side = self._side or torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_RUNS):
                    work()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                results = work()
            return CudaGraph(graph, results)

    def trim(self) -> None:
        """See `device.Device.trim`."""
        with torch.cuda.device(self.index):
            torch.cuda.empty_cache()


_lines: dict[int, Line] = {}
_lock = threading.Lock()


def line_of(index: int, *, shared: bool) -> Line:
    """The line of a device that its versions share, or one of its own. Raises: LoadFailed where there is no such device."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise LoadFailed(f"cuda:{index} is not there: torch {torch.__version__} sees {torch.cuda.device_count()}")
    if not shared:
        return Line(CudaDevice(index))
    with _lock:
        if index not in _lines:
            _lines[index] = Line(CudaDevice(index))
        return _lines[index]
