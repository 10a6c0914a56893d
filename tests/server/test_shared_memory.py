"""Inputs and outputs in memory that callers share, through NVIDIA's client and a real server: nothing they do to it harms
the server, or anybody else.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import helper
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm

from protos import grpc_service_pb2 as pb
from server.core.tensors import Array
from tests.server.models import QUICK, graph, put, put_fake, put_identity, put_simple, scaling
from tests.server.serving import Serving, admitted, counts, executing, infer_message, refusal, until

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.full((1, 16), 100, dtype=np.int32)
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
_numbers = itertools.count()


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("sharing")
    repository = home / "repository"
    repository.mkdir()
    put_simple(repository)
    put_identity(repository, "BYTES")
    put_fake(repository, "slow", 800_000.0, queue="early_drop = false")
    put_fake(repository, "hasty", 800_000.0, queue="default_timeout_us = 100000\nearly_drop = false")
    same = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": ("FP32", ["N", 4])}, {"y": ("FP32", ["N", 4])})
    labelled = "max_batch = 8\n" + QUICK + '[[outputs]]\nname = "y"\nlabels = "animals.txt"\n'
    put(repository, "animals", 1, {"model.onnx": same, "animals.txt": b"cat\ndog\n\nhen\n"}, labelled)
    server = Serving(
        repository,
        home,
        data_plane=plane,
        control_mode="explicit",
        load_models=["*"],
        allow_client_shm=True,
        libcudart="none here",
    )
    try:
        yield server
        assert held(server) == []
    finally:
        server.stop()


@pytest.fixture
def client(sharing: Serving) -> Iterator[Any]:
    with triton.InferenceServerClient(sharing.grpc_address) as client:
        yield client
        client.unregister_system_shared_memory()
    # whatever a test did, nothing of it is still open
    until(lambda: held(sharing) == [], "all regions are closed")


def held(server: Serving) -> list[str]:
    """The shared memory that the server has open."""
    found = []
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(link.readlink()))
    return sorted(name for name in found if name.startswith("/dev/shm/"))


class Shared:
    """Files of a caller, registered under their own names."""

    def __init__(self, client: Any, stack: ExitStack) -> None:
        self.client = client
        self._stack = stack
        self._handles: dict[str, Any] = {}

    def make(self, byte_size: int, *contents: Array, register: bool = True) -> str:
        name = f"podium-test-{os.getpid()}-{next(_numbers)}"
        handle = shm.create_shared_memory_region(name, "/" + name, byte_size, create_only=True)
        self._stack.callback(self._destroy, handle)
        self._handles[name] = handle
        shm.set_shared_memory_region(handle, contents)
        if register:
            self.client.register_system_shared_memory(name, "/" + name, byte_size)
        return name

    def read(self, name: str, dtype: Any, shape: list[int], offset: int = 0) -> Array:
        found: Array = shm.get_contents_as_numpy(self._handles[name], dtype, shape, offset).copy()
        return found

    def path(self, name: str) -> Path:
        return Path("/dev/shm") / name

    def _destroy(self, handle: Any) -> None:
        # a test may have taken the file away: the client's own clean-up expects it
        Path("/dev/shm", handle._shm_key.lstrip("/")).touch()
        shm.destroy_shared_memory_region(handle)


@pytest.fixture
def shared(client: Any) -> Iterator[Shared]:
    with ExitStack() as stack:
        yield Shared(client, stack)


def given(name: str, array: Array, datatype: str = "INT32") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def placed(name: str, shape: list[int], region: str, byte_size: int, offset: int = 0, datatype: str = "INT32") -> Any:
    made = triton.InferInput(name, shape, datatype)
    made.set_shared_memory(region, byte_size, offset)
    return made


def wanted(name: str, region: str, byte_size: int, offset: int = 0) -> Any:
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(region, byte_size, offset)
    return made


def told(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def still_right(client: Any) -> None:
    """A neighbour's answer."""
    answer = client.infer("simple", [given("INPUT0", A), given("INPUT1", B)])
    assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)


