"""Small models for end-to-end tests, written as a repository: ONNX graphs whose answers are known, and fakes that take time."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.onnx_types import ONNX_TYPES

QUICK = "[warmup]\nruns = 1\n"
Shape = Sequence[int | str]
LOOKUP_ROWS = 10


def graph(
    nodes: list[Any], inputs: dict[str, tuple[str, Shape]], outputs: dict[str, tuple[str, Shape]], *weights: Any
) -> bytes:
    def infos(tensors: dict[str, tuple[str, Shape]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, ONNX_TYPES[kind], shape) for name, (kind, shape) in tensors.items()]

    made = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), list(weights))
    data: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    return data


def put(repository: Path, name: str, version: int, files: dict[str, bytes], settings: str | None = QUICK) -> Path:
    """Add a version in one step, as a careful publisher would: nobody ever sees half of it."""
    model = repository / name
    model.mkdir(exist_ok=True)
    if settings is not None:
        (model / "model.toml").write_text(settings)
    incoming = repository.parent / f"{repository.name}-incoming-{name}-{version}"
    incoming.mkdir()
    for file, data in files.items():
        (incoming / file).write_bytes(data)
    return incoming.replace(model / str(version))


def put_loop(repository: Path, name: str) -> None:
    """A model that multiplies `x` by itself `n` times: as long within one call of native code as a caller asks for."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("MatMul", ["v", "v"], ["squared"]),
            helper.make_node("Tanh", ["squared"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Squeeze", ["n"], ["times"]), helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)]
    always = numpy_helper.from_array(np.array(True), "yes")
    inputs: dict[str, tuple[str, Shape]] = {"x": ("FP32", [8, 8]), "n": ("INT64", [1])}
    put(repository, name, 1, {"model.onnx": graph(nodes, inputs, {"y": ("FP32", [8, 8])}, always)})


def remove(repository: Path, name: str) -> None:
    """Take a model away in one step."""
    away = repository.parent / f"{repository.name}-removed-{name}"
    shutil.rmtree((repository / name).replace(away))


def put_identity(repository: Path, datatype: str) -> str:
    name = f"identity_{datatype.lower()}"
    tensors: tuple[str, Shape] = (datatype, ["N", "A"])
    node = helper.make_node("Identity", ["IN"], ["OUT"])
    put(repository, name, 1, {"model.onnx": graph([node], {"IN": tensors}, {"OUT": tensors})}, "max_batch = 4\n" + QUICK)
    return name


def put_simple(repository: Path, name: str = "simple", version: int = 1) -> None:
    """INPUT0 and INPUT1 to their sum and difference, as in Triton's `simple`."""
    tensor: tuple[str, Shape] = ("INT32", ["N", 16])
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    data = graph(nodes, {"INPUT0": tensor, "INPUT1": tensor}, {"OUTPUT0": tensor, "OUTPUT1": tensor})
    put(repository, name, version, {"model.onnx": data}, "max_batch = 8\n" + QUICK)


def scaling(factor: float) -> bytes:
    """y = factor * x, and the factor itself once per row: an answer that says which version it comes from."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["y"]),
        helper.make_node("Mul", ["x", "zero"], ["none"]),
        helper.make_node("Add", ["none", "factor"], ["made_by"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([value], dtype=np.float32), name) for name, value in (("factor", factor), ("zero", 0))
    ]
    one: tuple[str, Shape] = ("FP32", ["N", 1])
    return graph(nodes, {"x": one}, {"y": one, "made_by": one}, *weights)


def put_scaling(repository: Path, name: str, version: int, settings: str | None = QUICK) -> None:
    put(repository, name, version, {"model.onnx": scaling(float(version))}, settings)


def put_others(repository: Path) -> None:
    scalar: tuple[str, Shape] = ("FP32", [])
    add = helper.make_node("Add", ["a", "b"], ["sum"])
    put(repository, "scalars", 1, {"model.onnx": graph([add], {"a": scalar, "b": scalar}, {"sum": scalar})}, "max_batch = 0\n")
    turn = helper.make_node("Transpose", ["x"], ["y"])
    fixed = graph([turn], {"x": ("FP32", [3, 4])}, {"y": ("FP32", [4, 3])})
    put(repository, "fixed", 1, {"model.onnx": fixed}, "max_batch = 0\n" + QUICK)
    free: tuple[str, Shape] = ("FP32", ["N", "A", "B"])
    same = helper.make_node("Identity", ["x"], ["y"])
    put(repository, "free", 1, {"model.onnx": graph([same], {"x": free}, {"y": free})}, "max_batch = 8\n" + QUICK)
    table = np.arange(LOOKUP_ROWS, dtype=np.float32) * 10
    gather = helper.make_node("Gather", ["table", "index"], ["found"])
    data = graph(
        [gather], {"index": ("INT64", ["N", 1])}, {"found": ("FP32", ["N", 1])}, numpy_helper.from_array(table, "table")
    )
    put(repository, "lookup", 1, {"model.onnx": data}, "max_batch = 16\n" + QUICK)
    keep = [
        helper.make_node("Greater", ["x", "zero"], ["kept"]),
        helper.make_node("Squeeze", ["kept", "axis"], ["mask"]),
        helper.make_node("Compress", ["x", "mask"], ["y"], axis=0),
    ]
    weights = [
        numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"),
        numpy_helper.from_array(np.ones(1, dtype=np.int64), "axis"),
    ]
    one: tuple[str, Shape] = ("FP32", ["N", 1])
    put(repository, "positives", 1, {"model.onnx": graph(keep, {"x": one}, {"y": one}, *weights)}, "max_batch = 8\n" + QUICK)


FAKE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
    "outputs": [{"name": "echo_x", "datatype": "FP32", "shape": [4]}],
}


def put_fake(
    repository: Path, name: str, t0_us: float, *, max_batch: int = 1, queue: str = "", extra: str = "", version: int = 1
) -> None:
    """A model that takes `t0_us` per batch and repeats its rows."""
    settings = f"max_batch = {max_batch}\n{extra}{QUICK}[fake]\nt0_us = {t0_us}\nrow_us = 0.0\n[queue]\n{queue}\n"
    put(repository, name, version, {"fake.json": json.dumps(FAKE).encode()}, settings)
