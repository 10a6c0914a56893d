"""NVIDIA's libcudart by ctypes: as much of it as memory of a GPU takes that another process shares with this one.

Floor 2, beside `onnx_cudart.py`, which has what executions take. Nothing here imports a package: the library is the one that
torch brought, or the system's, and a machine without it loses this and nothing else. Never allocates, never launches, never
resets a device.
Source: driver_types.h and cuda_runtime_api.h of CUDA 13.0; the same calls are in 12.x.
"""

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from server.core.errors import DeviceLost, SharedMemoryFailed, Unsupported

HANDLE_BYTES = 64
"""Size of a cudaIpcMemHandle_t."""

_LOADER_NAMES = ("libcudart.so.13", "libcudart.so.12")
_IN_SITE_PACKAGES = ("nvidia/cu1*/lib/libcudart.so.1*", "nvidia/cuda_runtime/lib/libcudart.so.1*")
"""Where NVIDIA's wheels put it: those for CUDA 13, and those for 12."""

_LAZY_PEER_ACCESS = 1
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_RELAXED = 2
_DRIVER_VERSION = 12000
"""Of the driver's functions, as they were in CUDA 12.0."""

_STICKY = frozenset({214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810})
"""Errors after which every call of this process on that device fails alike: the header says so of each, but for memory that
cannot be corrected (214, 220), which ends a context as well."""

_log = logging.getLogger("podium.cudart")

_AddressRange = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_size_t), ctypes.c_uint64
)


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class Cudart:
    """One loaded libcudart. Units: bytes; addresses are of the device, as integers.

    Ownership: any thread may call. A call chooses the device of its thread and leaves it chosen, so a thread that has one of
    its own (an engine's) must not call.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises: Unsupported where the library lacks a function."""
        self._library = library
        self._thread = threading.local()
        self._count = 0
        self._lost: dict[int, str] = {}
        integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
        given_back = ctypes.POINTER(integer)
        try:
            library.cudaGetErrorString.restype = ctypes.c_char_p
            library.cudaGetErrorString.argtypes = (integer,)
            library.cudaGetLastError.argtypes = ()
            library.cudaGetDeviceCount.argtypes = (given_back,)
            library.cudaSetDevice.argtypes = (integer,)
            library.cudaThreadExchangeStreamCaptureMode.argtypes = (given_back,)
            library.cudaIpcOpenMemHandle.argtypes = (ctypes.POINTER(pointer), _Handle, ctypes.c_uint)
            library.cudaIpcCloseMemHandle.argtypes = (pointer,)
            library.cudaMemcpy.argtypes = (pointer, pointer, size, integer)
            library.cudaStreamSynchronize.argtypes = (pointer,)
            self._find_range = _range_finder(library)
        except AttributeError as error:
            raise Unsupported(f"it lacks a function: {error}") from None

    def device_count(self) -> int:
        """How many GPUs this process sees, which does not change; creates nothing on them. Raises: Unsupported for none."""
        if self._count:
            return self._count
        count = ctypes.c_int()
        status: int = self._library.cudaGetDeviceCount(ctypes.byref(count))
        if status:
            self._library.cudaGetLastError()
            raise Unsupported(self._text(status))
        if count.value < 1:
            raise Unsupported("no GPU is there")
        self._count = count.value
        return self._count

    def open(self, device: int, handle: bytes) -> tuple[int, int]:
        """Memory that another process exported: its address here, and how much lies there.

        Opened several times it has one address, and is closed as often. The first use of a device makes a context on it,
        which takes its time. Raises: SharedMemoryFailed, DeviceLost; then nothing is open.
        """
        self._choose(device)
        address = ctypes.c_void_p()
        given = _Handle.from_buffer_copy(handle)
        self._check(device, self._library.cudaIpcOpenMemHandle(ctypes.byref(address), given, _LAZY_PEER_ACCESS))
        opened = address.value or 0
        try:
            return opened, self._bytes_at(device, opened)
        except (SharedMemoryFailed, DeviceLost):
            self.close(device, opened)
            raise

    def close(self, device: int, address: int) -> bool:
        """Undo one `open`; False where the library would not, which nobody can do anything about. Never raises."""
        try:
            self._choose(device)
            self._check(device, self._library.cudaIpcCloseMemHandle(address))
        except (SharedMemoryFailed, DeviceLost):
            return False
        return True

    def read(self, device: int, address: int, byte_size: int) -> bytes:
        """A copy of what is there now. Raises: SharedMemoryFailed, DeviceLost."""
        self._choose(device)
        copied = np.empty(byte_size, np.uint8)
        # ends when the copy has: the memory is of this process, and nothing is staged
        self._check(device, self._library.cudaMemcpy(copied.ctypes.data, address, byte_size, _DEVICE_TO_HOST))
        return copied.tobytes()

    def write(self, device: int, address: int, data: bytes) -> None:
        """Fill a part; it is there when this returns. Raises: SharedMemoryFailed, DeviceLost."""
        self._choose(device)
        self._check(device, self._library.cudaMemcpy(address, data, len(data), _HOST_TO_DEVICE))
        # such a copy may return when the bytes are staged: whoever is answered must find them in the device's memory
        self._check(device, self._library.cudaStreamSynchronize(None))

    def _choose(self, device: int) -> None:
        """The device of this thread. Raises: SharedMemoryFailed, DeviceLost."""
        if lost := self._lost.get(device):
            raise DeviceLost(lost)
        if not hasattr(self._thread, "relaxed"):
            # without this a copy on this thread would break whatever graph another thread is capturing just then
            mode = ctypes.c_int(_RELAXED)
            self._check(device, self._library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode)))
            self._thread.relaxed = True
        self._check(device, self._library.cudaSetDevice(device))

    def _bytes_at(self, device: int, address: int) -> int:
        """From an address to the end of its allocation, which only the driver knows."""
        function = ctypes.c_void_p()
        self._check(device, self._find_range(function))
        if not function.value:
            raise SharedMemoryFailed("the driver does not say how large an allocation is")
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        status: int = _AddressRange(function.value)(ctypes.byref(base), ctypes.byref(size), address)
        # the driver's numbers are the runtime's but for names
        self._check(device, status)
        return base.value + size.value - address

    def _check(self, device: int, status: int) -> None:
        if not status:
            return
        text = self._text(status)
        if status in _STICKY:
            lost = self._lost[device] = f"cuda:{device} is lost to this process: {text}"
            # versions on it learn it by their next batch, whoever runs the server here
            _log.error("a device is lost", extra={"device": device, "reason": text})
            raise DeviceLost(lost)
        # whoever asks next on this thread must not be told of this one
        self._library.cudaGetLastError()
        raise SharedMemoryFailed(text)

    def _text(self, status: int) -> str:
        said: bytes | None = self._library.cudaGetErrorString(status)
        return f"{(said or b'unknown error').decode('utf-8', 'replace')} (CUDA error {status})"


