"""Requests and answers survive the wire in both directions, and a message of any form gets a clear answer."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult, service_pb2
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import serialize_byte_tensor

from protos.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from server.core.errors import BackendFailed, InvalidRequest, NotFound, PodiumError, SharedMemoryFailed, Unsupported
from server.core.requests import InferRequest, Place, Target
from server.core.signature import Signature, check
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec
from server.core.versions import VersionKey
from server.transport import codec
from server.transport.codec import decode, encode
from tests.transport.regions import Memory, Region

KEY = VersionKey("m", 3)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


def message(**fields: Any) -> ModelInferRequest:
    return ModelInferRequest(model_name="m", **fields)


def one_input(datatype: str = "FP32", **fields: Any) -> ModelInferRequest:
    made = message(**fields)
    made.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    return made


def typed(datatype: str, **contents: Any) -> ModelInferRequest:
    made = one_input(datatype)
    made.inputs[0].contents.CopyFrom(InferTensorContents(**contents))
    return made


def decoded(made: ModelInferRequest) -> InferRequest:
    return decode(made, 5, None)


def refusal(made: ModelInferRequest, kind: type[PodiumError] = InvalidRequest) -> str:
    with pytest.raises(PodiumError) as caught:
        decoded(made)
    assert type(caught.value) is kind
    return str(caught.value)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Array]:
    datatype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        flat = np.empty(int(np.prod(shape)), dtype=object)
        flat[:] = draw(st.lists(st.binary(max_size=5), min_size=flat.size, max_size=flat.size))
        return datatype, flat.reshape(shape)
    return datatype, draw(hnp.arrays(NUMPY_DTYPES[datatype], shape))


def their_request(datatype: str, array: Array) -> ModelInferRequest:
    """What NVIDIA's client sends for one tensor."""
    given = InferInput("x", list(array.shape), datatype)
    if datatype == "BF16":  # their own setter takes float32 only
        given._raw_content = array.tobytes()
    else:
        given.set_data_from_numpy(array)
    request = _get_inference_request(
        model_name="m",
        inputs=[given],
        model_version="2",
        request_id="id-1",
        outputs=[InferRequestedOutput("y")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=2,
        timeout=1500,
        parameters={"who": "me", "n": -4, "on": True},
    )
    return ModelInferRequest.FromString(request.SerializeToString())


@given(tensors())
def test_requests_of_their_client_arrive_whole(tensor: tuple[str, Array]) -> None:
    datatype, array = tensor
    got = decode(their_request(datatype, array), 5, 9)
    assert (got.model, got.version, got.id, got.outputs) == ("m", "2", "id-1", ("y",))
    assert (got.arrival_ns, got.deadline_ns, got.timeout_us, got.priority) == (5, 9, 1500, 2)
    assert got.parameters == {"who": "me", "n": -4, "on": True}
    signature = Signature("m", (TensorSpec("x", datatype, array.shape),), (TensorSpec("y", "FP32", (1,)),), 0)
    if 0 not in array.shape:
        checked = check(got, signature).arrays["x"]
        assert checked.dtype == array.dtype
        assert checked.shape == array.shape
        assert checked.tobytes() == array.tobytes() if datatype != "BYTES" else checked.tolist() == array.tolist()
    else:
        assert got.inputs[0].shape == array.shape
        assert len(got.inputs[0].data) == 0


@given(tensors(), st.booleans())
def test_answers_reach_their_client_whole(tensor: tuple[str, Array], transposed: bool) -> None:
    datatype, array = tensor
    array = array.T if transposed else array
    signature = Signature("m", (), (TensorSpec("a", "INT8", (1,)), TensorSpec("y", datatype, array.shape)), 0)
    answer = encode("ü7", KEY, signature, ("y",), {"a": np.zeros(1, np.int8), "y": array})
    theirs = service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    assert (theirs.id, theirs.model_name, theirs.model_version) == ("ü7", "m", "3")
    assert len(theirs.raw_output_contents) == 1
    assert list(theirs.outputs[0].shape) == list(array.shape)
    if datatype == "BYTES":
        sent = serialize_byte_tensor(array)
        assert theirs.raw_output_contents[0] == (sent.item() if sent.size else b"")
    elif datatype == "BF16" or array.size == 0:
        assert theirs.raw_output_contents[0] == array.tobytes()
    else:
        got = InferResult(theirs).as_numpy("y")
        assert got.dtype == array.dtype
        assert got.tobytes() == array.tobytes()


TYPED = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 2**16 - 1]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("FP32", "fp32_contents", [1.5, float("-inf")]),
    ("FP64", "fp64_contents", [1e300, -0.1]),
    ("BYTES", "bytes_contents", [b"a\0", b"bb\0"]),
]


