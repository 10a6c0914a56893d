"""The native wire against its reference: what it takes, Python takes too and understands alike; what it writes is the same.

It may leave anything to Python, but not the ordinary: that is a test of its own.
"""

from typing import Any

import numpy as np
import podium_native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc._utils import _get_inference_request

from protos.grpc_service_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from server.core.errors import InvalidRequest
from server.core.padding import pad_element
from server.core.signature import CheckedRows, Signature, check
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec, to_raw
from server.core.versions import VersionKey
from server.dataplane.rows import place
from server.transport.codec import MAX_RESPONSE_BYTES, decode, encode
from tests.dataplane.messages import (
    MODEL,
    NUMBER,
    TYPED_FIELDS,
    Message,
    cut,
    damaged,
    fill,
    float_bits,
    masks_of,
    nearly_well,
    number,
    rewritten,
    signatures,
    tensors,
    well,
)

# how long an example takes says nothing: others may have the processor
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEY = VersionKey(MODEL, NUMBER)
ONE = Signature(MODEL, (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (1,)),), 4)
TIMES = ("podium_queue_us", "podium_execute_us", "podium_features_us", "podium_batch_rows", "podium_total_us")


def wire_of(signature: Signature) -> Any:
    wire = podium_native.Wire()
    inputs, outputs = (
        [
            (spec.name, spec.datatype, spec.shape, spec.pad_to, pad_element(spec).tobytes() if spec.pad_to else b"")
            for spec in side
        ]
        for side in (signature.inputs, signature.outputs)
    )
    for version in ("", str(NUMBER)):
        wire.add(MODEL, version, str(NUMBER), inputs, outputs, signature.max_batch, masks_of(signature))
    return wire


def agreed(signature: Signature, pieces: list[bytes], *, compact: bool = False) -> dict[str, Any] | None:
    """What the native side makes of a message, after Python has made the same of it; None where it leaves it to Python."""
    plain: dict[str, Any] | None = wire_of(signature).decode(pieces, compact)
    if plain is None:
        return None
    request = decode(ModelInferRequest.FromString(b"".join(pieces)), 5, None)
    checked = check(request, signature)
    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]
    assert (request.model, request.features, request.targets) == (MODEL, False, {})
    assert request.version in ("", str(NUMBER))
    assert plain["version"] == str(NUMBER)
    assert (plain["id"], plain["timeout_us"], plain["priority"]) == (request.id, request.timeout_us, request.priority)
    assert (plain["timing"], plain["rows"]) == (request.timing, checked.rows)
    assert [outputs[i] for i in plain["outputs"]] == list(request.outputs)
    assert plain["mask"] == sum(1 << names.index(name) for name in checked.arrays)
    for spec in signature.inputs:
        if spec.name in checked.arrays:
            same_tensor(spec, plain["inputs"].pop(spec.name), checked.arrays[spec.name], batching=signature.max_batch > 0)
    assert plain["inputs"] == {}
    dims = [list(dims_of(checked, name)) for name in names if name in checked.arrays]
    assert plain["shape"] == podium_native.shape_of(plain["mask"], dims)
    assert plain["size_class"] == checked.size_class
    return plain


def same_tensor(spec: TensorSpec, native: tuple[tuple[int, ...], bytes, bytes], array: Array, *, batching: bool) -> None:
    """What arrived, and what a batch has of it, padded."""
    dims, data, placed = native
    start = 1 if batching else 0
    assert dims == array.shape[start:]
    whole = np.empty((*array.shape[:start], *spec.padded(dims)), array.dtype)
    place(array, whole, spec if spec.pad_to else None)
    for found, expected in ((data, array), (placed, whole)):
        raw = to_raw(spec.datatype, expected)
        if found != raw:
            dtype = NUMPY_DTYPES[spec.datatype]
            assert float_bits(np.frombuffer(found, dtype)) == float_bits(np.frombuffer(raw, dtype))


def dims_of(checked: CheckedRows, name: str) -> tuple[int, ...]:
    return dict(checked.shape_key)[name]


def with_message(strategy: Any) -> st.SearchStrategy[Any]:
    return signatures().flatmap(lambda signature: st.tuples(st.just(signature), strategy(signature)))