def test_inputs_and_outputs_each_and_together(client: Any, shared: Shared) -> None:
    inputs = shared.make(128, A, B)
    outputs = shared.make(200)
    in_memory = [placed("INPUT0", [1, 16], inputs, 64), placed("INPUT1", [1, 16], inputs, 64, 64)]
    sent = [given("INPUT0", A), given("INPUT1", B)]
    # an input in memory first: raw contents are counted without it
    for given_inputs in (sent, in_memory, [in_memory[0], sent[1]], [sent[0], in_memory[1]]):
        answer = client.infer("simple", given_inputs)
        assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
        assert np.array_equal(answer.as_numpy("OUTPUT1"), A - B)
        shared._handles[outputs]._mpsm_handle.buf[:] = bytes(200)
        answer = client.infer(
            "simple", given_inputs, outputs=[wanted("OUTPUT0", outputs, 64, 8), triton.InferRequestedOutput("OUTPUT1")]
        )
        assert np.array_equal(shared.read(outputs, np.int32, [1, 16], 8), A + B)
        assert shared.read(outputs, np.uint8, [8]).tolist() == [0] * 8
        assert np.array_equal(answer.as_numpy("OUTPUT1"), A - B)
        raw = answer.get_response()
        assert [len(item) for item in raw.raw_output_contents] == [0, 64]
        assert raw.outputs[0].parameters["shared_memory_region"].string_param == outputs
        assert list(raw.outputs[0].shape) == [1, 16]
    client.infer("simple", in_memory, outputs=[wanted("OUTPUT0", inputs, 64), wanted("OUTPUT1", inputs, 64, 64)])
    assert np.array_equal(shared.read(inputs, np.int32, [1, 16]), A + B)
    assert np.array_equal(shared.read(inputs, np.int32, [1, 16], 64), A - B)


def test_strings(client: Any, shared: Shared) -> None:
    texts = np.array([[b"a", "zwölf".encode()], [b"", b"\0\1"]], dtype=object)
    raw = serialize_byte_tensor(texts)
    size = len(raw.item())
    region, outputs = shared.make(size, raw), shared.make(100)
    answer = client.infer(
        "identity_bytes", [placed("IN", [2, 2], region, size, datatype="BYTES")], outputs=[wanted("OUT", outputs, 100)]
    )
    assert shared.read(outputs, np.object_, [2, 2]).tolist() == texts.tolist()
    assert answer.get_output("OUT").parameters["shared_memory_byte_size"].int64_param == size
    code, text = told(lambda: client.infer("identity_bytes", [placed("IN", [2, 2], region, size - 1, datatype="BYTES")]))
    assert code == "INVALID_ARGUMENT"
    assert "incomplete string data" in text


def test_registering_and_asking(client: Any, shared: Shared, sharing: Serving) -> None:
    assert "system_shared_memory" in client.get_server_metadata().extensions
    # perf_analyzer's first calls
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    assert dict(client.get_cuda_shared_memory_status().regions) == {}
    name = shared.make(64)
    other = shared.make(64, register=False)
    client.register_system_shared_memory(other, "/" + other, 32, 32)
    found = client.get_system_shared_memory_status().regions
    assert {key: (each.key, each.offset, each.byte_size) for key, each in found.items()} == {
        name: ("/" + name, 0, 64),
        other: ("/" + other, 32, 32),
    }
    assert list(client.get_system_shared_memory_status(other).regions) == [other]
    assert told(lambda: client.get_system_shared_memory_status("x")) == (
        "NOT_FOUND",
        "Unable to find system shared memory region: 'x'",
    )
    assert told(lambda: client.register_system_shared_memory(name, "/" + name, 64)) == (
        "ALREADY_EXISTS",
        f"shared memory region '{name}' already in manager",
    )
    assert told(lambda: client.register_system_shared_memory("r", "/nothing-there", 64)) == (
        "INTERNAL",
        "Unable to open shared memory region: '/nothing-there'",
    )
    assert told(lambda: client.register_system_shared_memory("r", "/" + name, 1, 64)) == (
        "INVALID_ARGUMENT",
        "failed to register shared memory region 'r': invalid args",
    )
    assert told(lambda: client.register_cuda_shared_memory("r", b"AAAA", 0, 64)) == (
        "UNIMPLEMENTED",
        "failed to register CUDA shared memory region: 'r', GPUs not supported",
    )
    assert held(sharing) == sorted(str(shared.path(each)) for each in (name, other))
    client.unregister_system_shared_memory("never seen")
    client.unregister_system_shared_memory(other)
    assert list(client.get_system_shared_memory_status().regions) == [name]