@pytest.mark.parametrize(("datatype", "field", "values"), TYPED)
def test_typed_contents_become_flat_arrays(datatype: str, field: str, values: list[Any]) -> None:
    data = decoded(typed(datatype, **{field: values})).inputs[0].data
    assert isinstance(data, np.ndarray)
    assert data.dtype == NUMPY_DTYPES[datatype]
    assert data.tolist() == values


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("INT8", "int_contents", [1, 128]),
        ("INT8", "int_contents", [-129, 1]),
        ("INT16", "int_contents", [2**15, 1]),
        ("UINT8", "uint_contents", [256, 0]),
        ("UINT16", "uint_contents", [2**16, 0]),
    ],
)
def test_values_that_do_not_fit_are_refused_and_not_wrapped(datatype: str, field: str, values: list[int]) -> None:
    text = refusal(typed(datatype, **{field: values}))
    assert f"'x' for model 'm' is out of range of datatype '{datatype}'" in text


@pytest.mark.parametrize("datatype", [*NUMPY_DTYPES, "FP8"])
@pytest.mark.parametrize(("carried", "field", "values"), TYPED)
def test_each_field_carries_its_datatypes_only(carried: str, field: str, values: list[Any], datatype: str) -> None:
    fitting = codec._TYPED_FIELDS[field]
    if datatype in fitting:
        assert carried in fitting
        return
    assert refusal(typed(datatype, **{field: values})) == (
        f"unexpected explicit tensor data for input tensor 'x' for model 'm' of type '{fitting[0]}',"
        f" expected datatype '{datatype}'"
    )


def test_two_typed_fields() -> None:
    made = typed("FP32", fp32_contents=[1, 2], bytes_contents=[b"x"])
    assert refusal(made) == (
        "unexpected explicit tensor data for input tensor 'x' for model 'm', binary data was already supplied."
    )


@pytest.mark.parametrize("datatype", [*NUMPY_DTYPES, "FP8"])
def test_contents_without_elements_are_no_elements(datatype: str) -> None:
    data = decoded(typed(datatype)).inputs[0].data
    assert isinstance(data, np.ndarray)
    assert data.shape == (0,)


def test_raw_and_typed_contents_together() -> None:
    made = typed("FP32", fp32_contents=[1, 2])
    made.raw_input_contents.append(b"12345678")
    assert refusal(made) == "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"


def test_inputs_without_data() -> None:
    text = "unable to find data for input tensor 'x' for model 'm' in request."
    assert refusal(one_input()) == text
    made = message(raw_input_contents=[b"1"])
    made.inputs.add(name="first")
    made.inputs.add(name="x")
    assert refusal(made) == text


def test_more_raw_contents_than_inputs() -> None:
    made = one_input(raw_input_contents=[b"12345678", b""])
    assert refusal(made) == "expected 1 raw_input_contents for the inputs of model 'm', got 2"


def test_an_unknown_datatype_is_answered_by_the_check_of_the_model() -> None:
    got = decoded(one_input("FP8", raw_input_contents=[b"12"]))
    signature = Signature("m", (TensorSpec("x", "FP32", (2,)),), (), 8)
    with pytest.raises(InvalidRequest, match="data-type is 'FP8', but model 'm' expects 'FP32'"):
        check(got, signature)


def parameter(name: str, **value: Any) -> ModelInferRequest:
    made = one_input(raw_input_contents=[b"12345678"])
    for field, content in value.items():
        setattr(made.parameters[name], field, content)
    if not value:
        made.parameters[name].SetInParent()
    return made


