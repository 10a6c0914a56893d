"""ModelInfer messages for the tests of the native wire: of random signatures, well, nearly well, and oddly written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos.grpc_service_pb2 import InferParameter, ModelInferRequest
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec, to_raw

MODEL, NUMBER = "m", 3
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_NAMES = ("x", "y", "input__0", "größe", "a_name_that_is_longer_than_most_of_them_are")
_DATATYPES = st.sampled_from(list(NUMPY_DTYPES))


@dataclass(frozen=True)
class Message:
    """A request that fits its signature."""

    signature: Signature
    arrays: dict[str, Array]
    wire: ModelInferRequest


def masks_of(signature: Signature) -> list[int]:
    """The sets of inputs that requests may bring."""
    required = sum(1 << i for i, spec in enumerate(signature.inputs) if not spec.optional)
    optional = [1 << i for i, spec in enumerate(signature.inputs) if spec.optional]
    return [required + sum(chosen) for count in range(len(optional) + 1) for chosen in combinations(optional, count)]


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    """Few dims and small ones, so that empty tensors, free dims and optional inputs all happen often."""
    dims = st.lists(st.sampled_from([-1, -1, 0, 1, 2, 3]), max_size=3).map(tuple)

    def specs(least: int, most: int, optional: st.SearchStrategy[bool]) -> tuple[TensorSpec, ...]:
        names = draw(st.lists(st.sampled_from(_NAMES), min_size=least, max_size=most, unique=True))
        return tuple(TensorSpec(name, draw(_DATATYPES), draw(dims), draw(optional)) for name in names)

    def padded(spec: TensorSpec) -> TensorSpec:
        if -1 not in spec.shape or spec.datatype == "BYTES" or not draw(st.booleans()):
            return spec
        sizes = draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))
        return replace(spec, pad_to=tuple(sorted(sizes)), pad_value=draw(st.sampled_from([0, 1])))

    inputs = tuple(map(padded, specs(0, 4, st.booleans())))
    return Signature(MODEL, inputs, specs(1, 3, st.just(False)), draw(st.sampled_from([0, 1, 4])))


def arrays_of(datatype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Any elements of a datatype."""
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return hnp.arrays(dtype, shape, elements=st.binary(max_size=9), fill=st.nothing())
    return hnp.arrays(dtype, shape)


@st.composite
def tensors(draw: st.DrawFn, spec: TensorSpec, rows: int | None) -> Array:
    """A tensor that fits, with so many rows where the model batches."""
    most = min((4, *spec.pad_to[-1:]))
    shape = tuple(draw(st.integers(0, most)) if dim == -1 else dim for dim in spec.shape)
    return draw(arrays_of(spec.datatype, shape if rows is None else (rows, *shape)))


def _parameters() -> st.SearchStrategy[dict[str, InferParameter]]:
    own = st.one_of(
        st.integers(-(2**63), 2**63 - 1).map(lambda value: InferParameter(int64_param=value)),
        st.booleans().map(lambda value: InferParameter(bool_param=value)),
        st.text(max_size=5).map(lambda value: InferParameter(string_param=value)),
        st.floats().map(lambda value: InferParameter(double_param=value)),
    )
    known = {
        "timeout": st.integers(0, 2**63 - 1).map(lambda value: InferParameter(int64_param=value)),
        "priority": st.integers(0, 2**63 - 1).map(lambda value: InferParameter(uint64_param=value)),
        "podium_timing": st.booleans().map(lambda value: InferParameter(bool_param=value)),
        "triton_enable_empty_final_response": st.just(InferParameter(bool_param=True)),
    }
    return st.fixed_dictionaries({}, optional={**known, "": own, "tenant": own, "größe": own})


def fill(message: ModelInferRequest, spec: TensorSpec, array: Array, typed: bool) -> None:
    """Add an input."""
    tensor = message.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
    if not typed:
        message.raw_input_contents.append(to_raw(spec.datatype, array))
        return
    tensor.contents.SetInParent()
    getattr(tensor.contents, TYPED_FIELDS[spec.datatype]).extend(array.ravel().tolist())


@st.composite
def well(draw: st.DrawFn, signature: Signature) -> Message:
    """An ordinary request: all inputs raw or all typed, in any order."""
    mask = draw(st.sampled_from(masks_of(signature)))
    brought = [spec for i, spec in enumerate(signature.inputs) if mask >> i & 1]
    rows = draw(st.integers(1, signature.max_batch)) if signature.max_batch else None
    arrays = {spec.name: draw(tensors(spec, rows)) for spec in brought}
    message = ModelInferRequest(model_name=MODEL, model_version=draw(st.sampled_from(["", "3"])), id=draw(st.text(max_size=20)))
    typed = all(spec.datatype in TYPED_FIELDS for spec in brought) and draw(st.booleans())
    for spec in draw(st.permutations(brought)):
        fill(message, spec, arrays[spec.name], typed)
    for name, parameter in draw(_parameters()).items():
        message.parameters[name].CopyFrom(parameter)
    outputs = [spec.name for spec in signature.outputs]
    for name in draw(st.lists(st.sampled_from(outputs), unique=True)):
        message.outputs.add(name=name)
    return Message(signature, arrays, message)