@UNTIMED
@given(data=st.data(), message=signatures().flatmap(well), compact=st.booleans())
def test_ordinary_requests_are_plain_however_they_are_cut(data: st.DataObject, message: Message, compact: bool) -> None:
    pieces = data.draw(cut(message.wire.SerializeToString()))
    plain = agreed(message.signature, list(pieces), compact=compact)
    assert plain is not None


@settings(UNTIMED, max_examples=300)
@given(data=st.data(), case=with_message(nearly_well))
def test_whatever_is_taken_python_takes_too(data: st.DataObject, case: tuple[Signature, ModelInferRequest]) -> None:
    signature, message = case
    agreed(signature, list(data.draw(cut(message.SerializeToString()))))


@settings(UNTIMED, max_examples=300)
@given(data=st.data(), message=signatures().flatmap(well))
def test_unusual_and_damaged_writing(data: st.DataObject, message: Message) -> None:
    written = data.draw(rewritten(message.wire))
    agreed(message.signature, list(data.draw(cut(written))))
    agreed(message.signature, list(data.draw(cut(data.draw(damaged(written))))))


@UNTIMED
@given(first=st.data(), signature=signatures())
def test_lanes_are_equal_exactly_when_shape_keys_are(first: st.DataObject, signature: Signature) -> None:
    messages = [first.draw(well(signature)).wire for _ in range(2)]
    keys = [check(decode(message, 5, None), signature).shape_key for message in messages]
    wire = wire_of(signature)
    shapes = [wire.decode([message.SerializeToString()])["shape"] for message in messages]
    assert (keys[0] == keys[1]) == (shapes[0] == shapes[1])


# its BF16 needs an array type of its own; on the wire it is like the others
@pytest.mark.parametrize("datatype", [datatype for datatype in NUMPY_DTYPES if datatype != "BF16"])
def test_what_tritonclient_sends_is_plain(datatype: str) -> None:
    tensor_specs = (TensorSpec("x", datatype, (-1, 2)), TensorSpec("n", "INT64", (1,)))
    signature = Signature(MODEL, tensor_specs, (TensorSpec("y", "FP32", (1,)), TensorSpec("z", "FP32", (1,))), 4)
    elements = np.arange(12).reshape(2, 3, 2) % 2
    array = elements.astype("S").astype(object) if datatype == "BYTES" else elements.astype(NUMPY_DTYPES[datatype])
    inputs = [InferInput("x", [2, 3, 2], datatype), InferInput("n", [2, 1], "INT64")]
    inputs[0].set_data_from_numpy(array)
    inputs[1].set_data_from_numpy(np.array([[1], [2]], np.int64))
    message = _get_inference_request(
        model_name=MODEL,
        inputs=inputs,
        model_version="",
        request_id="17",
        outputs=[InferRequestedOutput("z"), InferRequestedOutput("y")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=2,
        timeout=1000,
        parameters={"tenant": "a", "weight": 2, "dry": True},
    )
    plain = agreed(signature, [message.SerializeToString()])
    assert plain is not None
    assert (plain["outputs"], plain["priority"], plain["timeout_us"], plain["rows"]) == ([1, 0], 2, 1000, 2)


@pytest.mark.parametrize("datatype", sorted(TYPED_FIELDS))
def test_typed_contents_are_plain_at_their_extremes(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (2,))
    dtype = NUMPY_DTYPES[datatype]
    array: Array = np.array([[0, 1]], dtype)
    if datatype == "BYTES":
        array = np.array([[b"", b"x" * 300]], dtype)
    elif dtype.kind in "iu":
        limits: Any = np.iinfo(dtype.str)
        array = np.array([[limits.min, limits.max]], dtype)
    message = ModelInferRequest(model_name=MODEL)
    fill(message, spec, array, typed=True)
    data = message.SerializeToString()
    signature = Signature(MODEL, (spec,), ONE.outputs, 1)
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        assert agreed(signature, pieces) is not None


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT16", -(2**15) - 1), ("UINT8", 256), ("UINT16", 2**16)])
def test_typed_values_that_do_not_fit_are_not_plain(datatype: str, value: int) -> None:
    message = ModelInferRequest(model_name=MODEL)
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 1])
    getattr(tensor.contents, TYPED_FIELDS[datatype]).append(value)
    signature = Signature(MODEL, (TensorSpec("x", datatype, (1,)),), ONE.outputs, 1)
    assert agreed(signature, [message.SerializeToString()]) is None


