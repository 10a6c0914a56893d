"""CUDA's runtime library, as far as the slots need it: memory, streams, copies. Floor 2.

ONNX Runtime's Python neither pins host memory nor copies without holding the interpreter; a call through ctypes lets it go.
The library is the one that onnxruntime's CUDA provider loads too, so nothing is installed for it, and torch is not needed.
Never loaded before the first ONNX version on CUDA.

Source: CUDA Runtime API 12 and 13 (the functions used are alike in both).
"""

import ctypes
import re
import sys
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.backends.cudart import candidates

_MAPPED = re.compile(r"(/.*/libcudart[-.\w]*\.so[.\d]*)$", re.MULTILINE)
_PORTABLE, _NON_BLOCKING, _NO_TIMING = 1, 1, 2
_TO_DEVICE, _TO_HOST = 1, 2
_RELAXED = 2

_CAPTURING = threading.RLock()
"""onnxruntime captures in CUDA's global mode: an allocation anywhere in the process would end the capture."""

_SIZE, _POINTER, _INT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
_OUT = ctypes.POINTER(ctypes.c_void_p)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (_INT,),
    "cudaMalloc": (_OUT, _SIZE),
    "cudaFree": (_POINTER,),
    "cudaHostAlloc": (_OUT, _SIZE, ctypes.c_uint),
    "cudaFreeHost": (_POINTER,),
    "cudaStreamCreateWithFlags": (_OUT, ctypes.c_uint),
    "cudaStreamDestroy": (_POINTER,),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaStreamWaitEvent": (_POINTER, _POINTER, ctypes.c_uint),
    "cudaEventCreateWithFlags": (_OUT, ctypes.c_uint),
    "cudaEventRecord": (_POINTER, _POINTER),
    "cudaEventDestroy": (_POINTER,),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "cudaGetLastError": (),
    "cudaThreadExchangeStreamCaptureMode": (ctypes.POINTER(_INT),),
}


def find_library(maps: Path = Path("/proc/self/maps"), names: Iterable[str] | None = None) -> Any | None:
    """The runtime library: the one that is loaded already, else the first of `names`; None without one."""
    names = candidates(sys.path) if names is None else names
    mapped = _MAPPED.findall(maps.read_text("utf-8", "replace")) if maps.is_file() else []
    for name in (*mapped, *names):
        try:
            library = ctypes.CDLL(name)
            for function, arguments in _FUNCTIONS.items():
                getattr(library, function).argtypes = arguments
            library.cudaGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError):
            continue
        return library
    return None


@dataclass(frozen=True, slots=True)
class _Stream:
    handle: int
    event: int


class CudaMemory:
    """One CUDA device; see `server.backends.onnx_memory.DeviceMemory`. Every failure is a RuntimeError that begins with
    "CUDA failure", as onnxruntime's do."""

    def __init__(self, number: int, library: Any, kind: str = "cuda") -> None:
        """`kind`: onnxruntime's word for the memory behind the addresses."""
        self.kind = kind
        self.number = number
        self._library = library
        self._thread = threading.local()
        with self.exclusive():
            self.compute_stream = self._made("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def allocate(self, nbytes: int) -> int:
        """See `DeviceMemory`."""
        with self.exclusive():
            return self._made("cudaMalloc", nbytes)

    def free(self, address: int) -> None:
        """See `DeviceMemory`."""
        with self.exclusive():
            self._call("cudaFree", address)

    def allocate_host(self, nbytes: int) -> int:
        """See `DeviceMemory`: page-locked."""
        with self.exclusive():
            return self._made("cudaHostAlloc", nbytes, _PORTABLE)

    def free_host(self, address: int) -> None:
        """See `DeviceMemory`."""
        with self.exclusive():
            self._call("cudaFreeHost", address)

    def open_stream(self) -> _Stream:
        """See `DeviceMemory`."""
        with self.exclusive():
            handle = self._made("cudaStreamCreateWithFlags", _NON_BLOCKING)
            return _Stream(handle, self._made("cudaEventCreateWithFlags", _NO_TIMING))

    def close_stream(self, stream: _Stream) -> None:
        """See `DeviceMemory`."""
        with self.exclusive():
            self._call("cudaStreamSynchronize", stream.handle)
            self._call("cudaEventDestroy", stream.event)
            self._call("cudaStreamDestroy", stream.handle)

    def upload(self, to: int, source: int, nbytes: int, stream: _Stream) -> None:
        """See `DeviceMemory`."""
        self._call("cudaMemcpyAsync", to, source, nbytes, _TO_DEVICE, stream.handle)

    def order(self, stream: _Stream) -> None:
        """See `DeviceMemory`: the compute stream waits, the caller does not."""
        self._call("cudaEventRecord", stream.event, stream.handle)
        self._call("cudaStreamWaitEvent", self.compute_stream, stream.event, 0)

    def download(self, to: int, source: int, nbytes: int, stream: _Stream) -> None:
        """See `DeviceMemory`."""
        self._call("cudaMemcpyAsync", to, source, nbytes, _TO_HOST, stream.handle)

    def finish(self, stream: _Stream) -> None:
        """See `DeviceMemory`."""
        self._call("cudaStreamSynchronize", stream.handle)

    def exclusive(self) -> AbstractContextManager[Any]:
        """See `DeviceMemory`: of the whole process."""
        return _CAPTURING

    def close(self) -> None:
        """See `DeviceMemory`."""
        with self.exclusive():
            self._call("cudaStreamDestroy", self.compute_stream)

    def _made(self, function: str, *arguments: int) -> int:
        made = ctypes.c_void_p()
        self._call(function, ctypes.byref(made), *arguments)
        return made.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        """Every thread has a current device of its own, and any thread may come here."""
        library = self._library
        if not hasattr(self._thread, "relaxed"):
            # an allocation on this thread must not end what another backend captures on its own
            library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(_INT(_RELAXED)))
            self._thread.relaxed = True
        code = library.cudaSetDevice(self.number) or getattr(library, function)(*arguments)
        if code:
            library.cudaGetLastError()  # an error that passes would be told again to whoever asks next
            said = library.cudaGetErrorString(code).decode()
            raise RuntimeError(f"CUDA failure {code}: {said} ({function})")
