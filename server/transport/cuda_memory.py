"""Regions in the memory of a GPU: allocations that callers exported, opened by their handles, copied and never computed on.

Floor 6, beside the regions that are files. Inputs are copied to this process when a request arrives, outputs back when it is
answered, each copy ended before anything else happens: so no stream of a backend ever meets memory of a caller. What may be
done with a region, and when it is closed, is as for files.
"""

import logging
import weakref
from collections.abc import Callable

from server.backends.cudart import HANDLE_BYTES, Cudart
from server.core.errors import DeviceLost, InvalidRequest, SharedMemoryFailed

_ON_A_DEVICE = -1
"""In place of a file's device number, which is never negative: addresses of one GPU are places like bytes of one file."""

_log = logging.getLogger("podium.shared_memory")


class CudaRegion:
    """One registered allocation. Units: bytes.

    Ownership: whoever holds it; it is closed after the last reference to it is gone, on whatever way a request ends.
    """

    __slots__ = ("__weakref__", "_address", "_cuda", "byte_size", "device_id", "name")

    def __init__(
        self, name: str, device_id: int, byte_size: int, cuda: Cudart, address: int, close: Callable[[], None]
    ) -> None:
        """Takes over what is open at `address`."""
        self.name = name
        self.byte_size = byte_size
        self.device_id = device_id
        self._cuda = cuda
        self._address = address
        weakref.finalize(self, close).atexit = False

    def read(self, offset: int, byte_size: int) -> bytes:
        """See `server.core.requests.Region`."""
        try:
            return self._cuda.read(self.device_id, self._address + offset, byte_size)
        except (SharedMemoryFailed, DeviceLost) as error:
            raise unusable(self.name, error) from None

    def writable(self, offset: int, byte_size: int) -> tuple[tuple[int, int], int, int]:
        """See `server.core.requests.Region`. An allocation does not shrink: it is there, or the copy says that it is not."""
        first = self._address + offset
        return (_ON_A_DEVICE, self.device_id), first, first + byte_size

    def write(self, offset: int, data: bytes) -> None:
        """See `server.core.requests.Region`."""
        try:
            self._cuda.write(self.device_id, self._address + offset, data)
        except (SharedMemoryFailed, DeviceLost) as error:
            raise unusable(self.name, error) from None


def open_region(
    cuda: Cudart, name: str, handle: bytes, device_id: int, byte_size: int, later: Callable[[Callable[[], None]], None]
) -> CudaRegion:
    """The allocation that a handle stands for. May take long where the device was not used before; on any thread.

    `later` runs a function where regions are owned, from any thread: closing goes there.
    Raises: InvalidRequest for a handle that opens nothing, or less than `byte_size`; SharedMemoryFailed for a lost device.
    """
    refused = InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
    if len(handle) != HANDLE_BYTES or byte_size <= 0 or not 0 <= device_id < cuda.device_count():
        raise refused
    try:
        address, there = cuda.open(device_id, handle)
    except SharedMemoryFailed as error:
        # callers hear Triton's words, whoever runs the server hears what it was
        _log.warning("a handle of a GPU's memory cannot be opened", extra={"device": device_id, "reason": str(error)})
        raise refused from None
    except DeviceLost as error:
        raise unusable(name, error) from None

    def close() -> None:
        if not cuda.close(device_id, address):
            _log.warning("memory of a GPU cannot be closed", extra={"device": device_id})

    if there < byte_size:
        close()
        raise refused
    return CudaRegion(name, device_id, byte_size, cuda, address, lambda: later(close))


def unusable(name: str, error: SharedMemoryFailed | DeviceLost) -> SharedMemoryFailed:
    """What the caller at fault is told: for it, a lost device is memory that cannot be used."""
    return SharedMemoryFailed(f"shared memory region '{name}' cannot be used: {error}")