def one(**fields: Any) -> ModelInferRequest:
    message = ModelInferRequest(model_name=MODEL, **fields)
    fill(message, ONE.inputs[0], np.ones((1, 2), np.float32), typed=False)
    return message


def test_what_is_for_python_is_left_to_it() -> None:
    assert agreed(ONE, [one().SerializeToString()]) is not None
    shared, classified, unknown, mixed = one(), one(), one(model_version="03"), one()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    classified.outputs.add(name="y").parameters["classification"].int64_param = 1
    mixed.inputs[0].contents.fp32_contents.extend([1, 2])
    for message in (shared, classified, unknown, mixed):
        assert agreed(ONE, [message.SerializeToString()]) is None


@pytest.mark.parametrize("name", ["sequence_id", "podium_features", "podium_x", "triton_x"])
def test_parameters_of_other_features_are_left_to_python(name: str) -> None:
    message = one()
    message.parameters[name].bool_param = True
    assert agreed(ONE, [message.SerializeToString()]) is None


@pytest.mark.parametrize(
    "tail",
    [
        b"\x0b\x0c",  # a group
        b"\x1a\x02\xc3\x28",  # an id that is not UTF-8
        b"\x1a\x03\xed\xa0\x80",  # a surrogate
        b"\x1a\x04\xf4\x90\x80\x80",  # beyond U+10FFFF
        b"\x1a\x02\xc0\x80",  # a form longer than needed
        b"\x1a\x05abc",  # longer than the message
        b"\x1a" + b"\xff" * 9 + b"\x7f",  # a length beyond 64 bits
        b"\x22\x07\x0a\x01a\x12\x02\x10",  # cut within a parameter
        b"\x00\x00",  # field 0
        b"\x1a" + number(0, padding=5),  # a length of six bytes
        b"\x80",  # cut within a tag
    ],
)
def test_broken_tails_are_left_to_python(tail: bytes) -> None:
    data = one().SerializeToString() + tail
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        assert agreed(ONE, pieces) is None


def test_fields_nobody_knows_are_skipped() -> None:
    known = one().SerializeToString()
    unknown = b"\x40\x96\x01" + b"\x4a\x03abc" + b"\x51" + bytes(8) + b"\x5d" + bytes(4) + number(2**29 - 1 << 3) + b"\x01"
    for data in (known + unknown, unknown + known):
        for size in (1, 3, len(data)):
            assert agreed(ONE, [data[i : i + size] for i in range(0, len(data), size)]) is not None


def test_a_large_tensor_in_thousands_of_pieces() -> None:
    spec = TensorSpec("x", "BYTES", (-1,))
    signature = Signature(MODEL, (spec, TensorSpec("flags", "BOOL", (-1,))), ONE.outputs, 1)
    message = ModelInferRequest(model_name=MODEL)
    fill(message, spec, np.array([[bytes([i % 256]) * (i % 40) for i in range(20_000)]], object), typed=False)
    fill(message, signature.inputs[1], np.ones((1, 200_000), np.bool_), typed=False)
    data = message.SerializeToString()
    assert len(data) > 600_000
    for compact in (False, True):
        assert agreed(signature, [data[i : i + 97] for i in range(0, len(data), 97)], compact=compact) is not None


def test_names_that_are_cut_are_put_together_within_bounds() -> None:
    for size, plain in ((1000, True), (100_000, False)):
        data = one(id="i" * size).SerializeToString()
        assert (agreed(ONE, [data[:500], data[500:]]) is not None) == plain
        assert agreed(ONE, [data]) is not None


def test_more_than_the_fast_lane_holds_is_left_to_python() -> None:
    """Nine dimensions, and an output beyond the sixty-fourth."""
    for rank, plain in ((8, True), (9, False)):
        signature = Signature(MODEL, (TensorSpec("x", "UINT8", (1,) * rank),), ONE.outputs, 0)
        message = ModelInferRequest(model_name=MODEL, raw_input_contents=[b"1"])
        message.inputs.add(name="x", datatype="UINT8", shape=[1] * rank)
        assert (agreed(signature, [message.SerializeToString()]) is not None) == plain
    many = Signature(MODEL, (), tuple(TensorSpec(f"y{i}", "FP32", (1,)) for i in range(65)), 0)
    for name, plain in (("y63", True), ("y64", False)):
        message = ModelInferRequest(model_name=MODEL)
        message.outputs.add(name=name)
        assert (agreed(many, [message.SerializeToString()]) is not None) == plain


