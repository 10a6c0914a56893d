"""ONNX Runtime on a real GPU. Each of these has a twin in `test_onnx_device.py` or `test_onnx_on_device.py` without one."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from server.backends.base import LoadTask
from server.backends.onnx_backend import OnnxBackend, PipelinedOnnx
from server.backends.onnx_cudart import find_library
from server.backends.onnx_device import SLOTS
from server.backends.onnx_session import open_backend
from server.core.errors import LoadFailed, OutOfDeviceMemory
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from tests.backends.conftest import Save
from tests.backends.test_onnx_session import texts

pytestmark = pytest.mark.gpu

FLOAT, INT64, STRING, BFLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BFLOAT16
BUCKETS = (1, 2, 4, 8)


class Opener:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened: list[OnnxBackend] = []

    def __call__(self, *providers: str, onnx: dict[str, Any] | None = None, **given: Any) -> OnnxBackend:
        named = {"onnx": {"providers": providers, **(onnx or {})}, "batching": {"buckets": BUCKETS}, "max_batch": 8, **given}
        if not named["max_batch"]:
            named.pop("batching")
        task = LoadTask(VersionKey("m", 1), self._folder, ModelSettings.model_validate(named))
        backend = open_backend(task)
        self.opened.append(backend)
        return backend

    def pipelined(self, **given: Any) -> PipelinedOnnx:
        backend = self("cuda", **given)
        assert isinstance(backend, PipelinedOnnx)
        return backend


@pytest.fixture
def opener(folder: Path) -> Iterator[Opener]:
    opener = Opener(folder)
    yield opener
    for backend in opener.opened:
        backend.close()


def mlp(save: Save, width: int = 64) -> None:
    generator = np.random.default_rng(1)
    weights = {
        "w0": generator.standard_normal((16, width)).astype(np.float32) / 4,
        "w1": generator.standard_normal((width, 4)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"]),
    ]
    save(nodes, [("x", FLOAT, ["N", 16])], [("y", FLOAT, ["N", 4])], weights)


def conv(save: Save) -> None:
    weights = {"w": np.random.default_rng(2).standard_normal((8, 3, 3, 3)).astype(np.float32) / 5}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    save(nodes, [("x", FLOAT, ["N", 3, 32, 32])], [("y", FLOAT, ["N", 8])], weights)


def embedding(save: Save) -> None:
    table = {"t": np.random.default_rng(3).standard_normal((10, 6)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["t", "i"], ["g"]), helper.make_node("ReduceMax", ["g"], ["y"], keepdims=0)]
    nodes[1].input.append("axes")
    save(nodes, [("i", INT64, ["N", "T"])], [("y", FLOAT, ["N", 6])], {**table, "axes": np.array([1], dtype=np.int64)})


def inputs_of(backend: OnnxBackend, rows: int) -> dict[str, Array]:
    generator = np.random.default_rng(rows)
    made: dict[str, Array] = {}
    for spec in backend.signature.inputs:
        shape = (rows, *(5 if dim == -1 else dim for dim in spec.shape))
        if spec.datatype == "INT64":
            made[spec.name] = generator.integers(0, 10, shape)
        else:
            made[spec.name] = generator.standard_normal(shape).astype(np.float32)
    return made


def check_alike(answer: Any, expected: Any) -> None:
    np.testing.assert_allclose(answer, expected, rtol=1e-2, atol=5e-3)  # TF32 has 10 bits of mantissa


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("make", [mlp, conv, embedding])
def test_answers_are_those_of_the_cpu(save: Save, opener: Opener, make: Any, graphs: bool) -> None:
    make(save)
    cpu, gpu = opener("cpu"), opener.pipelined(onnx={"cuda_graphs": graphs})
    note = "no CUDA graphs: input 'i' has free dimensions" if make is embedding else "CUDA graphs for batches of 1, 2, 4, 8"
    assert gpu.notes() == ((note,) if graphs else ())
    for rows in (*BUCKETS, 3, 1, 8):
        inputs = inputs_of(cpu, rows)
        check_alike(gpu.run(inputs)["y"], cpu.run(inputs)["y"])


def test_graphs_answer_what_executions_without_them_answer(save: Save, opener: Opener) -> None:
    mlp(save)
    plain, graphs = opener.pipelined(), opener.pipelined(onnx={"cuda_graphs": True})
    for rows in BUCKETS:
        pendings = [(graphs.begin(inputs), inputs) for inputs in (inputs_of(plain, rows) for _ in range(SLOTS))]
        for pending, inputs in pendings:
            pending.wait()
            check_alike(pending.outputs()["y"], plain.run(inputs)["y"])


def test_batches_overlap_and_keep_their_answers(save: Save, opener: Opener) -> None:
    mlp(save)
    backend, cpu = opener.pipelined(onnx={"cuda_graphs": True}), opener("cpu")
    answers = []
    for number in range(200):
        given = inputs_of(cpu, 1 + number % 8)
        lent = backend.arrays({name: (array.shape, array.dtype) for name, array in given.items()})
        for name, array in given.items():
            lent[name][:] = array
        answers.append((backend.begin(lent), given))
        if len(answers) == SLOTS:
            for pending, inputs in answers:
                check_alike(pending.outputs()["y"], cpu.run(inputs)["y"])
            answers.clear()


def test_bfloat16(save: Save, opener: Opener) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=BFLOAT16),
    ]
    save(nodes, [("x", BFLOAT16, ["N", 2])], [("y", BFLOAT16, ["N", 2])])
    pattern = np.array([[0x3F80, 0x4000]], dtype=np.uint16)
    assert opener.pipelined().run({"x": pattern})["y"].tolist() == [[0x4000, 0x4080]]


def test_strings(save: Save, opener: Opener) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", STRING, ["N"])], [("y", STRING, ["N"])])
    backend = opener("cuda", "cpu")
    assert not hasattr(backend, "begin")
    assert backend.run({"x": texts(b"a", b"b")})["y"].tolist() == [b"a", b"b"]


def test_control_flow_is_not_captured(save: Save, opener: Opener) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["x"], ["out"])], name, [], [helper.make_tensor_value_info("out", FLOAT, ["N", 2])]
        )
        for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    save(nodes, [("x", FLOAT, ["N", 2])], [("y", FLOAT, ["N", 2])], {"zero": np.array(0, dtype=np.float32)})
    backend = opener("cuda", "cpu", onnx={"cuda_graphs": True})
    assert backend.notes()[0].startswith("no CUDA graphs: ")
    assert backend.run({"x": -np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]


def test_too_little_memory_for_a_batch_leaves_the_next_alone(save: Save, opener: Opener) -> None:
    """64 MiB of arena: a row of 16 MiB fits, eight of them and what they are multiplied to do not."""
    nodes = [helper.make_node("MatMul", ["x", "t"], ["h"]), helper.make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=0)]
    weights = {"t": np.ones((1, 2048), np.float32), "axes": np.array([1, 2], dtype=np.int64)}
    save(nodes, [("x", FLOAT, ["N", 2048, 1])], [("y", FLOAT, ["N"])], weights)
    backend = opener("cuda", onnx={"gpu_memory_limit_bytes": 64 * 2**20})
    with pytest.raises(OutOfDeviceMemory):
        backend.run({"x": np.ones((8, 2048, 1), np.float32)})
    assert backend.run({"x": np.ones((1, 2048, 1), np.float32)})["y"].tolist() == [2048.0 * 2048.0]


def test_weights_that_do_not_fit_fail_the_load(save: Save, opener: Opener) -> None:
    mlp(save, width=2**18)
    with pytest.raises(LoadFailed, match=r"model.onnx: .*(memory|allocat)"):
        opener("cuda", onnx={"gpu_memory_limit_bytes": 2**20})


def test_unloading_gives_memory_back(save: Save, folder: Path) -> None:
    """100 cycles, checked against the driver: what the first ones leave is all there is."""
    mlp(save, width=2**16)
    library = find_library()
    assert library is not None
    used = []
    for _ in range(100):
        opener = Opener(folder)
        backend = opener.pipelined(onnx={"cuda_graphs": True})
        backend.run(inputs_of(backend, 8))
        backend.close()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
        used.append(total.value - free.value)
    settled = used[10:]
    assert max(settled) - settled[0] < 16 * 2**20
