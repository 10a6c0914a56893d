"""The NVML reader, against a stand-in with NVML's functions and units (the real one needs a GPU)."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from server.core.errors import Unsupported
from server.telemetry.readings import DeviceReading


class _NvmlError(Exception):
    pass


class _Nvml(ModuleType):
    """Two GPUs: handle 0 tells everything, handle 1 nothing but its name."""

    NVMLError = _NvmlError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.broken = False
        self.lost = False
        self.energy_mj = 5_000_000

    def _told(self, handle: int) -> None:
        if handle == 1 or self.lost:
            raise _NvmlError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as all below
        if self.broken:
            raise _NvmlError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:  # noqa: N802
        return (b"GPU-a", "GPU-b")[handle]  # old bindings return bytes

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._told(handle)
        return SimpleNamespace(gpu=41, memory=7)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._told(handle)
        return 75_500

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:  # noqa: N802
        self._told(handle)
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._told(handle)
        return self.energy_mj

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._told(handle)
        return SimpleNamespace(total=150_754_820_096, used=8_589_934_592, free=0)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> _Nvml:
    library = _Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.delitem(sys.modules, "server.telemetry.device_metrics", raising=False)
    return library


def _open() -> Callable[[], list[DeviceReading]]:
    opened: Callable[[], list[DeviceReading]] = importlib.import_module("server.telemetry.device_metrics").open_devices()
    return opened


def test_readings_are_in_the_units_of_the_metrics(nvml: _Nvml) -> None:
    read = _open()
    nvml.energy_mj += 12_250
    assert read() == [
        DeviceReading("GPU-a", 0.41, 75.5, 700.0, 12.25, 150_754_820_096, 8_589_934_592),
        DeviceReading("GPU-b"),
    ]


def test_a_gpu_that_is_lost_tells_nothing_and_raises_nothing(nvml: _Nvml) -> None:
    read = _open()
    nvml.lost = True
    assert read() == [DeviceReading("GPU-a"), DeviceReading("GPU-b")]


def test_without_a_driver_the_reason_is_told(nvml: _Nvml) -> None:
    nvml.broken = True
    with pytest.raises(Unsupported, match="management library: NVML Shared Library Not Found"):
        _open()
