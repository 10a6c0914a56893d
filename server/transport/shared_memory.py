"""The regions of shared memory that callers have registered. Those of the system are files below `/dev/shm`, read and written,
never mapped; those of a GPU are `cuda_memory`'s, kept here under the same names.

Floor 6: the only place that opens such files. A file that its owner truncates while a process has it mapped kills that process;
reading and writing through a descriptor gives an error instead, which only the request at fault is told. A region's
descriptor is closed when nobody holds the region any more: it may be unregistered, and its name used again, at any moment,
while requests that were admitted with it still end as they began. Off by default, since whoever may register can read and
write every file there that this server's user can.
"""

import os
import resource
import stat
import weakref
from collections.abc import Callable

from server.backends.cudart import Cudart
from server.core import requests
from server.core.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, SharedMemoryFailed, Unsupported
from server.transport.cuda_memory import CudaRegion, open_region
from server.transport.places import NoMemory

FOLDER = "/dev/shm"
"""Where Linux keeps the objects of `shm_open`."""

MAX_NAME = 1024
"""Characters of a region's name: long names in many regions must not take memory worth speaking of."""

MAX_OPEN = 4096
"""Regions that may be open at once: each is a descriptor of this process. perf_analyzer uses one per tensor and data step."""

_DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."


class Region:
    """One registered part of a file. Units: bytes; `offset` from the file's beginning.

    Ownership: whoever holds it; the descriptor is closed with the last reference to it, on whatever way a request ends.
    """

    __slots__ = ("__weakref__", "_fd", "_file", "byte_size", "key", "name", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, fd: int) -> None:
        """Takes over `fd`."""
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._fd = fd
        weakref.finalize(self, os.close, fd).atexit = False
        found = os.fstat(fd)
        self._file = (found.st_dev, found.st_ino)

    def read(self, offset: int, byte_size: int) -> bytes:
        """See `server.core.requests.Region`."""
        _, first, last = self.writable(offset, byte_size)
        parts: list[bytes] = []
        try:
            # one call does it but for sizes beyond what the kernel moves at once
            while first < last:
                part = os.pread(self._fd, last - first, first)
                if not part:
                    raise self._gone()
                parts.append(part)
                first += len(part)
        except OSError as error:
            raise self._failed(error) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def writable(self, offset: int, byte_size: int) -> tuple[tuple[int, int], int, int]:
        """See `server.core.requests.Region`."""
        first = self.offset + offset
        # writing beyond its end would make the file longer
        if os.fstat(self._fd).st_size < first + byte_size:
            raise self._gone()
        return self._file, first, first + byte_size

    def write(self, offset: int, data: bytes) -> None:
        """See `server.core.requests.Region`."""
        first = self.offset + offset
        left = memoryview(data)
        try:
            while left:
                written = os.pwrite(self._fd, left, first)
                left = left[written:]
                first += written
        except OSError as error:
            # a file with holes takes memory when it is written, and there may be none
            raise self._failed(error) from None

    def _gone(self) -> SharedMemoryFailed:
        return SharedMemoryFailed(f"shared memory region '{self.name}' is smaller than it was when it was registered")

    def _failed(self, error: OSError) -> SharedMemoryFailed:
        return SharedMemoryFailed(f"shared memory region '{self.name}' cannot be used: {error.strerror}")