def test_places_beyond_their_region(client: Any, shared: Shared) -> None:
    region = shared.make(128, A, B)
    ok = placed("INPUT1", [1, 16], region, 64, 64)
    for byte_size, offset, text in (
        (64, 128, f"Invalid offset for shared memory region: '{region}'"),
        (64, -4, f"Invalid offset for shared memory region: '{region}'"),
        (64, 2**63 - 1, f"Invalid offset for shared memory region: '{region}'"),
        (65, 64, f"Invalid offset + byte size for shared memory region: '{region}'"),
        (2**63 - 1, 1, f"Invalid offset + byte size for shared memory region: '{region}'"),
        (-64, 0, f"Invalid offset + byte size for shared memory region: '{region}'"),
    ):
        message = infer_message("simple", {})
        for name, (size, at) in {"INPUT0": (byte_size, offset), "INPUT1": (64, 64)}.items():
            tensor = message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            tensor.parameters["shared_memory_region"].string_param = region
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            tensor.parameters["shared_memory_offset"].int64_param = at
        assert told_raw(client, message) == ("INVALID_ARGUMENT", text)
    assert told(lambda: client.infer("simple", [placed("INPUT0", [1, 16], "x", 64), ok])) == (
        "NOT_FOUND",
        "Unable to find shared memory region: 'x'",
    )
    code, text = told(lambda: client.infer("simple", [placed("INPUT0", [1, 16], region, 0), ok]))
    assert (code, text.split("] ")[1]) == (
        "INVALID_ARGUMENT",
        "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 0",
    )
    still_right(client)


def told_raw(client: Any, message: pb.ModelInferRequest) -> tuple[str, str]:
    """The refusal of a message that the client would not make."""
    call = client._channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    return refusal(lambda: call(message))


def test_an_answer_that_does_not_fit_is_written_nowhere(client: Any, shared: Shared) -> None:
    large, small = shared.make(64), shared.make(8)
    sent = [given("INPUT0", A), given("INPUT1", B)]
    assert told(lambda: client.infer("simple", sent, outputs=[wanted("OUTPUT0", large, 64), wanted("OUTPUT1", small, 8)])) == (
        "INTERNAL",
        "shared memory size specified with the request for output 'OUTPUT1' (8 bytes) should be at least 64 bytes to hold"
        " the results",
    )
    code, text = told(
        lambda: client.infer("simple", sent, outputs=[wanted("OUTPUT0", large, 64), wanted("OUTPUT1", large, 64)])
    )
    assert (code, text) == ("INVALID_ARGUMENT", f"outputs overlap in shared memory: regions '{large}' and '{large}'")
    assert shared.read(large, np.uint8, [64]).tolist() == [0] * 64
    assert shared.read(small, np.uint8, [8]).tolist() == [0] * 8


def slow_request(region: str, value: int, model: str = "slow") -> pb.ModelInferRequest:
    row = np.full(4, value, np.float32).tobytes()
    message = infer_message(model, {"x": ("FP32", [1, 4], row)})
    output = message.outputs.add(name="echo_x")
    output.parameters["shared_memory_region"].string_param = region
    output.parameters["shared_memory_byte_size"].int64_param = 16
    return message


def test_a_region_may_be_unregistered_and_its_name_used_again_at_any_moment(
    client: Any, shared: Shared, sharing: Serving
) -> None:
    first, second = shared.make(16), shared.make(64, register=False)
    with sharing.stub() as stub:
        call = executing(sharing, stub, slow_request(first, 7))
        client.unregister_system_shared_memory(first)
        client.register_system_shared_memory(first, "/" + second, 64)
        later = stub.ModelInfer.future(slow_request(first, 8), timeout=60)
        shared.path(first).unlink()
        assert held(sharing) == sorted([f"{shared.path(first)} (deleted)", str(shared.path(second))])
        assert list(call.result().raw_output_contents) == [b""]
        assert list(later.result().raw_output_contents) == [b""]
    # each went where it was to go when it was admitted
    assert shared.read(first, np.float32, [4]).tolist() == [7] * 4
    assert shared.read(second, np.float32, [4]).tolist() == [8] * 4
    until(lambda: held(sharing) == [str(shared.path(second))], "the first one is closed")


