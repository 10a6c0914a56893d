"""What a version gets of a device when it is loaded: captured graphs, TensorRT's profiles, or a reason why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from server.backends import onnx_session
from server.backends.onnx_device import SLOTS
from server.core.errors import LoadFailed, OutOfDeviceMemory
from server.core.settings import OnnxSettings
from tests.backends.conftest import Save
from tests.backends.onnx_devices import Device, Session, free_slots, graph_of, rows

FLOAT = TensorProto.FLOAT
WEIGHTS = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)


def test_every_batch_size_is_captured_in_every_slot(linear: Path, device: Device) -> None:
    backend = device(max_batch=4, onnx={"cuda_graphs": True})
    assert backend.notes() == ("CUDA graphs for batches of 1, 2, 4",)
    assert sorted(device.session.captured) == list(range(1, 1 + 3 * SLOTS))
    allocated = device.cudart.allocations
    device.session.runs.clear()
    for count in (4, 1, 2):
        pendings = [backend.begin({"x": rows(count, value)}) for value in range(SLOTS)]
        assert [pending.outputs()["y"][0, 0] for pending in pendings] == [0, 2, 4]
    assert sorted(run for run in device.session.runs if run) == list(range(1, 1 + 3 * SLOTS))
    # three rows were not captured: they execute, by themselves
    device.session.runs.clear()
    assert backend.run({"x": rows(3)})["y"].tolist() == [[2, 2]] * 3
    assert device.session.runs == [-1]
    assert not [array for array in device.cudart.device.values() if array.nbytes > 4 * 12]
    assert backend.memory_bytes() == linear.stat().st_size + SLOTS * (4 * 12 + 4 * 8)
    assert device.cudart.allocations - allocated <= 4 * SLOTS  # host memory for inputs and answers, none on the device


def test_a_model_without_batching_is_captured_once_for_each_slot(save: Save, device: Device) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, [4, 2])], [("y", FLOAT, [4, 2])])
    backend = device(onnx={"cuda_graphs": True})
    assert backend.notes() == ("a CUDA graph",)
    assert backend.run({"x": np.ones((4, 2), np.float32)})["y"].tolist() == [[1, 1]] * 4
    assert device.session.runs[-1] in range(1, 1 + SLOTS)


def test_what_would_move_a_captured_buffer_goes_without_slots(linear: Path, device: Device) -> None:
    backend = device(max_batch=2, onnx={"cuda_graphs": True})
    device.session.runs.clear()
    assert backend.run({"x": rows(5)})["y"].tolist() == [[2, 2]] * 5
    assert device.session.runs == [None]
    assert free_slots(backend) == SLOTS


def test_free_dimensions_are_not_captured(save: Save, device: Device) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", "T"])])
    backend = device(onnx={"cuda_graphs": True})
    assert backend.notes() == ("no CUDA graphs: input 'x' has free dimensions",)
    assert not device.session.captured
    assert backend.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]


def test_a_file_that_cannot_be_captured_is_opened_without_graphs(linear: Path, device: Device) -> None:
    device.refuses_graphs = "model.onnx: all compute graph nodes have not been partitioned to the CUDA EP"
    backend = device(max_batch=4, onnx={"cuda_graphs": True})
    assert backend.notes() == (f"no CUDA graphs: {device.refuses_graphs}",)
    assert "enable_cuda_graph" not in device.wanted[-1]["CUDAExecutionProvider"]
    assert backend.run({"x": rows(1)})["y"].tolist() == [[2, 2]]


def test_a_capture_that_fails_is_given_up(linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Session._before

    def breaks(self: Session, options: Any, places: Any) -> None:
        if (graph_of(options) or 0) > 0:
            raise RuntimeError("CUDA failure 901: operation failed due to a previous error during capture; not supported")
        real(self, options, places)

    monkeypatch.setattr(Session, "_before", breaks)
    monkeypatch.setattr("server.backends.onnx_backend.is_fatal", lambda said: False)
    backend = device(max_batch=4, onnx={"cuda_graphs": True})
    assert backend.notes()[0].startswith("no CUDA graphs: executing model 'm' failed: CUDA failure 901")
    assert backend.run({"x": rows(1)})["y"].tolist() == [[2, 2]]
    assert len(device.sessions) == 2


@pytest.mark.parametrize(("failures", "note"), [(1, "CUDA graphs for batches of 1, 2"), (9, "no CUDA graphs: ")])
def test_graphs_are_captured_with_what_executes(
    linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch, failures: int, note: str
) -> None:
    left = [failures]

    def refuses(self: Session, options: Any, places: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("indices element out of data bounds")

    monkeypatch.setattr(Session, "_before", refuses)
    backend = device(max_batch=2, onnx={"cuda_graphs": True})
    assert backend.notes()[0].startswith(note)
    assert len(device.sessions) == (1 if failures == 1 else 2)


def test_a_device_lost_before_capturing_fails_the_load(linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Session, options: Any, places: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(Session, "_before", breaks)
    with pytest.raises(LoadFailed, match="CUDA failure 700: an illegal memory access"):
        device(max_batch=2, onnx={"cuda_graphs": True})
    assert len(device.sessions) == 1


def test_a_device_lost_while_capturing_fails_the_load(linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Session, options: Any, places: Any) -> None:
        if (graph_of(options) or 0) > 0:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(Session, "_before", breaks)
    with pytest.raises(LoadFailed, match="CUDA failure 700: an illegal memory access"):
        device(max_batch=4, onnx={"cuda_graphs": True})
    assert len(device.sessions) == 1


def test_a_device_that_cannot_be_used_fails_the_load(linear: Path, device: Device) -> None:
    device.cudart.broken = True
    with pytest.raises(LoadFailed, match=r"^model.onnx: CUDA failure 700: an illegal memory access"):
        device(max_batch=4)
    device.cudart.broken = False
    device.cudart.limit_bytes = 0
    backend = device(max_batch=4)  # slots are filled when they are first used
    with pytest.raises(OutOfDeviceMemory):
        backend.run({"x": rows(1)})


def test_tensorrt_is_told_the_sizes(linear: Path, device: Device, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    onnx = {"providers": ["tensorrt", "cuda"], "tensorrt_cache": str(cache), "cuda_graphs": True}
    backend = device(onnx=onnx, max_batch=16)
    assert backend.notes() == (
        "a TensorRT profile for 1 to 16 rows",
        "no CUDA graphs: the provider tensorrt executes, not cuda",
    )
    told = device.wanted[-1]["TensorrtExecutionProvider"]
    assert (told["trt_profile_min_shapes"], told["trt_profile_max_shapes"]) == ("x:1x3", "x:16x3")
    engines = Path(told["trt_engine_cache_path"])
    assert engines.parent == cache
    assert engines.is_dir()
    backend.run({"x": rows(16)})
    # the same network with other weights is another engine
    linear.write_bytes(linear.read_bytes().replace(WEIGHTS.tobytes(), (2 * WEIGHTS).tobytes()))
    device(onnx=onnx, max_batch=16)
    assert Path(device.wanted[-1]["TensorrtExecutionProvider"]["trt_engine_cache_path"]) != engines


def test_tensorrt_without_known_sizes(save: Save, device: Device, tmp_path: Path) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", "T"])])
    onnx = {"providers": ["tensorrt"]}
    assert device(onnx=onnx).notes()[0] == "no TensorRT profile: engines are built when sizes are first seen"
    (tmp_path / "file").touch()
    with pytest.raises(LoadFailed, match="tensorrt_cache cannot be written to: Not a directory"):
        device(onnx={**onnx, "tensorrt_cache": str(tmp_path / "file")})


def test_a_file_that_only_tensorrt_opens(linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    real = device.open_session

    def only_there(folder: Path, onnx: OnnxSettings, wanted: Any) -> Any:
        if dict(wanted).keys() == {"CPUExecutionProvider"}:
            raise LoadFailed("model.onnx: no kernel")
        return real(folder, onnx, wanted)

    monkeypatch.setattr(onnx_session, "open_session", only_there)
    assert device(onnx={"providers": ["tensorrt"]}).notes()[0] == "no TensorRT profile: model.onnx: no kernel"
