"""The rows of Triton's table of errors that test_errors.py does not have, for the server of test_error_table.py: two faults
at once, a full queue, shared memory, a version that is not there.

Source: triton-inference-server/core, src/infer_request.cc and src/model_repository_manager; triton-inference-server/server,
src/grpc and src/shared_memory_manager.cc, 2026-08. `differs` says where an answer is not Triton's, and why.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.serving import infer_message
from tests.server.test_errors import NO_NUMBER, NOTE, ROW, A, B, P, simple, typed, wanting, with_parameter

Stub = GRPCInferenceServiceStub
Call = Callable[[Stub], Any]
CODES = ("triton", "strict")
STRICT = {"Exceeds maximum queue size": "RESOURCE_EXHAUSTED", "Request timeout expired": "DEADLINE_EXCEEDED"}
"""Texts that have another code with `error_codes = "strict"`; all others have the same one."""

REGION = f"podium-table-{os.getpid()}"
REGION_BYTES = 128
X4 = {"x": ("FP32", [1, 4], bytes(16))}


class Row(NamedTuple):
    call: Call
    code: str
    text: str
    differs: str = ""


def infer(message: pb.ModelInferRequest) -> Call:
    return lambda stub: stub.ModelInfer(message, timeout=60)


def named(model: str, version: str = "") -> Call:
    return infer(infer_message(model, {}, model_version=version))


def loading(model: str, **parameters: pb.ModelRepositoryParameter) -> pb.RepositoryModelLoadRequest:
    return pb.RepositoryModelLoadRequest(model_name=model, parameters=parameters)


def load(model: str, **parameters: pb.ModelRepositoryParameter) -> Call:
    return lambda stub: stub.RepositoryModelLoad(loading(model, **parameters))


def register(name: str, key: str = "/" + REGION, offset: int = 0, byte_size: int = REGION_BYTES) -> Call:
    message = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
    return lambda stub: stub.SystemSharedMemoryRegister(message)


def shared(region: str | None, byte_size: int | None = 64, offset: int = 0) -> pb.ModelInferRequest:
    """INPUT0 in shared memory, INPUT1 sent."""
    message = simple(A | B)
    del message.raw_input_contents[0]
    put_place(message.inputs[0].parameters, region, byte_size, offset)
    return message


def put_place(parameters: Any, region: str | None, byte_size: int | None, offset: int = 0) -> None:
    if region is not None:
        parameters["shared_memory_region"].string_param = region
    if byte_size is not None:
        parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def small_output() -> pb.ModelInferRequest:
    message = wanting("OUTPUT0")
    put_place(message.outputs[0].parameters, REGION, 8)
    return message


def both_targets() -> pb.ModelInferRequest:
    message = small_output()
    message.outputs[0].parameters["classification"].int64_param = 1
    return message


def shared_and_typed() -> pb.ModelInferRequest:
    message = shared(REGION)
    message.inputs[0].contents.int_contents.append(1)
    return message


def of_unknown(message: pb.ModelInferRequest, model: str = "foo") -> pb.ModelInferRequest:
    """The same message for another model, nothing else about it changed."""
    changed = pb.ModelInferRequest()
    changed.CopyFrom(message)
    changed.model_name = model
    return changed


def lenient(*names: str) -> pb.ModelInferRequest:
    return infer_message("lenient", {name: ("FP32", [1, 1], bytes(4)) for name in names}, id="7")


def full_queue(stub: Stub) -> None:
    """Ten at once where one runs and one waits: those that are refused are refused alike."""
    calls = [stub.ModelInfer.future(infer_message("narrow", X4, id="7"), timeout=60) for _ in range(10)]
    errors: list[Any] = [error for call in calls if (error := call.exception()) is not None]
    assert len({(error.code(), error.details()) for error in errors}) == 1
    raise errors[0]


def too_late() -> pb.ModelInferRequest:
    message = infer_message("late", X4, id="7")
    message.parameters["timeout"].int64_param = 1
    return message


def text(value: str) -> pb.ModelRepositoryParameter:
    return pb.ModelRepositoryParameter(string_param=value)


def other(name: str) -> Any:
    return {name: ("INT32", [1, 16], ROW)}


NAMES = "name is judged before the mode: it is wrong in any"
WRONG = "failed to register shared memory region"
UNKNOWN = "Request for unknown model: 'foo' is not found"
GUARDED = "triton-grpc-protocol-"
ROWS: dict[str, Row] = {
    # which version
    "metadata of an unknown version": Row(
        lambda stub: stub.ModelMetadata(pb.ModelMetadataRequest(name="simple", version="99")),
        *("NOT_FOUND", "Request for unknown model: 'simple' version 99 is not found"),
    ),
    "not ready": Row(
        named("halves", "2"), "UNAVAILABLE", "Request for unknown model: 'halves' version 2 is not at ready state"
    ),
    "no versions": Row(named("broken"), "NOT_FOUND", "Request for unknown model: 'broken' has no available versions"),
    "negative version": Row(
        named("simple", "-1"),
        *("INVALID_ARGUMENT", "invalid model version specified '-1' , version should be an integral value > 0"),
    ),
    "version of more than 64 bits": Row(
        named("simple", "9" * 20),
        *("INVALID_ARGUMENT", NO_NUMBER.replace("'x'", f"'{'9' * 20}'")),
        differs="always says stol: Triton passes on what libstdc++ or libc++ calls it",
    ),
    # two faults: which one is told
    "unknown model before its data": Row(infer(of_unknown(shared("nowhere"))), "NOT_FOUND", UNKNOWN),
    "unknown model before its parameters": Row(infer(of_unknown(with_parameter("triton_x"))), "NOT_FOUND", UNKNOWN),
    "version before the data": Row(
        infer(pb.ModelInferRequest(model_name="simple", model_version="x", inputs=simple(A).inputs)),
        *("INVALID_ARGUMENT", NO_NUMBER),
    ),
    "decoupled before the data": Row(
        infer(of_unknown(typed("int_contents", [1, 2], raw=True), "repeat")),
        *("UNIMPLEMENTED", "ModelInfer RPC doesn't support models with decoupled transaction policy"),
    ),
    "output before inputs": Row(
        infer(pb.ModelInferRequest(model_name="simple", id="7", outputs=[{"name": "X"}])),  # type: ignore[list-item]
        *("INVALID_ARGUMENT", "unexpected inference output 'X' for model 'simple'"),
    ),
    "number of inputs before their names": Row(
        infer(simple(other("X"))),
        "INVALID_ARGUMENT",
        P + "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['X'], but missing required input(s)"
        " ['INPUT0','INPUT1']. Please provide all required input(s).",
    ),
    "names before batches": Row(
        infer(simple(A | {"X": ("INT32", [2, 16], ROW * 2)})),
        *("INVALID_ARGUMENT", "unexpected inference input 'X' for model 'simple'"),
    ),
    "batches before their size": Row(
        infer(simple({"INPUT0": ("INT32", [9, 16], b""), "INPUT1": ("INT32", [10, 16], b"")})),
        *("INVALID_ARGUMENT", P + "input 'INPUT1' batch size does not match other inputs for 'simple'"),
    ),
    "size of the batch before the datatype": Row(
        infer(simple({name: ("FP32", [9, 16], b"") for name in ("INPUT0", "INPUT1")})),
        *("INVALID_ARGUMENT", P + "inference request batch-size must be <= 8 for 'simple'"),
    ),
    "datatype before the shape": Row(
        infer(simple(A | {"INPUT1": ("FP32", [1, 17], b"")})),
        *("INVALID_ARGUMENT", P + "inference input 'INPUT1' data-type is 'FP32', but model 'simple' expects 'INT32'"),
    ),
    "shape before the bytes": Row(
        infer(simple(A | {"INPUT1": ("INT32", [1, 17], b"")})),
        "INVALID_ARGUMENT",
        P + "unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,16], got [1,17]." + NOTE,
    ),
    # inputs
    "nothing at all": Row(
        infer(simple({})),
        "INVALID_ARGUMENT",
        P + "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing required input(s)"
        " ['INPUT0','INPUT1']. Please provide all required input(s).",
    ),
    "too many inputs": Row(
        infer(simple(A | B | other("X"))),
        "INVALID_ARGUMENT",
        P + "expected 2 inputs but got 3 inputs for model 'simple'. Got input(s) ['INPUT0','INPUT1','X'], but missing"
        " required input(s) []. Please provide all required input(s).",
        differs="Triton loses the '[' of an empty list, and lists the inputs in the order of a hash table",
    ),
    "missing beside optional ones": Row(
        infer(lenient()),
        "INVALID_ARGUMENT",
        P + "expected number of inputs between 1 and 2 but got 0 inputs for model 'lenient'. Got input(s) [], but missing"
        " required input(s) ['a']. Please provide all required input(s).",
    ),
    "an optional one is not enough": Row(
        infer(lenient("b")),
        "INVALID_ARGUMENT",
        P + "expected number of inputs between 1 and 2 but got 1 inputs for model 'lenient'. Got input(s) ['b'], but missing"
        " required input(s) ['a']. Please provide all required input(s).",
        differs="Triton admits what has the right number, and leaves the missing one to the backend",
    ),
    "shape without a batch": Row(
        infer(simple(A | {"INPUT1": ("INT32", [], b"")})),
        *("INVALID_ARGUMENT", P + "input 'INPUT1' has no shape but model requires batch dimension for 'simple'"),
    ),
    "shape of a model without batches": Row(
        infer(infer_message("fixed", {"x": ("FP32", [4, 3], bytes(48))}, id="7")),
        *("INVALID_ARGUMENT", P + "unexpected shape for input 'x' for model 'fixed'. Expected [3,4], got [4,3]."),
        differs="Triton's ends in a blank, which HTTP/2 forbids at the end of a field (RFC 9113, 8.2.1)",
    ),
    "negative dimension": Row(
        infer(simple(A | {"INPUT1": ("INT32", [1, -1], b"")})),
        *("INVALID_ARGUMENT", P + "input 'INPUT1' for model 'simple' has a negative dimension in shape [1,-1]"),
        differs="refused before any arithmetic; Triton has a text for -1 only, and another for the batch dimension",
    ),
    "more contents than inputs": Row(
        infer(pb.ModelInferRequest(model_name="simple", raw_input_contents=[ROW])),
        *("INVALID_ARGUMENT", "expected 0 raw_input_contents for the inputs of model 'simple', got 1"),
        differs="Triton drops what is left over, and with it the mistake",
    ),
    "priority": Row(
        infer(with_parameter("priority", int64_param=-1)),
        *("INVALID_ARGUMENT", "invalid value for 'priority', expected value >= 0."),
    ),
    "a parameter without a value": Row(
        infer(with_parameter("mine")),
        "INVALID_ARGUMENT",
        "invalid value type for 'mine' parameter, expected int64_param, bool_param, string_param, or double_param.",
        differs="Triton takes double_param as well and does not say so",
    ),
    # queues
    "queue full": Row(full_queue, "UNAVAILABLE", P + "Exceeds maximum queue size"),
    "queue timeout": Row(infer(too_late()), "UNAVAILABLE", "Request timeout expired"),
    # models
    "load of what is not there": Row(
        load("nobody"), "INTERNAL", "failed to load 'nobody', failed to poll from model repository"
    ),
    "load of no version": Row(load("empty"), "INTERNAL", "failed to load 'empty', no version is available"),
    "load of what is broken": Row(
        load("broken"),
        "INTERNAL",
        "load failed for model 'broken': version 1 is at UNAVAILABLE state: open: fake.json is missing from the version's"
        " folder;",
        differs="the reason is this server's own; Triton ends each with a line break, which a status cannot carry well",
    ),
    "path": Row(
        load("../simple"),
        *("INVALID_ARGUMENT", "invalid model name '../simple', model name must not contain path traversal characters"),
    ),
    "parent folder": Row(
        load(".."), "INVALID_ARGUMENT", "invalid model name '..', model name must not contain path traversal characters"
    ),
    "no name": Row(load(""), "INVALID_ARGUMENT", "Model name cannot be empty. Please enter a valid name to deploy."),
    "blank name": Row(load(" \t"), "INVALID_ARGUMENT", "Model name cannot be empty. Please enter a valid name to deploy."),
    "unload of no name": Row(
        lambda stub: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest()),
        *("INVALID_ARGUMENT", "Model name cannot be empty. Please enter a valid name to deploy."),
        differs="Triton unloads it with success",
    ),
    "load parameter": Row(load("simple", x=text("y")), "INVALID_ARGUMENT", "unrecognized load parameter 'x'."),
    "type of a load parameter": Row(
        load("simple", config=pb.ModelRepositoryParameter(bool_param=True)),
        *("INVALID_ARGUMENT", "invalid value type for load parameter 'config', expected string_param."),
    ),
    "type of an unload parameter": Row(
        lambda stub: stub.RepositoryModelUnload(
            pb.RepositoryModelUnloadRequest(model_name="simple", parameters={"unload_dependents": text("y")})
        ),
        *("INVALID_ARGUMENT", "invalid value type for 'unload_dependents' parameter, expected bool_param."),
    ),
    "repository of a load": Row(
        lambda stub: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="r", model_name="simple")),
        *("UNIMPLEMENTED", "'repository_name' specification is not supported"),
    ),
    "repository of an unload": Row(
        lambda stub: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(repository_name="r", model_name="simple")),
        *("UNIMPLEMENTED", "'repository_name' specification is not supported"),
    ),
    # shared memory
    "registered twice": Row(register(REGION), "ALREADY_EXISTS", f"shared memory region '{REGION}' already in manager"),
    "no such key": Row(register("r", "/podium-none"), "INTERNAL", "Unable to open shared memory region: '/podium-none'"),
    "key of slashes": Row(
        register("r", "//"), "INVALID_ARGUMENT", "cannot register shared memory region 'r' - invalid shm key '//'"
    ),
    "beyond its file": Row(register("r", byte_size=129), "INVALID_ARGUMENT", f"{WRONG} 'r': invalid args"),
    "offset beyond its file": Row(register("r", offset=128, byte_size=1), "INVALID_ARGUMENT", f"{WRONG} 'r': invalid args"),
    "status of an unknown region": Row(
        lambda stub: stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="x")),
        *("NOT_FOUND", "Unable to find system shared memory region: 'x'"),
    ),
    "unregistered": Row(infer(shared("x")), "NOT_FOUND", "Unable to find shared memory region: 'x'"),
    "offset": Row(infer(shared(REGION, 64, 128)), "INVALID_ARGUMENT", f"Invalid offset for shared memory region: '{REGION}'"),
    "offset and size": Row(
        infer(shared(REGION, 65, 64)), "INVALID_ARGUMENT", f"Invalid offset + byte size for shared memory region: '{REGION}'"
    ),
    "a region without a size": Row(
        infer(shared(REGION, None)),
        "INVALID_ARGUMENT",
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'INPUT0'",
    ),
    "a size without a region": Row(
        infer(shared(None, 64)),
        "INVALID_ARGUMENT",
        "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'INPUT0'",
    ),
    "contents beside a region": Row(
        infer(shared_and_typed()),
        "INVALID_ARGUMENT",
        "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'simple'",
    ),
    "bytes in a region": Row(
        infer(shared(REGION, 63)),
        *("INVALID_ARGUMENT", P + "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 63"),
    ),
    "output too small": Row(
        infer(small_output()),
        "INTERNAL",
        "shared memory size specified with the request for output 'OUTPUT0' (8 bytes) should be at least 64 bytes to hold"
        " the results",
    ),
    "classes in shared memory": Row(
        infer(both_targets()), "INVALID_ARGUMENT", "output can't set both 'shared_memory_region' and 'classification'"
    ),
    "memory of a GPU": Row(
        lambda stub: stub.CudaSharedMemoryRegister(
            pb.CudaSharedMemoryRegisterRequest(name="x", raw_handle=bytes(64), byte_size=8)
        ),
        *("UNIMPLEMENTED", "failed to register CUDA shared memory region: 'x', GPUs not supported"),
        differs="Triton says INVALID_ARGUMENT, as if another argument could help",
    ),
    "status of memory of a GPU": Row(
        lambda stub: stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="x")),
        *("NOT_FOUND", "Unable to find cuda shared memory region: 'x'"),
    ),
    # what is logged and traced
    "log file": Row(
        lambda stub: stub.LogSettings(
            pb.LogSettingsRequest(settings={"log_file": pb.LogSettingsRequest.SettingValue(string_param="x")})
        ),
        *("UNIMPLEMENTED", "log file location can not be updated through network protocol"),
    ),
    "trace of an unknown model": Row(
        lambda stub: stub.TraceSetting(pb.TraceSettingRequest(model_name="does-not-exist")),
        *("INVALID_ARGUMENT", "Request for unknown model : does-not-exist"),
    ),
}
