"""What the roof tells of devices: whoever knows is asked, and nobody where there is nobody."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from server import device_memory
from server.backends.fake_accelerator import accelerator
from server.core.errors import Unsupported
from server.core.versions import VersionKey
from server.device_memory import Machine
from server.lifecycle.estimate import Estimate
from server.lifecycle.ledger import Ledger

DEVICES = "server.telemetry.device_metrics"


def stand_in(monkeypatch: pytest.MonkeyPatch, fault: Exception | None = None) -> list[dict[str, str]]:
    """A driver's library with one GPU. Returns the environments it was opened with."""
    opened: list[dict[str, str]] = []

    def open_devices(environment: dict[str, str]) -> SimpleNamespace:
        opened.append(environment)
        if fault is not None:
            raise fault
        return SimpleNamespace(
            memory=lambda device: (5, 10) if device == "cuda:0" else None,
            kind=lambda device: "NVIDIA H200" if device == "cuda:0" else None,
            driver=lambda: "600.1",
        )

    module = ModuleType(DEVICES)
    module.CudaDevices = open_devices  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, DEVICES, module)
    return opened


def test_gpus_are_asked_of_the_drivers_library_which_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = stand_in(monkeypatch)
    machine = Machine({"CUDA_VISIBLE_DEVICES": "0"})
    assert (machine.memory("cpu"), opened) == (None, []), "what serves on CPUs needs no driver"
    assert (machine.memory("cuda:0"), machine.memory("cuda:1")) == ((5, 10), None)
    assert (machine.kind("cuda:0"), machine.kind("cuda:1")) == ("NVIDIA H200", "CUDA device")
    assert machine.libraries("torch", "cuda:0")["driver"] == "600.1"
    assert opened == [{"CUDA_VISIBLE_DEVICES": "0"}]


@pytest.mark.parametrize("fault", [Unsupported("no driver"), ImportError("no pynvml")])
def test_without_the_library_nothing_is_known_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    opened = stand_in(monkeypatch, fault)
    machine = Machine({})
    assert [machine.memory("cuda:0") for _ in range(3)] == [None] * 3
    assert machine.kind("cuda:0") == "CUDA device"
    assert "driver" not in machine.libraries("torch", "cuda:0")
    assert len(opened) == len([record for record in caplog.records if "without a look at the memory" in record.message]) == 1


def test_a_fake_device_tells_once_it_is_there() -> None:
    machine = Machine({})
    assert machine.memory("fake:97") is None
    accelerator(97, 1000).load(300)
    assert machine.memory("fake:97") == (300, 1000)
    assert machine.kind("fake:97") == "fake accelerator"


@pytest.mark.parametrize("text", ["processor : 0\nmodel name\t: Some CPU\nmodel name : Other\n", "", None])
def test_a_cpu_has_a_name_and_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(device_memory, "_CPU_INFO", path)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert Machine({}).kind("cpu") == f"{'Some CPU' if text else 'arm64'} x{len(os.sched_getaffinity(0))}"


def test_what_executes_is_told_by_name_and_version() -> None:
    libraries = Machine({}).libraries("onnx", "cpu")
    assert libraries["onnxruntime"] == importlib.import_module("onnxruntime").__version__
    assert {"python", "podium"} < libraries.keys()
    assert libraries.keys().isdisjoint({"torch", "onnxruntime-gpu", "driver"})
    assert Machine({}).libraries("fake", "cpu").keys() == {"python", "podium"}


@pytest.mark.gpu
def test_the_ledger_of_a_gpu_follows_what_is_taken_there() -> None:
    """Its twins without a GPU are in tests/lifecycle/test_ledger.py and tests/telemetry/test_device_metrics.py."""
    torch = importlib.import_module("torch")
    machine, nbytes = Machine(), 2**29
    torch.zeros(1, device="cuda:0")  # this process's context is there, and no part of what follows
    torch.cuda.synchronize()
    reading = machine.memory("cuda:0")
    assert reading is not None
    # the driver keeps a part for itself, which CUDA leaves out of its own number
    assert reading[1] == pytest.approx(torch.cuda.mem_get_info(0)[1], rel=0.05)
    assert machine.kind("cuda:0") == torch.cuda.get_device_name(0)
    ledger = Ledger(machine.memory, 0.95)
    reservation = ledger.reserve(VersionKey("m", 1), "cuda:0", Estimate(nbytes, "a test"))
    assert reservation is not None
    held = [torch.empty(nbytes, dtype=torch.uint8, device="cuda:0")]
    torch.cuda.synchronize()
    assert reservation.measure() == nbytes
    reservation.check()

    def close() -> None:
        held.clear()
        torch.cuda.empty_cache()

    assert reservation.release(close) == 0
    assert ledger.reading.holdings == ()
