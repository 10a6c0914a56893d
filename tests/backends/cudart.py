"""CUDA's runtime library in the host's memory, with what is hard about it: copies happen late, and memory is not cleared."""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from server.core.tensors import Array

OUT_OF_MEMORY, ILLEGAL_ACCESS = 2, 700
_SAID = {OUT_OF_MEMORY: b"out of memory", ILLEGAL_ACCESS: b"an illegal memory access was encountered"}


class FakeCudart:
    """Copies are done when somebody waits for their stream, or for an event recorded behind them, and not before."""

    def __init__(self, limit_bytes: int = 2**30) -> None:
        self.limit_bytes = limit_bytes
        self.broken = False
        self.allocations = 0
        self.device: dict[int, Array] = {}
        self.host: dict[int, Array] = {}
        self.streams: dict[int, list[Callable[[], object]]] = {}
        self.events: dict[int, list[Callable[[], object]]] = {}
        self.copied_from_pageable = 0
        self.sources: list[int] = []
        self.relaxed: set[tuple[int, int]] = set()
        self._next = 1
        self._lock = threading.RLock()

    def used(self) -> int:
        return sum(array.nbytes for array in self.device.values())

    def nothing_left(self) -> bool:
        return not (self.device or self.host or self.streams or self.events)

    def cudaSetDevice(self, number: int) -> int:  # noqa: N802 - CUDA's names
        return ILLEGAL_ACCESS if self.broken else 0

    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> int:  # noqa: N802
        self.relaxed.add((threading.get_ident(), mode._obj.value))
        return 0

    def cudaGetLastError(self) -> int:  # noqa: N802
        return 0

    def cudaGetErrorString(self, code: int) -> bytes:  # noqa: N802
        return _SAID[code]

    def cudaMalloc(self, out: Any, nbytes: int) -> int:  # noqa: N802
        assert (threading.get_ident(), 2) in self.relaxed  # else it would end a capture of somebody else
        with self._lock:
            if self.used() + nbytes > self.limit_bytes:
                return OUT_OF_MEMORY
            return self._give(out, self.device, nbytes)

    def cudaHostAlloc(self, out: Any, nbytes: int, flags: int) -> int:  # noqa: N802
        with self._lock:
            return self._give(out, self.host, nbytes)

    def cudaFree(self, address: int) -> int:  # noqa: N802
        return self._take(self.device, address)

    def cudaFreeHost(self, address: int) -> int:  # noqa: N802
        return self._take(self.host, address)

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:  # noqa: N802
        return self._handle(out, self.streams)

    def cudaEventCreateWithFlags(self, out: Any, flags: int) -> int:  # noqa: N802
        return self._handle(out, self.events)

    def cudaStreamDestroy(self, stream: int) -> int:  # noqa: N802
        del self.streams[stream]
        return 0

    def cudaEventDestroy(self, event: int) -> int:  # noqa: N802
        del self.events[event]
        return 0

    def cudaEventRecord(self, event: int, stream: int) -> int:  # noqa: N802
        with self._lock:
            self.events[event] = self.streams[stream]
            self.streams[stream] = []
            return 0

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> int:  # noqa: N802
        with self._lock:
            copies, self.events[event] = self.events[event], []
            return self._do(copies)

    def cudaStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        with self._lock:
            copies, self.streams[stream] = self.streams[stream], []
            return self._do(copies)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> int:  # noqa: N802
        with self._lock:
            pinned = source if kind == 1 else to
            inside = any(start <= pinned < start + array.nbytes for start, array in self.host.items())
            self.copied_from_pageable += not inside
            self.sources.append(source)
            self.streams[stream].append(lambda: ctypes.memmove(to, source, nbytes))
            return 0

    def _do(self, copies: list[Callable[[], object]]) -> int:
        for copy in copies:
            copy()
        return 0

    def _give(self, out: Any, where: dict[int, Array], nbytes: int) -> int:
        array = np.full(nbytes, 0xCC, dtype=np.uint8)
        where[array.ctypes.data] = array
        out._obj.value = array.ctypes.data
        self.allocations += 1
        return 0

    def _take(self, where: dict[int, Array], address: int) -> int:
        with self._lock:
            where.pop(address)[:] = 0xDD
            return 0

    def _handle(self, out: Any, where: dict[int, list[Callable[[], object]]]) -> int:
        with self._lock:
            out._obj.value = self._next
            where[self._next] = []
            self._next += 1
            return 0