def load(path: str = "") -> Cudart:
    """The libcudart at `path`, or the first that is found. Raises: Unsupported, with why not, where there is none."""
    failed: list[str] = []
    for candidate in [path] if path else candidates(sys.path):
        try:
            return Cudart(ctypes.CDLL(candidate))
        except (OSError, Unsupported) as error:
            failed.append(str(error))
    raise Unsupported(f"libcudart cannot be loaded: {'; '.join(failed)}")


def candidates(folders: list[str]) -> Iterator[str]:
    """Where it may be: in NVIDIA's wheels below these folders, newest first, then wherever the loader looks.

    The one in a wheel is the one that torch loads; two of them in a process would do, but take memory twice.
    """
    for folder in folders:
        for pattern in _IN_SITE_PACKAGES:
            yield from sorted(map(str, Path(folder or ".").glob(pattern)), reverse=True)
    yield from _LOADER_NAMES


def _range_finder(library: ctypes.CDLL) -> Callable[[ctypes.c_void_p], int]:
    """How the driver's cuMemGetAddressRange is found: by its version since 12.5, and only so in 13.0 and later."""
    name, flags, found = b"cuMemGetAddressRange", ctypes.c_uint64(0), ctypes.c_int()
    if hasattr(library, "cudaGetDriverEntryPointByVersion"):
        find = library.cudaGetDriverEntryPointByVersion
        version = ctypes.c_uint(_DRIVER_VERSION)
        return lambda function: int(find(name, ctypes.byref(function), version, flags, ctypes.byref(found)))
    old = library.cudaGetDriverEntryPoint
    return lambda function: int(old(name, ctypes.byref(function), flags, ctypes.byref(found)))
