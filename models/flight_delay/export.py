"""The trained network as one ONNX file that takes what a caller has, strings included.

torch cannot export strings. So torch exports the network from category codes on, and one `LabelEncoder` (ai.onnx.ml) per
category is put in front of it; a value that is not in the vocabulary becomes the code for unknown. What depends on the
machine that exported (stack traces, file names) is removed: equal networks give equal bytes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from models.exporting import onnx_model, remove_traces
from models.flight_delay.inputs import Inputs
from models.flight_delay.model import UNKNOWN, DelayModel, Fitted
from server.core.tensors import Array, TensorSpec

OUTPUTS = (TensorSpec("probability", "FP32", (1,)),)
_ML_DOMAIN, _ML_OPSET = "ai.onnx.ml", 2
_CODE_SUFFIX = "_code"
TORCH_DTYPES = {"BYTES": torch.int64, "INT32": torch.int32, "FP32": torch.float32}


def to_onnx(model: DelayModel, fitted: Fitted) -> bytes:
    """The whole graph: inputs as those of the variant, outputs as in `OUTPUTS`, the first dimension of each free."""
    graph_model = _network(model, fitted.inputs)
    remove_traces(graph_model, "flight_delay")
    _prepend_lookups(graph_model, fitted)
    onnx.checker.check_model(graph_model, full_check=True)
    return bytes(graph_model.SerializeToString(deterministic=True))


def predict(content: bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Answers of ONNX Runtime, on one thread of the CPU. Shapes: every input and output is `[rows, 1]`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in OUTPUTS]
    return dict(zip(names, session.run(names, {name: _as_text(array) for name, array in inputs.items()}), strict=True))


def _network(model: DelayModel, inputs: Inputs) -> Any:
    """The torch part. Two example rows: with one, the exporter would take the batch dimension for a constant."""
    model.eval()
    examples = tuple(torch.ones((2, 1), dtype=TORCH_DTYPES[spec.datatype]) for spec in inputs.specs)
    rows = torch.export.Dim("rows")
    names = [spec.name + _CODE_SUFFIX if spec.datatype == "BYTES" else spec.name for spec in inputs.specs]
    return onnx_model(
        model, examples, {"inputs": tuple({0: rows} for _ in inputs.specs)}, names, [spec.name for spec in OUTPUTS]
    )


def _prepend_lookups(graph_model: Any, fitted: Fitted) -> None:
    graph = graph_model.graph
    lookups = []
    for value in graph.input:
        name = value.name.removesuffix(_CODE_SUFFIX)
        if name == value.name:
            continue
        vocabulary = fitted.vocabularies[name]
        lookups.append(
            onnx.helper.make_node(
                "LabelEncoder",
                inputs=[name],
                outputs=[value.name],
                name=f"lookup_{name}",
                domain=_ML_DOMAIN,
                keys_strings=list(vocabulary),
                values_int64s=list(vocabulary.values()),
                default_int64=UNKNOWN,
            )
        )
        value.name = name
        value.type.tensor_type.elem_type = onnx.TensorProto.STRING
    nodes = [*lookups, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph_model.opset_import.append(onnx.helper.make_opsetid(_ML_DOMAIN, _ML_OPSET))


def _as_text(array: Array) -> Array:
    """ONNX Runtime takes strings, not bytes; bytes that are not UTF-8 are in no vocabulary and stay unknown."""
    if array.dtype != np.dtype(object):
        return array
    text = np.empty(array.shape, dtype=object)
    text[...] = [[value.decode(errors="replace") for value in row] for row in array]
    return text
