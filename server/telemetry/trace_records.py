"""Traces as Triton writes them: objects of one JSON array. **Pure.**

Floor 2. Instants are monotonic nanoseconds, as Triton's are. What Triton calls the output phase lasts here until the answer is
ready to be sent. Source: triton-inference-server/server, docs/user_guide/trace.md, 2026-08.
"""

import json
from typing import Any

import numpy as np

from server.core.tensors import NUMPY_DTYPES, split_bytes
from server.telemetry.trace import Trace, TracedTensor


def json_of(trace: Trace) -> str:
    """The objects of one trace, with commas between them."""
    return ",".join(json.dumps(record, separators=(",", ":")) for record in records(trace))


def records(trace: Trace) -> list[dict[str, Any]]:
    """Who was asked; when what happened, as far as it did; and the tensors that were kept."""
    head: dict[str, Any] = {"id": trace.number, "model_name": trace.model, "model_version": trace.version}
    if trace.request_id:
        head["request_id"] = trace.request_id
    found = [head]
    if trace.timestamps:
        stamps = [{"name": name, "ns": ns} for name, ns in _instants(trace) if ns]
        found.append({"id": trace.number, "timestamps": stamps})
    for tensor in trace.tensors:
        described = {
            "name": tensor.name,
            "data": _text(tensor),
            "shape": ",".join(map(str, tensor.shape)),
            "dtype": tensor.datatype,
        }
        found.append({"id": trace.number, "activity": tensor.activity, "tensor": described})
    return found


def _instants(trace: Trace) -> list[tuple[str, int]]:
    return [
        ("REQUEST_START", trace.arrival_ns),
        ("QUEUE_START", trace.arrival_ns if trace.admitted else 0),
        ("COMPUTE_START", trace.taken_ns),
        ("COMPUTE_INPUT_END", trace.started_ns),
        ("COMPUTE_OUTPUT_START", trace.ran_ns),
        ("COMPUTE_END", trace.ended_ns if trace.ran_ns else 0),
        ("REQUEST_END", trace.ended_ns),
    ]


def _text(tensor: TracedTensor) -> str:
    """Elements with commas between them; BYTES in quotation marks."""
    data = tensor.data
    if tensor.datatype == "BYTES":
        elements = split_bytes(data, len(data)) if isinstance(data, bytes) else data.ravel().tolist()
        texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in elements]
        return ",".join('"' + text.replace('"', '""') + '"' for text in texts)
    values = np.frombuffer(data, NUMPY_DTYPES[tensor.datatype]) if isinstance(data, bytes) else data.ravel()
    if tensor.datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if tensor.datatype == "BOOL":
        values = values.astype(np.uint8)
    return ",".join(map(str, values.tolist()))
