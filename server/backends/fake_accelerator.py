"""A device that works by itself, on a machine without one: for the fake backend. Floor 2.

Batches execute one after the other, in the order in which they were handed over, whichever version they belong to; handing over
takes no time of the device. It has an amount of memory, and it can break for good. One of each number exists in a process.
"""

import threading
from collections.abc import Callable

from server.core.clock import Clock, monotonic_ns
from server.core.errors import DeviceLost, LoadFailed, OutOfDeviceMemory
from server.core.placement import FAKE
from server.core.tensors import Array


class Work:
    """A batch on its way; see `server.backends.base.Pending`."""

    def __init__(self, owner: "Accelerator", answers: dict[str, Array], until_ns: int, rest: Callable[[int], None]) -> None:
        self._owner = owner
        self._answers = answers
        self._until_ns = until_ns
        self._rest = rest

    def wait(self) -> None:
        """Block until it has been executed. Raises: DeviceLost."""
        self._rest(self._until_ns)
        self._owner.check()

    def outputs(self) -> dict[str, Array]:
        """What it is answered with. Raises: DeviceLost."""
        self._owner.check()
        return self._answers


class Accelerator:
    """Thread-safe. Units: bytes; monotonic ns."""

    def __init__(self, name: str, total_bytes: int, clock: Clock = monotonic_ns) -> None:
        self.name = name
        self.total_bytes = total_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_ns = 0
        self._used_bytes = 0
        self._broken = False

    def memory(self) -> tuple[int, int]:
        """Bytes in use, and all there are."""
        with self._lock:
            return self._used_bytes, self.total_bytes

    def load(self, nbytes: int) -> None:
        """Hold a version's memory. Raises: LoadFailed where there is too little, DeviceLost."""
        self.check()
        with self._lock:
            if self._used_bytes + nbytes > self.total_bytes:
                free = self.total_bytes - self._used_bytes
                raise LoadFailed(f"{self.name} is out of memory: {nbytes} bytes were asked for, {free} are free")
            self._used_bytes += nbytes

    def unload(self, nbytes: int) -> None:
        """Give a version's memory back."""
        with self._lock:
            self._used_bytes -= nbytes

    def begin(
        self, answers: dict[str, Array], took_ns: int, nbytes: int, rest: Callable[[int], None], *, kills: bool = False
    ) -> Work:
        """Execute behind what was begun before, for `took_ns`, with `nbytes` of memory beside the weights.

        Raises: OutOfDeviceMemory, DeviceLost.
        """
        self.check()
        with self._lock:
            if self._used_bytes + nbytes > self.total_bytes:
                free = self.total_bytes - self._used_bytes
                raise OutOfDeviceMemory(f"{self.name} is out of memory: {nbytes} bytes were asked for, {free} are free")
            self._broken = self._broken or kills
            self._free_at_ns = max(self._free_at_ns, self._clock()) + took_ns
            return Work(self, answers, self._free_at_ns, rest)

    def check(self) -> None:
        """Raises: DeviceLost, once it is broken."""
        if self._broken:
            raise DeviceLost(f"{self.name} is broken: an illegal memory access was encountered")


_devices: dict[int, Accelerator] = {}
_lock = threading.Lock()


def accelerator(number: int, total_bytes: int) -> Accelerator:
    """The device of this number. Raises: LoadFailed where it is there with another amount of memory."""
    with _lock:
        found = _devices.setdefault(number, Accelerator(f"{FAKE}:{number}", total_bytes))
    if found.total_bytes != total_bytes:
        raise LoadFailed(f"{found.name} has {found.total_bytes} bytes of memory; device_bytes says {total_bytes}")
    return found


def memory(number: int) -> tuple[int, int] | None:
    """Bytes in use and all there are of a device; None where no version has ever been on it."""
    found = _devices.get(number)
    return None if found is None else found.memory()
