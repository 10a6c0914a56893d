import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from server.backends import onnx_session
from server.backends.base import LoadTask
from server.backends.onnx_backend import OnnxBackend
from server.backends.onnx_session import open_backend
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from tests.backends.onnx_devices import Device

Tensor = tuple[str, int, Sequence[int | str | None] | None]
Save = Callable[..., Path]
Open = Callable[..., OnnxBackend]


def model(nodes: Sequence[Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], weights: Mapping[str, Array]) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "1"
    folder.mkdir()
    return folder


@pytest.fixture
def save(folder: Path) -> Save:
    """Write a graph as the version's model.onnx."""

    def save(
        nodes: Sequence[Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], weights: Mapping[str, Array] | None = None
    ) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(model(nodes, inputs, outputs, weights or {}).SerializeToString())
        return path

    return save


@pytest.fixture
def opened(folder: Path) -> Open:
    """Open the version with settings given as keywords."""

    def opened(**settings: object) -> OnnxBackend:
        return open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings.model_validate(settings)))

    return opened


@pytest.fixture
def linear(save: Save) -> Path:
    """y = x @ w, three inputs to two outputs."""
    weights = {"w": np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)}
    return save(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [("y", onnx.TensorProto.FLOAT, ["N", 2])],
        weights,
    )


@pytest.fixture
def device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device(folder)
    monkeypatch.setattr(onnx_session, "open_session", device.open_session)
    yield device
    for backend in device.opened:
        backend.close()
    device.opened.clear()
    gc.collect()
    assert device.cudart.nothing_left()
