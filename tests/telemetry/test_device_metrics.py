"""The NVML reader, against a stand-in with NVML's functions and units (the real one needs a GPU)."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from server.core.errors import Unsupported
from server.telemetry.readings import DeviceReading

_MIG_HANDLE = 7


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
        self.names: dict[int, str | bytes] = {0: "NVIDIA H200", 1: b"NVIDIA H200", _MIG_HANDLE: "NVIDIA H200 MIG 1g.18gb"}
        self.cut: set[int] = set()
        self.mig: set[str] = set()

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

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.mig:
            raise _NvmlError("Not Found")
        return _MIG_HANDLE

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        if handle == _MIG_HANDLE:
            raise _NvmlError("Invalid Argument")
        return [int(handle in self.cut), 0]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        if self.lost:
            raise _NvmlError("GPU is lost")
        return "600.1"

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


_MEMORY = (8_589_934_592, 150_754_820_096)


def _cuda(**environment: str) -> Any:
    return importlib.import_module("server.telemetry.device_metrics").CudaDevices(environment)


def _seen(**environment: str) -> list[str]:
    """Who tells of its memory, of the first three numbers."""
    devices = _cuda(**environment)
    return [f"cuda:{number}" for number in range(3) if devices.memory(f"cuda:{number}") is not None]


def test_the_memory_of_a_cuda_device_is_that_of_its_gpu(nvml: _Nvml) -> None:
    devices = _cuda()
    assert devices.memory("cuda:0") == _MEMORY
    assert devices.memory("cuda:1") is None, "a GPU that does not tell"
    assert devices.memory("cuda:2") is None, "no such GPU"
    assert (devices.kind("cuda:0"), devices.kind("cuda:1"), devices.kind("cuda:2")) == ("NVIDIA H200", "NVIDIA H200", None)
    assert devices.driver() == "600.1"
    nvml.lost = True
    assert (devices.memory("cuda:0"), devices.driver()) == (None, None)


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("", []),
        ("-1", []),
        ("0", ["cuda:0"]),
        ("1", []),
        ("1,0", ["cuda:1"]),
        ("GPU-b,GPU-a", ["cuda:1"]),
        ("GPU-a", ["cuda:0"]),
        ("GPU-x,GPU-a", []),
    ],
)
def test_cuda_numbers_only_what_it_may_see(nvml: _Nvml, setting: str, seen: list[str]) -> None:
    assert _seen(CUDA_VISIBLE_DEVICES=setting) == seen


def test_which_of_different_gpus_is_the_first_is_not_guessed(nvml: _Nvml) -> None:
    nvml.names[1] = "NVIDIA T4"
    assert _seen() == _seen(CUDA_VISIBLE_DEVICES="0") == []
    assert _seen(CUDA_VISIBLE_DEVICES="GPU-b,GPU-a") == ["cuda:1"]
    assert _seen(CUDA_DEVICE_ORDER="PCI_BUS_ID") == ["cuda:0"]


def test_a_gpu_that_is_cut_up_tells_only_of_a_part_that_is_named(nvml: _Nvml) -> None:
    nvml.cut = {0}
    nvml.mig = {"MIG-1"}
    assert _seen() == []
    assert _seen(CUDA_VISIBLE_DEVICES="MIG-2") == []
    assert _seen(CUDA_VISIBLE_DEVICES="MIG-1") == ["cuda:0"]
    assert _cuda(CUDA_VISIBLE_DEVICES="MIG-1").kind("cuda:0") == "NVIDIA H200 MIG 1g.18gb"


def test_without_a_driver_memory_cannot_be_read(nvml: _Nvml) -> None:
    nvml.broken = True
    with pytest.raises(Unsupported, match="memory of GPUs cannot be read without"):
        _cuda()