@pytest.mark.parametrize("dims", [(0, 2**62, 2**62), (2**32, 2**32), (2**63 - 1, 2), (0, 2**40)])
def test_shapes_beyond_all_memory_are_left_to_python(dims: tuple[int, ...]) -> None:
    for max_batch in (0, 4):
        signature = Signature(MODEL, (TensorSpec("x", "FP32", (-1,) * len(dims)),), ONE.outputs, max_batch)
        message = ModelInferRequest(model_name=MODEL, raw_input_contents=[b""])
        message.inputs.add(name="x", datatype="FP32", shape=[1, *dims] if max_batch else dims)
        assert agreed(signature, [message.SerializeToString()]) is None


@pytest.mark.parametrize(
    ("shapes", "data"),
    [
        (([1, 2], [1, 1]), b"\x00\x00\x00\x00"),  # an element too few
        (([1, 2], [1, 1]), bytes(12)),  # one too many
        (([1, 2], [1, 1]), b"\x00\x00\x00\x00\x01\x00\x00\x00"),  # the last one cut
        (([1, 2], [1, 1]), bytes(7)),  # its length cut
        (([1, 2], [2, 1]), bytes(8)),  # rows that differ
        (([0, 2], [0, 1]), b""),  # no rows
        (([5, 2], [5, 1]), bytes(40)),  # more than a batch has
        (([1, 2, 1], [1, 1]), bytes(8)),  # a dimension too many
        (([1, -2], [1, 1]), bytes(8)),
        (([], [1, 1]), bytes(8)),
    ],
)
def test_shapes_and_elements_that_do_not_fit_are_left_to_python(shapes: tuple[list[int], list[int]], data: bytes) -> None:
    signature = Signature(MODEL, (TensorSpec("x", "BYTES", (-1,)), TensorSpec("n", "UINT8", (1,))), ONE.outputs, 4)
    for given_shapes, given_data, plain in ((([1, 2], [1, 1]), bytes(8), True), (shapes, data, False)):
        message = ModelInferRequest(model_name=MODEL, raw_input_contents=[given_data, bytes(given_shapes[1][0])])
        message.inputs.add(name="x", datatype="BYTES", shape=given_shapes[0])
        message.inputs.add(name="n", datatype="UINT8", shape=given_shapes[1])
        assert (agreed(signature, [message.SerializeToString()]) is not None) == plain


def test_bools_above_one_are_left_to_python() -> None:
    signature = Signature(MODEL, (TensorSpec("x", "BOOL", (3,)),), ONE.outputs, 1)
    for data, plain in ((b"\x00\x01\x01", True), (b"\x00\x01\x02", False)):
        message = ModelInferRequest(model_name=MODEL, raw_input_contents=[data])
        message.inputs.add(name="x", datatype="BOOL", shape=[1, 3])
        assert (agreed(signature, [message.SerializeToString()]) is not None) == plain


@st.composite
def answers(draw: st.DrawFn) -> tuple[Signature, list[str], dict[str, Array]]:
    signature = draw(signatures())
    rows = draw(st.integers(1, signature.max_batch)) if signature.max_batch else None
    requested = draw(st.lists(st.sampled_from(sorted(signature.output_names)), unique=True))
    return signature, requested, {spec.name: draw(tensors(spec, rows)) for spec in signature.outputs}


def parts_of(signature: Signature, requested: list[str], outputs: dict[str, Array]) -> list[tuple[int, tuple[int, ...], bytes]]:
    names = list(signature.output_names)
    return [
        (names.index(name), outputs[name].shape, to_raw(signature.output_names[name].datatype, outputs[name]))
        for name in requested or names
    ]


def message_in(data: bytes) -> bytes:
    """The message behind gRPC's prefix, which says that it is not compressed, and how long it is."""
    assert data[:5] == b"\x00" + (len(data) - 5).to_bytes(4, "big")
    return data[5:]


@UNTIMED
@given(answer=answers(), request_id=st.text(max_size=200))
def test_answers_are_written_as_python_writes_them(
    answer: tuple[Signature, list[str], dict[str, Array]], request_id: str
) -> None:
    signature, requested, outputs = answer
    expected = encode(request_id, KEY, signature, tuple(requested), outputs).SerializeToString()
    written = wire_of(signature).encode(MODEL, "", request_id, parts_of(signature, requested, outputs))
    assert message_in(written) == expected


