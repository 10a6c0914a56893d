"""Memory on both sides of a device's bus, and the copies between: what the slots need of a device. Floor 2.

`HostMemory` is the host's own, for the device "cpu": the slots' code is the same there. The CUDA one is `onnx_cudart.py`.
Never imports onnxruntime.
"""

import ctypes
import threading
import weakref
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

import numpy as np

from server.core.tensors import Array

_SMALLEST_BYTES = 4096
MOST_LENT_BYTES = 2**30
"""Answers may be kept for long (a response cache does). Beyond this much the rest gets ordinary memory."""


class DeviceMemory(Protocol):
    """Addresses are numbers. `kind` and `number` are onnxruntime's words for the device. Thread-safe."""

    kind: str
    number: int
    compute_stream: int
    """The stream that executions are given to; 0 where it is onnxruntime's own."""

    def allocate(self, nbytes: int) -> int:
        """Memory of the device. Raises: RuntimeError, in CUDA's words."""
        ...

    def free(self, address: int) -> None:
        """Give it back."""
        ...

    def allocate_host(self, nbytes: int) -> int:
        """Memory of the host that the device reads fastest. Raises: RuntimeError."""
        ...

    def free_host(self, address: int) -> None:
        """Give it back."""
        ...

    def open_stream(self) -> Any:
        """An order of copies of its own."""
        ...

    def close_stream(self, stream: Any) -> None:
        """After what it was given."""
        ...

    def upload(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        """Begin to copy to the device; the source stays as it is until `finish`, or what `order` comes before, has ended."""
        ...

    def order(self, stream: Any) -> None:
        """Whatever executes from here on finds what `stream` was given so far done."""
        ...

    def download(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        """Begin to copy to the host."""
        ...

    def finish(self, stream: Any) -> None:
        """Block until everything that `stream` was given is done. Raises: RuntimeError."""
        ...

    def exclusive(self) -> AbstractContextManager[Any]:
        """Held while executions are captured: nobody allocates meanwhile."""
        ...

    def close(self) -> None:
        """Give up the compute stream, after everything else."""
        ...


class HostMemory:
    """The host as a device."""

    kind = "cpu"

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.compute_stream = 0
        self._held: dict[int, Array] = {}

    def allocate(self, nbytes: int) -> int:
        """See `DeviceMemory`."""
        array = np.empty(nbytes, dtype=np.uint8)
        self._held[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        del self._held[address]

    allocate_host = allocate
    free_host = free

    def open_stream(self) -> Any:
        """See `DeviceMemory`: copies are done when they are asked for."""
        return None

    def close_stream(self, stream: Any) -> None:
        """See `DeviceMemory`."""

    def upload(self, to: int, source: int, nbytes: int, stream: Any) -> None:
        """See `DeviceMemory`."""
        ctypes.memmove(to, source, nbytes)

    download = upload

    def order(self, stream: Any) -> None:
        """See `DeviceMemory`."""

    def finish(self, stream: Any) -> None:
        """See `DeviceMemory`."""

    def exclusive(self) -> AbstractContextManager[Any]:
        """See `DeviceMemory`."""
        return nullcontext()

    def close(self) -> None:
        """See `DeviceMemory`."""


class HostPool:
    """Host memory that a device reads fastest, lent as arrays. Thread-safe.

    Ownership: an array and all its views are their holders'; the memory comes back when the last of them is gone, and not
    before. What is lent while the pool is closed is freed then.
    """

    def __init__(self, memory: DeviceMemory, most_lent_bytes: int = MOST_LENT_BYTES) -> None:
        self._memory = memory
        self._most_lent_bytes = most_lent_bytes
        self._lock = threading.Lock()
        self._free: dict[int, list[int]] = {}
        self._lent: dict[int, int] = {}
        # filled by finalizers, which may run in the middle of anything: they take no lock
        self._returned: deque[tuple[int, int]] = deque()
        self._closed = False

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Unfilled. Ordinary memory where too much is lent, and for what holds no numbers.

        Raises: RuntimeError, in CUDA's words.
        """
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if dtype.hasobject or not nbytes:
            return np.empty(shape, dtype=dtype)
        size = max(_SMALLEST_BYTES, 1 << (nbytes - 1).bit_length())
        with self._lock:
            if not self._closed:
                self._collect()
            if self._closed or sum(self._lent.values()) + size > self._most_lent_bytes:
                return np.empty(shape, dtype=dtype)
            free = self._free.get(size)
            address = free.pop() if free else self._memory.allocate_host(size)
            self._lent[address] = size
        block = (ctypes.c_char * size).from_address(address)
        gone = weakref.finalize(block, self._come_back, address, size)
        gone.atexit = False  # the process takes its memory along
        lent: Array = np.frombuffer(memoryview(block), dtype=dtype, count=nbytes // dtype.itemsize).reshape(shape)
        return lent

    def holds(self, address: int, nbytes: int) -> bool:
        """Whether memory that begins there was lent by this pool."""
        return self._lent.get(address, 0) >= nbytes

    def close(self) -> None:
        """Free what is here; what is lent follows when it comes back."""
        with self._lock:
            self._collect()
            free, self._free = self._free, {}
            self._closed = True
        for address in [address for addresses in free.values() for address in addresses]:
            self._release(address)
        self._free_returned()

    def _collect(self) -> None:
        for _ in range(len(self._returned)):
            address, size = self._returned.popleft()
            del self._lent[address]
            self._free.setdefault(size, []).append(address)

    def _come_back(self, address: int, size: int) -> None:
        self._returned.append((address, size))
        if self._closed:
            self._free_returned()

    def _free_returned(self) -> None:
        while True:
            try:
                address, _ = self._returned.popleft()
            except IndexError:
                return
            del self._lent[address]
            self._release(address)

    def _release(self, address: int) -> None:
        with suppress(RuntimeError):  # a lost device gives nothing back before the process ends
            self._memory.free_host(address)
