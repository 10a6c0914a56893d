"""Traces in Triton's words."""

import json
from typing import Any

import numpy as np
import pytest

from server.core.tensors import join_bytes
from server.telemetry.trace import BACKEND_OUTPUT, QUEUE_INPUT, TracedTensor
from server.telemetry.trace_records import json_of, records
from tests.telemetry.traces import MS, trace


def names(found: dict[str, Any]) -> dict[str, int]:
    return {stamp["name"]: stamp["ns"] // MS for stamp in found["timestamps"]}


def test_an_executed_request_has_every_timestamp_in_order() -> None:
    head, stamps = records(trace(3))
    assert head == {"id": 3, "model_name": "m", "model_version": 7, "request_id": "a"}
    assert stamps["id"] == 3
    assert list(names(stamps).items()) == [
        ("REQUEST_START", 10),
        ("QUEUE_START", 10),
        ("COMPUTE_START", 11),
        ("COMPUTE_INPUT_END", 12),
        ("COMPUTE_OUTPUT_START", 15),
        ("COMPUTE_END", 16),
        ("REQUEST_END", 16),
    ]


def test_what_never_happened_is_missing() -> None:
    refused = trace(request_id="", admitted=False, taken_ns=0, started_ns=0, ran_ns=0)
    head, stamps = records(refused)
    assert "request_id" not in head
    assert list(names(stamps)) == ["REQUEST_START", "REQUEST_END"]


def test_tensors_alone() -> None:
    tensors = (TracedTensor(QUEUE_INPUT, "x", "INT32", (2, 1), np.array([1, 2], np.int32).tobytes()),)
    _, found = records(trace(timestamps=False, tensors=tensors))
    assert found == {
        "id": 1,
        "activity": "TENSOR_QUEUE_INPUT",
        "tensor": {"name": "x", "data": "1,2", "shape": "2,1", "dtype": "INT32"},
    }


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("FP32", np.array([[0.5, -2]], np.float32), "0.5,-2.0"),
        ("FP16", np.array([1.5], np.float16).tobytes(), "1.5"),
        ("BF16", np.array([0x3FC0], np.uint16), "1.5"),
        ("BOOL", b"\x01\x00", "1,0"),
        ("BYTES", join_bytes(np.array([b"a", b'say "b"', b"\xff"], dtype=object)), '"a","say ""b""","\ufffd"'),
        ("BYTES", np.array([b"a", "ż"], dtype=object), '"a","ż"'),
        ("UINT64", np.array([], np.uint64), ""),
    ],
)
def test_elements_are_readable(datatype: str, data: Any, text: str) -> None:
    (_, found) = records(trace(timestamps=False, tensors=(TracedTensor(BACKEND_OUTPUT, "y", datatype, (1,), data),)))
    assert found["tensor"]["data"] == text


def test_the_text_is_json_whatever_a_caller_sent() -> None:
    odd = trace(request_id='"},]\n\u2028', model="ż")
    assert json.loads(f"[{json_of(odd)}]") == records(odd)
