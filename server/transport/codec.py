"""ModelInfer messages to `InferRequest`, and outputs to answers. Pure over values.

Floor 6: the only place where tensors meet protobuf. It runs once per request, so each field is read once (every access to
a repeated bytes field copies its elements) and unusual content leaves the straight path for a function of its own. It
checks the form of a message only; whether the tensors fit a model is `server.core.signature.check`'s business. Texts
follow NVIDIA Triton's (triton-inference-server/server, src/grpc/infer_handler.cc, 2026-08), since clients match on them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from protos.grpc_service_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from server.core.errors import BackendFailed, InvalidRequest, Unsupported
from server.core.requests import ANONYMOUS, Caller, InferRequest, ParameterValue, Place, Target, WireTensor
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, to_raw
from server.core.versions import VersionKey
from server.transport.classification import classify
from server.transport.places import Memory, NoMemory, fitting, place_of, target_of, write_all

MAX_RESPONSE_BYTES = 2**31 - 1
"""What one protobuf message can hold."""

_TYPED_FIELDS: dict[str, tuple[str, ...]] = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT32", "INT8", "INT16"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT32", "UINT8", "UINT16"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
"""Datatypes each field of InferTensorContents can carry; the first one names the field in errors."""

EMPTY_FINAL = "triton_enable_empty_final_response"
_TIMING = "podium_timing"
_FEATURES = "podium_features"
_SEQUENCE: dict[str, tuple[str, ...]] = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
}
_NO_PARAMETERS: Mapping[str, ParameterValue] = {}
_NO_TARGETS: dict[str, Target] = {}
_NO_LABELS: Mapping[str, Sequence[str]] = {}
_NO_MEMORY = NoMemory()


def decode(
    message: ModelInferRequest,
    arrival_ns: int,
    deadline_ns: int | None,
    caller: Caller = ANONYMOUS,
    *,
    streamed: bool = False,
    memory: Memory = _NO_MEMORY,
) -> InferRequest:
    """What the call asks for. A datatype nobody knows passes with raw contents: the model's check names what it expects.

    Inputs in shared memory are read here, once: what their owner does to them later changes nothing.
    Ownership: raw contents become `bytes` of their own, typed contents arrays; nothing refers to `message` afterwards. The
    request holds the regions that its outputs go to.
    Raises: InvalidRequest, NotFound and SharedMemoryFailed (shared memory), Unsupported (sequences).
    """
    model = message.model_name
    timeout_us = priority = 0
    timing = features = False
    parameters = _NO_PARAMETERS
    if message.parameters:
        timeout_us, priority, timing, features, parameters = _parameters(message)
    outputs: tuple[str, ...] = ()
    targets = _NO_TARGETS
    if message.outputs:
        outputs, targets = _requested(message, memory)
    return InferRequest(
        model,
        message.model_version,
        message.id,
        _inputs(message, memory),
        outputs,
        arrival_ns,
        deadline_ns,
        timeout_us,
        priority,
        parameters,
        caller,
        streamed,
        targets,
        timing,
        features,
    )


def _inputs(message: ModelInferRequest, memory: Memory) -> tuple[WireTensor, ...]:
    model = message.model_name
    raw = list(message.raw_input_contents)
    given = len(raw)
    # inputs in shared memory have no raw contents: those of the others follow each other
    used = shared_bytes = 0
    inputs: list[WireTensor] = []
    data: bytes | Array
    for tensor in message.inputs:
        if tensor.parameters and (place := place_of(tensor, memory)) is not None:
            shared_bytes += place.byte_size
            data = _shared(tensor, model, place, shared_bytes, memory)
        elif tensor.HasField("contents"):
            if raw:
                raise InvalidRequest(
                    f"contents field must not be specified when using raw_input_contents for '{tensor.name}'"
                    f" for model '{model}'"
                )
            data = _typed(tensor, model)
        elif used < given:
            data = raw[used]
            used += 1
        else:
            raise InvalidRequest(f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.")
        inputs.append(WireTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    if given > used:
        raise InvalidRequest(f"expected {used} raw_input_contents for the inputs of model '{model}', got {given}")
    return tuple(inputs)


def _requested(message: ModelInferRequest, memory: Memory) -> tuple[tuple[str, ...], dict[str, Target]]:
    """Outputs by name, and those of them that are not simply sent."""
    names: list[str] = []
    targets: dict[str, Target] = {}
    for output in message.outputs:
        names.append(output.name)
        if output.parameters and (target := target_of(output, memory)) is not None:
            targets[output.name] = target
    return tuple(names), targets


def encode(
    request_id: str,
    key: VersionKey,
    signature: Signature,
    requested: tuple[str, ...],
    outputs: Mapping[str, Array],
    targets: Mapping[str, Target] = _NO_TARGETS,
    labels: Mapping[str, Sequence[str]] = _NO_LABELS,
    response: ModelInferResponse | None = None,
) -> ModelInferResponse:
    """The answer of `key` to one request: `requested` outputs in that order, or all in the model's order.

    Outputs whose target is a place are written there, all of them or, where any output is refused, none; their contents are
    empty. `labels` are those of classified outputs. The answer is written into `response` where that is given: moving a
    message into another copies all its tensors.

    Shapes: `outputs` as the request owns them, with the batch dimension where the model batches; all of them are raw.
    Ownership: the arrays are copied.
    Raises: BackendFailed where an output is missing, InvalidRequest where the answer is larger than a message can be,
    InvalidRequest and SharedMemoryFailed for targets.
    """
    if response is None:
        response = ModelInferResponse()
    response.model_name, response.model_version, response.id = key.model, str(key.version), request_id
    add = response.outputs.add
    specs = signature.output_names
    contents: list[bytes] = []
    writes: list[tuple[Place, bytes]] = []
    total = 0
    for name in requested or specs:
        array = outputs.get(name)
        if array is None:
            raise BackendFailed(f"model '{key.model}' gave no output '{name}'")
        datatype = specs[name].datatype
        target = targets.get(name) if targets else None
        if target is not None and isinstance(target, int):
            array = classify(array, datatype, target, labels.get(name, ()), batching=signature.max_batch > 0)
            datatype = "BYTES"
        tensor = add(name=name, datatype=datatype, shape=array.shape)
        dtype = NUMPY_DTYPES[datatype]
        # tobytes is row-major whatever the layout; everything but the plain case is left to the slower general form
        item = array.tobytes() if array.dtype is dtype and datatype != "BYTES" else to_raw(datatype, array)
        if target is not None and isinstance(target, Place):
            part = fitting(name, target, len(item))
            writes.append((part, item))
            _say_where(tensor, part)
            item = b""
        total += len(item)
        contents.append(item)
    if total > MAX_RESPONSE_BYTES - 2**20:
        # each of the contents brings a tag and a length of five bytes
        _refuse_large(total + response.ByteSize() + 6 * len(contents))
    if writes:
        write_all(writes)
    response.raw_output_contents.extend(contents)
    return response


def _say_where(tensor: ModelInferResponse.InferOutputTensor, part: Place) -> None:
    """The parameters of an output that was written to shared memory: its region, and the part of it that it takes."""
    tensor.parameters["shared_memory_region"].string_param = part.region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = part.byte_size
    if part.offset:
        tensor.parameters["shared_memory_offset"].int64_param = part.offset


def _refuse_large(size_bytes: int) -> None:
    if size_bytes > MAX_RESPONSE_BYTES:
        raise InvalidRequest(f"Response has byte size {size_bytes} which exceeds gRPC's byte size limit {MAX_RESPONSE_BYTES}.")


def _typed(tensor: ModelInferRequest.InferInputTensor, model: str) -> Array:
    """The elements of `contents` as a flat array of the tensor's datatype; empty where nothing is in it."""
    datatype = tensor.datatype
    where = f"input tensor '{tensor.name}' for model '{model}'"
    fields = tensor.contents.ListFields()
    for position, (field, _) in enumerate(fields):
        fitting = _TYPED_FIELDS[field.name]
        if position > 0 or datatype not in fitting:
            raise InvalidRequest(
                f"unexpected explicit tensor data for {where}, binary data was already supplied."
                if position > 0
                else f"unexpected explicit tensor data for {where} of type '{fitting[0]}', expected datatype '{datatype}'"
            )
    if not fields:
        # an unknown datatype stays an answer of the model's check, as with raw contents
        return np.empty(0, NUMPY_DTYPES.get(datatype, np.dtype(np.uint8)))
    values = fields[0][1]
    if datatype == "BYTES":
        elements = np.empty(len(values), dtype=object)
        elements[:] = list(values)
        return elements
    try:
        return np.fromiter(values, NUMPY_DTYPES[datatype], len(values))
    except OverflowError as error:
        # the field is wider than the datatype: a value that does not fit must not wrap around
        raise InvalidRequest(f"explicit tensor data for {where} is out of range of datatype '{datatype}': {error}") from None


