"""What the devices of this machine are called, and how much of their memory is in use: asked of whoever knows.

Roof: the driver's library is loaded by name when the first version goes to a GPU. Never imports CUDA or a library over it.
"""

import importlib
import logging
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from server.backends import fake_accelerator
from server.core.errors import Unsupported
from server.core.placement import CUDA, FAKE

_EXECUTES = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "torch": ("torch",), "fake": ()}
_CPU_INFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)


class Machine:
    """Devices by name: `cpu`, `cuda:N`, `fake:N`. Used by one thread at a time. Units: bytes."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._cuda: Any = None
        self._asked = False

    def memory(self, device: str) -> tuple[int, int] | None:
        """Bytes in use, by whomever, and all there are; None for a device that does not tell: the CPU, a GPU without NVIDIA's
        library, an accelerator on which no version has been."""
        name, _, number = device.partition(":")
        if name == FAKE:
            return fake_accelerator.memory(int(number))
        cuda = self._devices(name)
        told: tuple[int, int] | None = None if cuda is None else cuda.memory(device)
        return told

    def kind(self, device: str) -> str:
        """The maker's name of a GPU, or of the CPU with the number of them that this process may use."""
        name = device.partition(":")[0]
        if name == FAKE:
            return "fake accelerator"
        if name == CUDA:
            cuda = self._devices(name)
            return (None if cuda is None else cuda.kind(device)) or "CUDA device"
        return f"{_cpu_name()} x{len(os.sched_getaffinity(0))}"

    def libraries(self, backend: str, device: str) -> dict[str, str]:
        """This program, the interpreter, the backend's library and, for a GPU, the driver: those that are there."""
        found = {"python": platform.python_version()}
        for name in ("podium", *_EXECUTES[backend]):
            try:
                found[name] = distribution_version(name)
            except PackageNotFoundError:
                continue
        cuda = self._devices(device.partition(":")[0])
        driver = None if cuda is None else cuda.driver()
        return found if driver is None else found | {"driver": driver}

    def _devices(self, name: str) -> Any:
        """What knows CUDA's devices; None where nothing does, or the device is none of them."""
        if name != CUDA:
            return None
        if not self._asked:
            self._asked = True
            try:
                self._cuda = importlib.import_module("server.telemetry.device_metrics").CudaDevices(self._environment)
            except (ImportError, Unsupported) as error:
                _log.warning("versions on GPUs are loaded without a look at the memory there: %s", error)
        return self._cuda


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine() or "CPU"
