"""Seeded models for benchmarks: weights are random but the same everywhere; nothing is downloaded."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TRIVIAL = (16, 64, 64, 1)
"""5.5 us for one row and 11 us for 64 (ONNX Runtime alone, one thread, pinned, 2026-11-21): all cost is the server's."""
FIXED_COST = (256, 1024, 1024, 1024, 10)
"""9 MB of weights are read per call, whatever the rows: 0.37 ms for one row, 1.75 ms for 64 (same measurement)."""


def write_mlp(path: Path, widths: tuple[int, ...], seed: int) -> None:
    """Write a ReLU network `IN [N, widths[0]] -> OUT [N, widths[-1]]` of FP32."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "IN"
    last = len(widths) - 2
    for layer, (wide, narrow) in enumerate(pairwise(widths)):
        matrix = (rng.standard_normal((wide, narrow)) / np.sqrt(wide)).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"W{layer}"),
            numpy_helper.from_array(np.zeros(narrow, np.float32), f"B{layer}"),
        ]
        product = "OUT" if layer == last else f"Z{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"W{layer}", f"B{layer}"], [product]))
        if layer != last:
            value = f"A{layer}"
            nodes.append(helper.make_node("Relu", [product], [value]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("IN", TensorProto.FLOAT, ["N", widths[0]])],
        [helper.make_tensor_value_info("OUT", TensorProto.FLOAT, ["N", widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def write_identity(path: Path, width: int) -> None:
    """Write `IN [N, width] -> OUT [N, width]` of FP32: what comes out is what went in."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["IN"], ["OUT"])],
        "identity",
        [helper.make_tensor_value_info("IN", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("OUT", TensorProto.FLOAT, ["N", width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