def _parameters(message: ModelInferRequest) -> tuple[int, int, bool, bool, Mapping[str, ParameterValue]]:
    """Timeout in microseconds, priority, whether the answer is to say how long it took, whether it is to say what became of its
    features, and the caller's own parameters.
    """
    timeout_us = priority = 0
    timing = features = False
    own: dict[str, ParameterValue] = {}
    for name, parameter in message.parameters.items():
        if name == EMPTY_FINAL:
            # says something about streams of decoupled models only
            _value(name, parameter, ("bool_param",))
        elif name == "timeout":
            timeout_us = _not_negative(name, parameter, ("int64_param",))
        elif name == "priority":
            priority = _not_negative(name, parameter, ("int64_param", "uint64_param"))
        elif name in _SEQUENCE:
            if _value(name, parameter, _SEQUENCE[name]):
                raise Unsupported(f"parameter '{name}': sequence batching is not supported by this server")
        elif name.startswith("triton_"):
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting"
                f" with 'triton_' are allowed: {EMPTY_FINAL}"
            )
        elif name == _TIMING:
            timing = bool(_value(name, parameter, ("bool_param",)))
        elif name == _FEATURES:
            features = bool(_value(name, parameter, ("bool_param",)))
        elif name.startswith("podium_"):
            # whoever asks for what only a later server can do is told so, rather than given something else
            raise InvalidRequest(
                "parameter keys starting with 'podium_' are reserved for this server's use. Only the following keys starting"
                f" with 'podium_' are allowed: {_FEATURES}, {_TIMING}"
            )
        else:
            own[name] = _value(name, parameter, ("int64_param", "bool_param", "string_param", "double_param"))
    return timeout_us, priority, timing, features, own


def _value(name: str, parameter: InferParameter, allowed: tuple[str, ...]) -> ParameterValue:
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in allowed:
        words = " or ".join(allowed) if len(allowed) < 3 else f"{', '.join(allowed[:-1])}, or {allowed[-1]}"
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected {words}.")
    value: ParameterValue = getattr(parameter, choice)
    return value


def _not_negative(name: str, parameter: InferParameter, allowed: tuple[str, ...]) -> int:
    value = int(_value(name, parameter, allowed))
    if value < 0:
        raise InvalidRequest(f"invalid value for '{name}', expected value >= 0.")
    return value


def _shared(tensor: ModelInferRequest.InferInputTensor, model: str, place: Place, shared_bytes: int, memory: Memory) -> bytes:
    """The bytes of an input in shared memory; `shared_bytes` are those of the request up to here."""
    if tensor.HasField("contents"):
        raise InvalidRequest(
            f"unexpected 'content' provided when using shared memory for input tensor '{tensor.name}' for model '{model}'"
        )
    if shared_bytes > memory.max_read_bytes:
        raise InvalidRequest(
            f"inputs of a request for model '{model}' have more than {memory.max_read_bytes} bytes in shared memory"
        )
    return place.region.read(place.offset, place.byte_size)