def test_parameters() -> None:
    assert decoded(parameter("priority", uint64_param=2**64 - 1)).priority == 2**64 - 1
    assert decoded(parameter("priority", int64_param=3)).priority == 3
    assert decoded(parameter("timeout", int64_param=7)).timeout_us == 7
    assert decoded(parameter("rate", double_param=0.5)).parameters == {"rate": 0.5}
    assert decoded(parameter("triton_enable_empty_final_response", bool_param=True)).parameters == {}
    assert decoded(parameter("sequence_id", int64_param=0)).parameters == {}
    assert decoded(one_input(raw_input_contents=[b""])).parameters == {}
    for asked in (True, False):
        timed = decoded(parameter("podium_timing", bool_param=asked))
        assert (timed.timing, timed.features, timed.parameters) == (asked, False, {})
        told = decoded(parameter("podium_features", bool_param=asked))
        assert (told.timing, told.features, told.parameters) == (False, asked, {})


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (parameter("priority", string_param="1"), "'priority' parameter, expected int64_param or uint64_param."),
        (parameter("priority", int64_param=-1), "invalid value for 'priority', expected value >= 0."),
        (parameter("timeout", uint64_param=1), "invalid value type for 'timeout' parameter, expected int64_param."),
        (parameter("timeout", int64_param=-1), "invalid value for 'timeout', expected value >= 0."),
        (parameter("sequence_start", int64_param=1), "'sequence_start' parameter, expected bool_param."),
        (parameter("sequence_id", bool_param=True), "'sequence_id' parameter, expected int64_param or string_param."),
        (parameter("triton_enable_empty_final_response", int64_param=1), "expected bool_param."),
        (parameter("podium_timing", int64_param=1), "expected bool_param."),
        (parameter("podium_features", string_param="x"), "for 'podium_features' parameter, expected bool_param."),
        (
            parameter("podium_later", bool_param=True),
            "parameter keys starting with 'podium_' are reserved for this server's use. Only the following keys starting"
            " with 'podium_' are allowed: podium_features, podium_timing",
        ),
        (parameter("triton_mine", bool_param=True), "parameter keys starting with 'triton_' are reserved for Triton usage."),
        (parameter("mine", uint64_param=1), "'mine' parameter, expected int64_param, bool_param, string_param, or double"),
        (parameter("mine"), "invalid value type for 'mine' parameter"),
    ],
)
def test_parameters_of_the_wrong_kind(made: ModelInferRequest, text: str) -> None:
    assert text in refusal(made)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", {"int64_param": 4}),
        ("sequence_id", {"string_param": "s"}),
        ("sequence_start", {"bool_param": True}),
        ("sequence_end", {"bool_param": True}),
    ],
)
def test_sequences_are_refused(name: str, value: dict[str, Any]) -> None:
    text = refusal(parameter(name, **value), Unsupported)
    assert text == f"parameter '{name}': sequence batching is not supported by this server"