class Regions(NoMemory):
    """Regions by name, of both kinds: a name is one region's. Ownership: the event loop."""

    def __init__(
        self,
        *,
        allowed: bool = False,
        max_read_bytes: int = 0,
        max_open: int | None = None,
        cuda: Cudart | None = None,
        later: Callable[[Callable[[], None]], None] = lambda function: function(),
    ) -> None:
        """`max_open` None: MAX_OPEN, but no more than a quarter of the files that this process may open, since callers need
        connections. `cuda` None: no GPU's memory can be shared. `later` runs a function on the event loop, from any thread.
        """
        self.allowed = allowed
        self.max_read_bytes = max_read_bytes
        self.cuda = cuda if allowed else None
        self._later = later
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = MAX_OPEN if files == resource.RLIM_INFINITY else min(MAX_OPEN, files // 4)
        self._max_open = most if max_open is None else max_open
        self._regions: dict[str, Region | CudaRegion] = {}
        # those that are registered, and those that requests on their way still hold
        self._open: weakref.WeakSet[Region | CudaRegion] = weakref.WeakSet()

    def find(self, name: str) -> requests.Region:
        """A registered region. Raises: NotFound."""
        return self._regions.get(name) or super().find(name)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a part of the file that `key` names, for reading and writing.

        Raises: Unsupported, AlreadyExists, Overloaded, InvalidRequest, SharedMemoryFailed; then nothing has changed.
        """
        self.check_allowed()
        file = key.lstrip("/")
        if not file:
            raise InvalidRequest(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
        self._check_room(name)
        refused = InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
        # the name "" means all of them elsewhere
        if not 0 < len(name) <= MAX_NAME or byte_size <= 0 or offset < 0:
            raise refused
        fd = _open(file, key)
        if os.fstat(fd).st_size < offset + byte_size:
            os.close(fd)
            raise refused
        self._add(Region(name, key, offset, byte_size, fd))

    def opening(self, name: str, handle: bytes, device_id: int, byte_size: int) -> Callable[[], CudaRegion]:
        """What opens the allocation that `handle` stands for, on any thread; what it returns is to be given to `keep`.

        Raises: Unsupported, AlreadyExists, Overloaded, InvalidRequest; the function what `open_region` raises.
        """
        self.check_allowed()
        if (cuda := self.cuda) is None:
            raise Unsupported(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
        self._check_room(name)
        if not 0 < len(name) <= MAX_NAME:
            raise InvalidRequest(f"failed to register shared memory region '{name}': invalid args")
        return lambda: open_region(cuda, name, handle, device_id, byte_size, self._later)

    def keep(self, region: CudaRegion) -> None:
        """Register what was opened. Raises: AlreadyExists, Overloaded where somebody was faster; it closes by itself then."""
        self._check_room(region.name)
        self._add(region)

    def unregister(self, name: str, kind: type[Region] | type[CudaRegion] = Region) -> None:
        """Forget a region, or all of that kind for ""; others are forgotten already. Raises: Unsupported."""
        self.check_allowed()
        for region in [region for region in self._regions.values() if isinstance(region, kind)]:
            if name in ("", region.name):
                del self._regions[region.name]

    def registered(self, name: str) -> list[Region]:
        """One region of the system's memory, or all of them for "". Raises: NotFound."""
        found = self._regions.get(name)
        if isinstance(found, CudaRegion):
            raise NotFound(f"The region named '{name}' is registered as CUDA shared memory, not system shared memory")
        if name and found is None:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return [found] if found else [region for region in self._regions.values() if isinstance(region, Region)]

    def registered_cuda(self, name: str) -> list[CudaRegion]:
        """One region of a GPU's memory, or all of them for "". Raises: NotFound."""
        found = self._regions.get(name)
        if isinstance(found, Region):
            raise NotFound(f"The region named '{name}' is registered as system shared memory, not CUDA shared memory")
        if name and found is None:
            raise NotFound(f"Unable to find cuda shared memory region: '{name}'")
        return [found] if found else [region for region in self._regions.values() if isinstance(region, CudaRegion)]

    def _check_room(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager")
        if len(self._open) >= self._max_open:
            raise Overloaded(
                f"shared memory region '{name}' cannot be registered: {len(self._open)} are open, the most there can be"
            )

    def _add(self, region: Region | CudaRegion) -> None:
        self._regions[region.name] = region
        self._open.add(region)

    def check_allowed(self) -> None:
        """Raises: Unsupported where callers may not share memory."""
        if not self.allowed:
            raise Unsupported(_DISABLED)


def _open(file: str, key: str) -> int:
    """A descriptor of a regular file in the folder itself, as `shm_open` would find it; links are not followed."""
    try:
        if "/" in file or file in (".", ".."):
            raise ValueError("leads elsewhere")
        # not blocking: opening anything but a regular file must not wait for somebody
        fd = os.open(f"{FOLDER}/{file}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        raise SharedMemoryFailed(f"Unable to open shared memory region: '{key}'") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SharedMemoryFailed(f"Unable to open shared memory region: '{key}'")
    return fd