@UNTIMED
@given(answer=answers(), request_id=st.text(max_size=300))
def test_a_stream_has_answers_in_its_own_message(
    answer: tuple[Signature, list[str], dict[str, Array]], request_id: str
) -> None:
    signature, requested, outputs = answer
    expected = encode(request_id, KEY, signature, tuple(requested), outputs)
    expected.parameters["triton_final_response"].bool_param = True
    written = wire_of(signature).encode(MODEL, "", request_id, parts_of(signature, requested, outputs), streamed=True)
    assert message_in(written) == ModelStreamInferResponse(infer_response=expected).SerializeToString()


@given(text=st.text(), request_id=st.text(max_size=300), model=st.text(), version=st.text())
def test_a_stream_has_errors_as_messages(text: str, request_id: str, model: str, version: str) -> None:
    response = ModelInferResponse(id=request_id, model_name=model, model_version=version)
    if model:
        response.parameters["triton_final_response"].bool_param = True
    expected = ModelStreamInferResponse(error_message=text, infer_response=response)
    assert message_in(podium_native.Wire.error(text, request_id, model, version)) == expected.SerializeToString()


@UNTIMED
@given(
    answer=answers(),
    times=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5),
    features=st.booleans(),
)
def test_times_are_parameters(answer: tuple[Signature, list[str], dict[str, Array]], times: list[int], features: bool) -> None:
    signature, requested, outputs = answer
    expected = encode("17", KEY, signature, tuple(requested), outputs)
    for name, value in zip(TIMES, times, strict=True):
        if features or name != "podium_features_us":
            expected.parameters[name].int64_param = value
    stated = (*times[:2], times[2] if features else None, *times[3:])
    written = message_in(wire_of(signature).encode(MODEL, "", "17", parts_of(signature, requested, outputs), stated))
    assert ModelInferResponse.FromString(written) == expected
    assert len(written) == expected.ByteSize()


def test_what_is_empty_is_written_as_protobuf_does() -> None:
    """No id, an output without a name, one without dimensions, one without elements."""
    specs = (TensorSpec("", "FP32", ()), TensorSpec("y", "BYTES", (0,)))
    signature = Signature(MODEL, (), specs, 0)
    outputs: dict[str, Array] = {"": np.array(1, np.float32), "y": np.empty((0,), object)}
    written = message_in(wire_of(signature).encode(MODEL, "", "", parts_of(signature, [], outputs)))
    assert written == encode("", KEY, signature, (), outputs).SerializeToString()


def test_answers_larger_than_a_message_are_refused_with_their_size() -> None:
    nothing = np.zeros(MAX_RESPONSE_BYTES - 20, np.uint8)  # never read, so never in memory
    with pytest.raises(Exception, match=r"^2147483\d{3}$"):
        wire_of(ONE).encode(MODEL, "", "", [(0, (1, 1), nothing)])


def long(size: int, datatype: str = "INT64") -> tuple[Signature, ModelInferRequest]:
    signature = Signature(MODEL, (TensorSpec("ids", datatype, (-1, 2), pad_to=(16, 300), pad_value=3),), ONE.outputs, 4)
    message = ModelInferRequest(model_name=MODEL)
    array = np.arange(3 * size * 2).reshape(3, size, 2).astype(NUMPY_DTYPES[datatype])
    fill(message, signature.inputs[0], array, typed=False)
    return signature, message


@pytest.mark.parametrize("datatype", ["UINT8", "FP16", "INT32", "INT64"])
def test_padded_rows_in_any_pieces(datatype: str) -> None:
    for size, size_class in ((0, 0), (16, 0), (17, 1), (299, 1), (300, 1)):
        signature, message = long(size, datatype)
        data = message.SerializeToString()
        for step in (1, 7, len(data)):
            for compact in (False, True):
                plain = agreed(signature, [data[at : at + step] for at in range(0, len(data), step)], compact=compact)
                assert plain is not None
                assert plain["size_class"] == size_class


def test_sizes_above_the_largest_are_left_to_python_which_refuses_them() -> None:
    signature, message = long(301)
    assert agreed(signature, [message.SerializeToString()]) is None
    with pytest.raises(InvalidRequest, match=r"input 'ids' has size 301 in shape \[3,301,2\], but its size must be <= 300"):
        check(decode(message, 5, None), signature)
