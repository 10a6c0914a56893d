"""Reads the GPUs of this machine through NVML.

Floor 2, and the only file that imports pynvml (distribution nvidia-ml-py, part of the `gpu` extra): the roof loads it by name
and passes the reader on, so that a machine without GPUs needs no such package. Never changes a device's settings.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import pynvml

from server.core.errors import Unsupported
from server.telemetry.readings import DeviceReading
from server.telemetry.visible_devices import by_number, visible

_MILLI = 1_000
_PREFIX = "cuda:"
_Told = TypeVar("_Told")


def open_devices() -> Callable[[], list[DeviceReading]]:
    """Open NVML once and return a reader of all GPUs it shows.

    The reader never raises for a device: what it cannot tell (no such sensor, partitioned, fallen off the bus) is None. It
    may be called from any thread.
    Raises: Unsupported where NVML cannot be opened: no driver, or no right to use it.
    """
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        opened = [(handle, _text(pynvml.nvmlDeviceGetUUID(handle)), _energy_mj(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        raise Unsupported(f"GPU metrics need NVIDIA's management library: {error}") from error
    return lambda: [_read(handle, uuid, first_mj) for handle, uuid, first_mj in opened]


class CudaDevices:
    """The devices that CUDA shows this process, found without CUDA: by `CUDA_VISIBLE_DEVICES` and the driver's library.

    From any thread. Units: bytes. A GPU that is cut into MIG devices tells only of one that is named by its UUID.
    Raises: Unsupported, when made, as `open_devices`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            handles = {}
            for index in range(count):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                handles[_text(pynvml.nvmlDeviceGetUUID(handle))] = handle
        except pynvml.NVMLError as error:
            raise Unsupported(f"the memory of GPUs cannot be read without NVIDIA's management library: {error}") from error
        setting = environment.get("CUDA_VISIBLE_DEVICES")
        names = {_name(handle) for handle in handles.values()}
        # CUDA puts the fastest first where it is not told otherwise, and nobody but CUDA knows which that is
        unordered = len(names) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
        uuids = [] if unordered and by_number(setting) else visible(setting, list(handles))
        found = [handles[uuid] if uuid in handles else _by_uuid(uuid) for uuid in uuids]
        self._devices = {f"{_PREFIX}{number}": handle for number, handle in enumerate(found) if handle is not None}

    def memory(self, device: str) -> tuple[int, int] | None:
        """Bytes in use by whomever, and all there are, of `cuda:N`; None where that is not known."""
        handle = self._devices.get(device)
        if handle is None or _told(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0]) == 1:
            return None
        memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        return None if memory is None else (int(memory.used), int(memory.total))

    def kind(self, device: str) -> str | None:
        """What the maker calls `cuda:N`; None where that is not known."""
        handle = self._devices.get(device)
        return None if handle is None else _name(handle)

    def driver(self) -> str | None:
        """The driver's version."""
        return _told(lambda: _text(pynvml.nvmlSystemGetDriverVersion()))


def _name(handle: object) -> str | None:
    return _told(lambda: _text(pynvml.nvmlDeviceGetName(handle)))


def _by_uuid(uuid: str) -> object | None:
    return _told(lambda: cast(object, pynvml.nvmlDeviceGetHandleByUUID(uuid)))


def _read(handle: object, uuid: str, first_mj: int | None) -> DeviceReading:
    percent = _told(lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
    usage_mw = _told(lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)))
    limit_mw = _told(lambda: float(pynvml.nvmlDeviceGetPowerManagementLimit(handle)))
    memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    energy_mj = _energy_mj(handle)
    return DeviceReading(
        gpu_uuid=uuid,
        utilization_ratio=None if percent is None else percent / 100,
        power_usage_watts=None if usage_mw is None else usage_mw / _MILLI,
        power_limit_watts=None if limit_mw is None else limit_mw / _MILLI,
        energy_joules=None if energy_mj is None or first_mj is None else (energy_mj - first_mj) / _MILLI,
        memory_total_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
    )


def _energy_mj(handle: object) -> int | None:
    """Energy in mJ since the driver was loaded."""
    return _told(lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)))


def _told(ask: Callable[[], _Told]) -> _Told | None:
    try:
        return ask()
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
