"""Code and text of every refusal: Triton's, because clients match on them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.serving import Serving, infer_message, refusal

NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each"
    " input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting"
    " max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
NO_NUMBER = (
    "failed to get model version from specified version string 'x' (details: stol), version should be an integral value > 0"
)
ROW = np.zeros(16, dtype=np.int32).tobytes()
A: dict[str, Any] = {"INPUT0": ("INT32", [1, 16], ROW)}
B: dict[str, Any] = {"INPUT1": ("INT32", [1, 16], ROW)}


@pytest.fixture
def stub(serving: Serving) -> Iterator[GRPCInferenceServiceStub]:
    with serving.stub() as stub:
        yield stub


def simple(inputs: dict[str, Any], **fields: Any) -> pb.ModelInferRequest:
    return infer_message("simple", inputs, id="7", **fields)


def wanting(*outputs: str) -> pb.ModelInferRequest:
    message = simple(A | B)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def twice() -> pb.ModelInferRequest:
    message = simple(A | B)
    message.inputs[1].name = "INPUT0"
    return message


def strings(raw: bytes) -> pb.ModelInferRequest:
    return infer_message("identity_bytes", {"IN": ("BYTES", [1, 2], raw)}, id="7")


def typed(field: str, values: list[Any], *, raw: bool = False) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="identity_int32", id="7")
    tensor = message.inputs.add(name="IN", datatype="INT32", shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    if raw:
        message.raw_input_contents.append(bytes(8))
    return message


def with_parameter(name: str, **value: Any) -> pb.ModelInferRequest:
    message = simple(A | B)
    message.parameters[name].CopyFrom(pb.InferParameter(**value))
    return message


def in_shared_memory() -> pb.ModelInferRequest:
    message = simple(A | B)
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    del message.raw_input_contents[0]
    return message


def classified() -> pb.ModelInferRequest:
    message = infer_message("identity_bytes", {"IN": ("BYTES", [1, 1], b"\1\0\0\0a")})
    message.outputs.add(name="OUT").parameters["classification"].int64_param = 3
    return message


P = "[request id: 7] "
CASES: dict[str, tuple[pb.ModelInferRequest, str, str]] = {
    "unknown model": (infer_message("foo", {}), "NOT_FOUND", "Request for unknown model: 'foo' is not found"),
    "path as a model": (
        infer_message("../simple", {}),
        "NOT_FOUND",
        "Request for unknown model: '../simple' is not found",
    ),
    "unknown version": (
        simple(A | B, model_version="99"),
        "NOT_FOUND",
        "Request for unknown model: 'simple' version 99 is not found",
    ),
    "no number": (
        simple(A | B, model_version="x"),
        "INVALID_ARGUMENT",
        NO_NUMBER,
    ),
    "datatype": (
        simple({"INPUT0": ("FP32", [1, 16], ROW)} | B),
        "INVALID_ARGUMENT",
        P + "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    "shape": (
        simple({"INPUT0": ("INT32", [1, 17], ROW)} | B),
        "INVALID_ARGUMENT",
        P + "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,17]." + NOTE,
    ),
    "shape without batching": (
        infer_message("fixed", {"x": ("FP32", [4, 3], bytes(48))}),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] unexpected shape for input 'x' for model 'fixed'. Expected [3,4], got [4,3].",
    ),
    "missing input": (
        simple(A),
        "INVALID_ARGUMENT",
        P + "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but missing required input(s)"
        " ['INPUT1']. Please provide all required input(s).",
    ),
    "unexpected input": (
        simple(A | {"X": ("INT32", [1, 16], ROW)}),
        "INVALID_ARGUMENT",
        "unexpected inference input 'X' for model 'simple'",
    ),
    "unexpected output": (
        wanting("X"),
        "INVALID_ARGUMENT",
        "unexpected inference output 'X' for model 'simple'",
    ),
    "duplicate input": (twice(), "INVALID_ARGUMENT", P + "input 'INPUT0' already exists in request"),
    "duplicate output": (
        wanting("OUTPUT0", "OUTPUT0"),
        "INVALID_ARGUMENT",
        P + "output 'OUTPUT0' already exists in request",
    ),
    "oversized batch": (
        simple({name: ("INT32", [9, 16], ROW * 9) for name in ("INPUT0", "INPUT1")}),
        "INVALID_ARGUMENT",
        P + "inference request batch-size must be <= 8 for 'simple'",
    ),
    "no rows": (
        simple({name: ("INT32", [0, 16], b"") for name in ("INPUT0", "INPUT1")}),
        "INVALID_ARGUMENT",
        P + "inference request batch-size must be >= 1 for 'simple'",
    ),
    "batches disagree": (
        simple(A | {"INPUT1": ("INT32", [2, 16], ROW * 2)}),
        "INVALID_ARGUMENT",
        P + "input 'INPUT1' batch size does not match other inputs for 'simple'",
    ),
    "byte size": (
        simple(A | {"INPUT1": ("INT32", [1, 16], ROW * 2)}),
        "INVALID_ARGUMENT",
        P + "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 64, got 128",
    ),
    "too few strings": (
        strings(b"\x01\0\0\0a"),
        "INVALID_ARGUMENT",
        P + "expected 2 string elements for inference input 'IN' for model 'identity_bytes', got 1",
    ),
    "too many strings": (
        strings(b"\x01\0\0\0a" * 3),
        "INVALID_ARGUMENT",
        P + "unexpected number of string elements 3 for inference input 'IN' for model 'identity_bytes', expecting 2",
    ),
    "raw and typed": (
        typed("int_contents", [1, 2], raw=True),
        "INVALID_ARGUMENT",
        "contents field must not be specified when using raw_input_contents for 'IN' for model 'identity_int32'",
    ),
    "wrong field": (
        typed("fp32_contents", [1.0, 2.0]),
        "INVALID_ARGUMENT",
        "unexpected explicit tensor data for input tensor 'IN' for model 'identity_int32' of type 'FP32', expected datatype"
        " 'INT32'",
    ),
    "no data": (
        pb.ModelInferRequest(
            model_name="identity_int32",
            inputs=[pb.ModelInferRequest.InferInputTensor(name="IN", datatype="INT32", shape=[1, 2])],
        ),
        "INVALID_ARGUMENT",
        "unable to find data for input tensor 'IN' for model 'identity_int32' in request.",
    ),
    "shared memory": (in_shared_memory(), "NOT_FOUND", "Unable to find shared memory region: 'x'"),
    "classification": (
        classified(),
        "INVALID_ARGUMENT",
        "class result not available for output due to unsupported type 'BYTES'",
    ),
    "sequence": (
        with_parameter("sequence_id", int64_param=1),
        "UNIMPLEMENTED",
        "parameter 'sequence_id': sequence batching is not supported by this server",
    ),
    "reserved parameter": (
        with_parameter("triton_mine", bool_param=True),
        "INVALID_ARGUMENT",
        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with"
        " 'triton_' are allowed: triton_enable_empty_final_response",
    ),
    "timeout that is no number": (
        with_parameter("timeout", string_param="5"),
        "INVALID_ARGUMENT",
        "invalid value type for 'timeout' parameter, expected int64_param.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_code_and_text(stub: GRPCInferenceServiceStub, case: str) -> None:
    message, code, text = CASES[case]
    assert refusal(lambda: stub.ModelInfer(message)) == (code, text)


def test_bytes_that_are_no_text_are_the_callers_mistake(stub: GRPCInferenceServiceStub) -> None:
    raw = b"\x01\x00\x00\x00\x80"
    assert refusal(lambda: stub.ModelInfer(infer_message("identity_bytes", {"IN": ("BYTES", [1, 1], raw)}))) == (
        "INVALID_ARGUMENT",
        "input 'IN' holds bytes that are not UTF-8, as ONNX strings must be: invalid start byte",
    )


def test_a_failing_model_names_itself(stub: GRPCInferenceServiceStub) -> None:
    index = np.array([[1], [-99]], dtype=np.int64).tobytes()
    code, text = refusal(lambda: stub.ModelInfer(infer_message("lookup", {"index": ("INT64", [2, 1], index)})))
    assert code == "INTERNAL"
    assert "executing model 'lookup' failed" in text
    assert "/" not in text.replace("/1", "")  # no path of this machine
    # an answer of fewer rows than were asked for is nobody's answer
    x = np.array([[1], [-1]], dtype=np.float32).tobytes()
    code, text = refusal(lambda: stub.ModelInfer(infer_message("positives", {"x": ("FP32", [2, 1], x)})))
    assert (code, text) == ("INTERNAL", "output 'y' of model 'positives' has shape [1, 1] for 2 rows")


CALLS: dict[str, tuple[Callable[[GRPCInferenceServiceStub], Any], str, str]] = {
    "metadata": (
        lambda stub: stub.ModelMetadata(pb.ModelMetadataRequest(name="foo")),
        "NOT_FOUND",
        "Request for unknown model: 'foo' is not found",
    ),
    "config": (
        lambda stub: stub.ModelConfig(pb.ModelConfigRequest(name="simple", version="5")),
        "NOT_FOUND",
        "Request for unknown model: 'simple' version 5 is not found",
    ),
    "statistics": (
        lambda stub: stub.ModelStatistics(pb.ModelStatisticsRequest(name="foo")),
        "NOT_FOUND",
        "Request for unknown model: 'foo' is not found",
    ),
    "ready": (
        lambda stub: stub.ModelReady(pb.ModelReadyRequest(name="simple", version="x")),
        "INVALID_ARGUMENT",
        NO_NUMBER,
    ),
    "load while polling": (
        lambda stub: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="simple")),
        "UNAVAILABLE",
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "unload while polling": (
        lambda stub: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="simple")),
        "UNAVAILABLE",
        "explicit model load / unload is not allowed if polling is enabled",
    ),
    "load of a path": (
        lambda stub: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="../simple")),
        "INVALID_ARGUMENT",
        "invalid model name '../simple', model name must not contain path traversal characters",
    ),
    "load of nothing": (
        lambda stub: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest()),
        "INVALID_ARGUMENT",
        "Model name cannot be empty. Please enter a valid name to deploy.",
    ),
    "index of another repository": (
        lambda stub: stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="r")),
        "UNIMPLEMENTED",
        "'repository_name' specification is not supported",
    ),
    "load with files and no settings": (
        lambda stub: stub.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(
                model_name="simple",
                parameters={"file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"")},
            )
        ),
        "INVALID_ARGUMENT",
        "Load parameter 'config' must be specified for model file override",
    ),
    "load with files while polling": (
        lambda stub: stub.RepositoryModelLoad(
            pb.RepositoryModelLoadRequest(
                model_name="simple",
                parameters={
                    "config": pb.ModelRepositoryParameter(string_param="{}"),
                    "file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"x"),
                },
            )
        ),
        "UNAVAILABLE",
        "explicit model load / unload is not allowed if polling is enabled",
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_other_calls_refuse_with_code_and_text(stub: GRPCInferenceServiceStub, call: str) -> None:
    ask, code, text = CALLS[call]
    assert refusal(lambda: ask(stub)) == (code, text)