def put(tensor: Any, region: str, byte_size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def test_shared_memory_regions_are_unknown_where_there_are_none() -> None:
    made = one_input()
    put(made.inputs[0], "r", 8)
    assert refusal(made, NotFound) == "Unable to find shared memory region: 'r'"
    made = one_input(raw_input_contents=[b"12345678"])
    put(made.outputs.add(name="y"), "r2", 8)
    assert refusal(made, NotFound) == "Unable to find shared memory region: 'r2'"


def test_inputs_in_shared_memory_take_no_raw_contents() -> None:
    made = message(raw_input_contents=[b"raw 1", b"raw 2"])
    for name in ("a", "b", "c", "d"):
        made.inputs.add(name=name, datatype="FP32", shape=[1])
    put(made.inputs[0], "r", 4)
    put(made.inputs[2], "r", 3, 4)
    region = Region(b"0123456789")
    got = decode(made, 5, None, memory=Memory(region))
    assert [tensor.data for tensor in got.inputs] == [b"0123", b"raw 1", b"456", b"raw 2"]
    assert got.targets == {}
    region.data[0] = 0  # what was read was read
    assert got.inputs[0].data == b"0123"
    made.raw_input_contents.append(b"surplus")
    with pytest.raises(InvalidRequest, match="expected 2 raw_input_contents for the inputs of model 'm', got 3"):
        decode(made, 5, None, memory=Memory(region))
    del made.raw_input_contents[1:]
    with pytest.raises(InvalidRequest, match="unable to find data for input tensor 'd' for model 'm' in request"):
        decode(made, 5, None, memory=Memory(region))


def test_an_input_is_in_shared_memory_or_in_the_message() -> None:
    made = typed("FP32", fp32_contents=[1, 2])
    put(made.inputs[0], "r", 8)
    with pytest.raises(InvalidRequest) as caught:
        decode(made, 5, None, memory=Memory(Region(bytes(8))))
    assert str(caught.value) == ("unexpected 'content' provided when using shared memory for input tensor 'x' for model 'm'")


def test_the_inputs_of_a_request_have_a_bound_in_shared_memory_together() -> None:
    made = message()
    for name in ("a", "b"):
        put(made.inputs.add(name=name, datatype="UINT8", shape=[60]), "r", 60)
    assert len(decode(made, 5, None, memory=Memory(Region(bytes(60)), max_read_bytes=120)).inputs) == 2
    with pytest.raises(InvalidRequest, match="inputs of a request for model 'm' have more than 119 bytes in shared memory"):
        decode(made, 5, None, memory=Memory(Region(bytes(60)), max_read_bytes=119))


def test_targets_of_outputs_and_hints() -> None:
    made = one_input(raw_input_contents=[b"12345678"])
    made.inputs[0].parameters["content_type"].string_param = "np"
    made.outputs.add(name="x")
    made.outputs.add(name="y").parameters["binary_data"].bool_param = True
    made.outputs.add(name="z").parameters["classification"].int64_param = 3
    region = Region(bytes(8))
    put(made.outputs.add(name="w"), "r", 4, 2)
    got = decode(made, 5, None, memory=Memory(region))
    assert got.outputs == ("x", "y", "z", "w")
    assert got.targets == {"z": 3, "w": Place(region, 2, 4)}


SIGNATURE = Signature("m", (), (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BYTES", ())), 8)
OUTPUTS: dict[str, Array] = {
    "b": np.array([b"x", "é"], dtype=object),
    "a": np.array([[1, 2], [3, 4]], dtype=np.float32),
}


@pytest.mark.parametrize(("requested", "names"), [((), ["a", "b"]), (("b", "a"), ["b", "a"]), (("b",), ["b"])])
def test_outputs_come_in_the_requested_order_or_the_models(requested: tuple[str, ...], names: list[str]) -> None:
    answer = encode("", KEY, SIGNATURE, requested, OUTPUTS)
    assert [output.name for output in answer.outputs] == names
    raw = {"a": OUTPUTS["a"].tobytes(), "b": b"\1\0\0\0x\2\0\0\0\xc3\xa9"}
    assert list(answer.raw_output_contents) == [raw[name] for name in names]
    assert [list(output.shape) for output in answer.outputs] == [list(OUTPUTS[name].shape) for name in names]
    assert not any(output.HasField("contents") for output in answer.outputs)


def test_outputs_of_another_byte_order_are_little_endian_on_the_wire() -> None:
    swapped = {**OUTPUTS, "a": OUTPUTS["a"].astype(">f4")}
    assert encode("", KEY, SIGNATURE, (), swapped) == encode("", KEY, SIGNATURE, (), OUTPUTS)


def test_a_missing_output_is_the_models_fault() -> None:
    with pytest.raises(BackendFailed, match="model 'm' gave no output 'b'"):
        encode("", KEY, SIGNATURE, (), {"a": OUTPUTS["a"]})


def test_an_answer_larger_than_a_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    size = encode("", KEY, SIGNATURE, (), OUTPUTS).ByteSize()
    monkeypatch.setattr(codec, "MAX_RESPONSE_BYTES", size + 20)
    assert isinstance(encode("", KEY, SIGNATURE, (), OUTPUTS), ModelInferResponse)
    monkeypatch.setattr(codec, "MAX_RESPONSE_BYTES", size - 1)
    with pytest.raises(InvalidRequest, match=r"Response has byte size \d+ which exceeds gRPC's byte size limit"):
        encode("", KEY, SIGNATURE, (), OUTPUTS)


def aimed(**targets: Target) -> ModelInferResponse:
    return encode("", KEY, SIGNATURE, tuple(targets), OUTPUTS, targets, {"a": ("cat", "dog")})


def test_outputs_go_to_shared_memory_and_leave_an_empty_entry() -> None:
    first, second = Region(b"." * 20, "r1", 1), Region(b"." * 12, "r2", 2)
    answer = aimed(b=Place(first, 3, 17), a=2)
    assert answer.raw_output_contents[0] == b""
    assert first.data == b"..." + b"\1\0\0\0x\2\0\0\0\xc3\xa9" + b"." * 6
    parameters = answer.outputs[0].parameters
    assert parameters["shared_memory_region"].string_param == "r1"
    assert parameters["shared_memory_byte_size"].int64_param == 11
    assert parameters["shared_memory_offset"].int64_param == 3
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2])
    with pytest.raises(SharedMemoryFailed) as caught:
        aimed(b=Place(second, 0, 12), a=Place(first, 0, 8))
    assert str(caught.value) == (
        "shared memory size specified with the request for output 'a' (8 bytes) should be at least 16 bytes to hold the results"
    )
    assert second.data == b"." * 12  # none is written where one is refused


def test_classified_outputs_are_texts() -> None:
    answer = aimed(a=1)
    assert (answer.outputs[0].name, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("a", "BYTES", [2, 1])
    texts = [b"2.000000:1:dog", b"4.000000:1:dog"]
    assert answer.raw_output_contents[0] == b"".join(bytes([len(text), 0, 0, 0]) + text for text in texts)
    region = Region(b"." * 20)
    with pytest.raises(InvalidRequest) as caught:
        aimed(a=Place(region, 0, 20), b=1)
    assert str(caught.value) == "class result not available for output due to unsupported type 'BYTES'"
    assert region.data == b"." * 20


def test_outputs_that_overlap_or_whose_place_is_gone_are_not_written() -> None:
    one, two = Region(b"." * 30, "r1", 7, 0), Region(b"." * 30, "r2", 7, 10)
    with pytest.raises(InvalidRequest, match="outputs overlap in shared memory: regions 'r1' and 'r2'"):
        aimed(a=Place(one, 0, 30), b=Place(two, 0, 30))
    assert one.data + two.data == b"." * 60
    aimed(a=Place(one, 0, 30), b=Place(two, 6, 20))  # their places overlap, they do not
    assert one.data[:16] == OUTPUTS["a"].tobytes()
    other = Region(b"." * 30, "r3", 8, 0)
    two.lost = True
    with pytest.raises(SharedMemoryFailed):
        aimed(a=Place(other, 0, 30), b=Place(two, 0, 30))
    assert other.data == b"." * 30


def whole_messages() -> list[bytes]:
    explicit = typed("INT8", int_contents=[1, -2])
    explicit.inputs.add(name="y", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b""])
    explicit.outputs.add(name="z").parameters["hint"].int64_param = 0
    raw = one_input(raw_input_contents=[b"12345678"])
    for made in (explicit, raw):
        made.parameters["priority"].uint64_param = 3
        made.parameters["own"].double_param = 1.0
        decoded(made)
    return [explicit.SerializeToString(), raw.SerializeToString()]


@given(
    st.sampled_from(whole_messages()),
    st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=3)), max_size=6),
    st.integers(0, 8),
)
def test_damaged_messages_are_refused_or_understood(whole: bytes, changes: list[tuple[int, bytes]], cut: int) -> None:
    body = bytearray(whole)
    for position, patch in changes:
        start = position % len(body)
        body[start : start + len(patch)] = patch
    try:
        parsed = ModelInferRequest.FromString(bytes(body[: len(body) - cut]))
        got = decoded(parsed)
    except (DecodeError, PodiumError):
        return
    assert [tensor.name for tensor in got.inputs] == [tensor.name for tensor in parsed.inputs]
    assert got.outputs == tuple(output.name for output in parsed.outputs)