def test_a_file_that_is_cut_fails_the_requests_that_use_it_and_nothing_else(
    client: Any, shared: Shared, sharing: Serving
) -> None:
    region, inputs = shared.make(16), shared.make(128, A, B)
    gone = f"shared memory region '{region}' is smaller than it was when it was registered"
    with sharing.stub() as stub:
        call = executing(sharing, stub, slow_request(region, 7))
        os.truncate(shared.path(region), 15)
        assert refusal(call.result) == ("INTERNAL", gone)
        assert refusal(lambda: stub.ModelInfer(slow_request(region, 7))) == ("INTERNAL", gone)
    assert shared.path(region).stat().st_size == 15
    os.truncate(shared.path(inputs), 100)
    in_memory = [placed("INPUT0", [1, 16], inputs, 64), placed("INPUT1", [1, 16], inputs, 64, 64)]
    assert told(lambda: client.infer("simple", in_memory))[0] == "INTERNAL"
    answer = client.infer("simple", [in_memory[0], given("INPUT1", B)])
    assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
    shared.path(inputs).unlink()
    answer = client.infer("simple", [in_memory[0], given("INPUT1", B)])
    assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
    still_right(client)


def test_whoever_leaves_fails_or_is_refused_holds_no_region(client: Any, shared: Shared, sharing: Serving) -> None:
    region = shared.make(16)
    with sharing.stub() as stub:
        before = counts(stub, "slow")
        left = executing(sharing, stub, slow_request(region, 1))
        waits = stub.ModelInfer.future(slow_request(region, 2), timeout=60)
        late = stub.ModelInfer.future(slow_request(region, 3, "hasty"), timeout=60)
        assert refusal(late.result) == ("UNAVAILABLE", "Request timeout expired")
        until(lambda: admitted(sharing, "slow") == (1, 2), "one runs, one waits")
        client.unregister_system_shared_memory(region)
        assert held(sharing) == [str(shared.path(region))]
        assert refusal(lambda: stub.ModelInfer(slow_request(region, 4))) == (
            "NOT_FOUND",
            f"Unable to find shared memory region: '{region}'",
        )
        for call in (left, waits):
            call.cancel()
            with pytest.raises(grpc.FutureCancelledError):
                call.result()
        until(lambda: held(sharing) == [], "the region is closed")
        until(lambda: counts(stub, "slow")[3] == before[3] + 1, "the batch has ended")
    assert shared.read(region, np.float32, [4]).tolist() == [0] * 4


def test_a_server_shares_nothing_unless_it_is_told_to(serving: Serving) -> None:
    with triton.InferenceServerClient(serving.grpc_address) as client:
        assert dict(client.get_system_shared_memory_status().regions) == {}
        for call in (
            lambda: client.register_system_shared_memory("r", "/r", 1),
            client.unregister_system_shared_memory,
            lambda: client.register_cuda_shared_memory("r", b"AAAA", 0, 64),
            client.unregister_cuda_shared_memory,
        ):
            assert told(call) == ("UNIMPLEMENTED", DISABLED)
        extensions = client.get_server_metadata().extensions
        assert "classification" in extensions
        assert "system_shared_memory" not in extensions


def classes(client: Any, model: str, output: str, count: int, values: Array) -> Any:
    asked = [given("x", values, "FP32")]
    return client.infer(model, asked, outputs=[triton.InferRequestedOutput(output, class_count=count)]).as_numpy(output)


def test_classes_and_their_labels(client: Any) -> None:
    values = np.array([[0.1, 0.4, 0.2, 0.3], [4, 3, 2, np.nan]], np.float32)
    assert classes(client, "animals", "y", 2, values).tolist() == [
        [b"0.400000:1:dog", b"0.300000:3:hen"],
        [b"4.000000:0:cat", b"3.000000:1:dog"],
    ]
    assert classes(client, "animals", "y", 9, values[1:]).tolist() == [
        [b"4.000000:0:cat", b"3.000000:1:dog", b"2.000000:2", b"nan:3:hen"]
    ]
    (described,) = client.get_model_config("animals").config.output
    assert described.label_filename == "animals.txt"


def test_labels_come_with_a_load_and_must_be_there(client: Any) -> None:
    config = {"output": [{"name": "y", "label_filename": "y.txt"}]}
    files = {"file:1/model.onnx": scaling(2.0), "file:1/y.txt": b"only\n"}
    client.load_model("brought", config=json.dumps(config), files=files)
    assert classes(client, "brought", "y", 1, np.array([[1.5]], np.float32)).tolist() == [[b"3.000000:0:only"]]
    config["output"][0]["label_filename"] = "lost.txt"
    code, text = told(lambda: client.load_model("brought", config=json.dumps(config), files=files))
    assert code == "INTERNAL"
    assert "labels: labels 'lost.txt' are neither in the version's folder nor in the model's" in text
    # what served before still does
    assert classes(client, "brought", "y", 1, np.array([[1.5]], np.float32)).tolist() == [[b"3.000000:0:only"]]
    client.unload_model("brought")