def _odd_parameters() -> st.SearchStrategy[tuple[str, InferParameter]]:
    names = ["timeout", "priority", "podium_timing", "podium_features", "podium_x", "triton_x", "sequence_id", "sequence_start"]
    values = [
        InferParameter(),
        InferParameter(int64_param=-1),
        InferParameter(int64_param=7),
        InferParameter(uint64_param=2**63),
        InferParameter(bool_param=True),
        InferParameter(string_param="x"),
        InferParameter(double_param=1.0),
    ]
    return st.tuples(st.sampled_from([*names, "tenant"]), st.sampled_from(values))


@st.composite
def nearly_well(draw: st.DrawFn, signature: Signature) -> ModelInferRequest:
    """An ordinary request with one thing changed, which may or may not make it wrong."""
    message = draw(well(signature)).wire
    change = draw(st.integers(0, 9))
    if change == 0:
        name, value = draw(_odd_parameters())
        message.parameters[name].CopyFrom(value)
    elif change == 1:
        message.outputs.add(name=draw(st.sampled_from([*_NAMES, ""])))
    elif change == 2:
        message.model_version = draw(st.sampled_from(["", "3", "4", "03", "x"]))
    elif change == 3:
        message.raw_input_contents.append(draw(st.binary(max_size=4)))
    elif message.inputs:
        _change_input(draw, change, message)
    return message


def _change_input(draw: st.DrawFn, change: int, message: ModelInferRequest) -> None:
    i = draw(st.integers(0, len(message.inputs) - 1))
    tensor = message.inputs[i]
    if change == 4 and tensor.shape:
        tensor.shape[draw(st.integers(0, len(tensor.shape) - 1))] = draw(
            st.sampled_from([-1, 0, 1, 2, 2**31, 2**62, 2**63 - 1])
        )
    elif change == 5:
        tensor.shape.append(draw(st.sampled_from([0, 1, 2])))
    elif change == 6:
        tensor.name = draw(st.sampled_from([*_NAMES, ""]))
    elif change == 7:
        tensor.datatype = draw(_DATATYPES)
    elif change == 8:
        field = draw(st.sampled_from(sorted(set(TYPED_FIELDS.values()))))
        values: list[Any] = [b"ab"] if field == "bytes_contents" else [draw(st.sampled_from([0, 1, 200, 70_000]))]
        getattr(tensor.contents, field).extend(values)
    elif i < len(message.raw_input_contents):
        data = bytearray(message.raw_input_contents[i])
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        message.raw_input_contents[i] = bytes(data)


def number(value: int, padding: int = 0) -> bytes:
    """A varint, with so many bytes more than it needs."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    for _ in range(padding):
        made[-1] |= 128
        made.append(0)
    return bytes(made)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a message that has only fields with a length."""
    at = 0

    def read() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = read()
        assert tag & 7 == 2
        size = read()
        yield tag >> 3, data[at : at + size]
        at += size


@st.composite
def rewritten(draw: st.DrawFn, message: ModelInferRequest) -> bytes:
    """The same fields in another order, with longer numbers than needed, some twice, and others that nobody knows between."""
    fields = draw(st.permutations(list(_fields(message.SerializeToString()))))
    padding = st.sampled_from([0, 0, 0, 1, 3, 4, 9])
    parts = [number(tag << 3 | 2, draw(padding)) + number(len(data), draw(padding)) + data for tag, data in fields]
    for _ in range(draw(st.integers(0, 3))):
        tag = draw(st.sampled_from([0, 1, 4, 7, 8, 15, 16, 2**29 - 1, 2**29]))
        kind = draw(st.integers(0, 7))
        content = draw(
            st.sampled_from([b"", b"\x00", b"\x01x", b"1234", b"12345678", b"\x80\x01", b"\xff" * 9 + b"\x01", b"\xff" * 10])
        )
        parts.insert(draw(st.integers(0, len(parts))), number(tag << 3 | kind, draw(padding)) + content)
    again = draw(st.booleans())
    if parts and again:
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(parts)))
    return b"".join(parts)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """With a few bytes changed, added or cut."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(made)))
        made[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(made)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> Sequence[bytes]:
    """In pieces, some of them of one byte, some of none."""
    if draw(st.booleans()):
        return [data]
    at = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=12))), len(data)]
    return [data[first:last] for first, last in pairwise(at)]


def float_bits(array: Array) -> bytes:
    """Bytes in which all NaNs are one: a number that goes through a Python float keeps being none, but not which."""
    if array.dtype.kind != "f":
        return array.tobytes()
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array).tobytes()
