"""Inputs and outputs in the memory of a GPU, through a real server and raw gRPC: only its CUDA is a double."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.utils import serialize_byte_tensor

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.core.tensors import Array
from tests.cudart import Allocation, Double
from tests.server.models import put_fake, put_identity, put_simple
from tests.server.serving import Serving, admitted, executing, infer_message, refusal, until

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.full((1, 16), 100, dtype=np.int32)


def started(home: Path, plane: str, double: Double) -> Serving:
    repository = home / "repository"
    repository.mkdir(parents=True)
    put_simple(repository)
    put_identity(repository, "BYTES")
    put_fake(repository, "slow", 1_500_000.0, queue="early_drop = false")
    chosen: dict[str, Any] = {"allow_client_shm": True, "libcudart": str(double.path)}
    # the server inherits it, and nobody else is meant
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDART_DOUBLE", str(double.folder))
        return Serving(repository, home, data_plane=plane, **chosen)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Double:
    return Double(tmp_path_factory.mktemp("cudart"))


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory, plane: str, double: Double) -> Iterator[Serving]:
    server = started(tmp_path_factory.mktemp("sharing"), plane, double)
    try:
        yield server
        assert double.open_handles() == []
    finally:
        server.stop()


@pytest.fixture
def stub(sharing: Serving, double: Double) -> Iterator[GRPCInferenceServiceStub]:
    with sharing.stub() as stub:
        yield stub
        double.works()
        stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    # whatever a test did: as many closes as opens
    until(lambda: double.open_handles() == [], "all regions are closed")


class Exported:
    """Allocations of a caller, registered under names."""

    def __init__(self, stub: GRPCInferenceServiceStub, stack: ExitStack) -> None:
        self._stub = stub
        self._stack = stack

    def make(self, name: str, byte_size: int, data: bytes = b"", device: int = 0) -> Allocation:
        made = Allocation(byte_size, device, data)
        self._stack.callback(made.free)
        register(self._stub, name, made, byte_size)
        return made


@pytest.fixture
def exported(stub: GRPCInferenceServiceStub) -> Iterator[Exported]:
    with ExitStack() as stack:
        yield Exported(stub, stack)


def register(stub: GRPCInferenceServiceStub, name: str, memory: Allocation, byte_size: int, device: int | None = None) -> None:
    stub.CudaSharedMemoryRegister(
        pb.CudaSharedMemoryRegisterRequest(
            name=name,
            raw_handle=memory.handle,
            device_id=memory.device if device is None else device,
            byte_size=byte_size,
        )
    )


def unregister(stub: GRPCInferenceServiceStub, name: str) -> None:
    stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name=name))


Tensor = pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor


def put_into(tensor: Tensor, region: str, byte_size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def simple(
    inputs: dict[str, tuple[str, int]] | None = None, outputs: dict[str, tuple[str, int]] | None = None
) -> pb.ModelInferRequest:
    """A request of `simple`: the inputs and outputs that are named are in regions, from an offset; the others are sent."""
    message = pb.ModelInferRequest(model_name="simple")
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        tensor = message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        if inputs and name in inputs:
            put_into(tensor, inputs[name][0], 64, inputs[name][1])
        else:
            message.raw_input_contents.append(value.tobytes())
    for name in ("OUTPUT0", "OUTPUT1"):
        output = message.outputs.add(name=name)
        if outputs and name in outputs:
            put_into(output, outputs[name][0], 64, outputs[name][1])
    return message


def slow_request(region: str, value: int) -> pb.ModelInferRequest:
    message = infer_message("slow", {"x": ("FP32", [1, 4], np.full(4, value, np.float32).tobytes())})
    put_into(message.outputs.add(name="echo_x"), region, 16)
    return message


def numbers(data: bytes, offset: int = 0) -> Array:
    return np.frombuffer(data, np.int32, 16, offset).reshape(1, 16)


def test_it_is_offered_and_regions_are_told(stub: GRPCInferenceServiceStub, exported: Exported) -> None:
    extensions = stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(extensions)
    # perf_analyzer's first calls
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    unregister(stub, "")
    exported.make("a", 64)
    exported.make("b", 128, device=1)
    found = stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
    assert {name: (each.device_id, each.byte_size) for name, each in found.items()} == {"a": (0, 64), "b": (1, 128)}
    assert list(stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="b")).regions) == ["b"]
    assert not stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
    unregister(stub, "never seen")
    unregister(stub, "a")
    assert list(stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions) == ["b"]


@pytest.mark.parametrize("device", [0, 1])
def test_inputs_and_outputs_each_and_together(stub: GRPCInferenceServiceStub, exported: Exported, device: int) -> None:
    exported.make("in", 128, A.tobytes() + B.tobytes(), device)
    out = exported.make("out", 200, device=device)
    both = {"INPUT0": ("in", 0), "INPUT1": ("in", 64)}
    for inputs in ({}, both, {"INPUT0": ("in", 0)}, {"INPUT1": ("in", 64)}):
        answer = stub.ModelInfer(simple(inputs))
        assert np.array_equal(numbers(answer.raw_output_contents[0]), A + B)
        out.data = bytes(200)
        answer = stub.ModelInfer(simple(inputs, {"OUTPUT0": ("out", 8)}))
        assert np.array_equal(numbers(out.data, 8), A + B)
        assert out.data[:8] + out.data[72:] == bytes(136)
        assert [len(each) for each in answer.raw_output_contents] == [0, 64]
        assert np.array_equal(numbers(answer.raw_output_contents[1]), A - B)
        told = answer.outputs[0].parameters
        assert told["shared_memory_region"].string_param == "out"
        assert (told["shared_memory_offset"].int64_param, told["shared_memory_byte_size"].int64_param) == (8, 64)
    stub.ModelInfer(simple(both, {"OUTPUT0": ("out", 0), "OUTPUT1": ("out", 64)}))
    assert np.array_equal(numbers(out.data), A + B)
    assert np.array_equal(numbers(out.data, 64), A - B)


def test_with_files_of_the_system_beside_it(stub: GRPCInferenceServiceStub, exported: Exported) -> None:
    exported.make("gpu", 128, A.tobytes())
    file = Allocation(128, 0, B.tobytes())
    name = file.text.partition(":")[2]
    stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest(name="file", key=name, byte_size=128))
    assert refusal(lambda: exported.make("file", 64)) == ("ALREADY_EXISTS", "shared memory region 'file' already in manager")
    stub.ModelInfer(simple({"INPUT0": ("gpu", 0), "INPUT1": ("file", 0)}, {"OUTPUT0": ("file", 64), "OUTPUT1": ("gpu", 64)}))
    assert np.array_equal(numbers(file.data, 64), A + B)
    assert refusal(lambda: stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="file"))) == (
        "NOT_FOUND",
        "The region named 'file' is registered as system shared memory, not CUDA shared memory",
    )
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    assert list(stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions) == ["gpu"]
    file.free()


def test_strings_and_streams(stub: GRPCInferenceServiceStub, exported: Exported) -> None:
    texts = np.array([[b"a", "zwölf".encode()], [b"", b"\0\1"]], dtype=object)
    raw: bytes = serialize_byte_tensor(texts).item()
    exported.make("in", len(raw), raw)
    out = exported.make("out", 100)
    message = pb.ModelInferRequest(model_name="identity_bytes")
    put_into(message.inputs.add(name="IN", datatype="BYTES", shape=[2, 2]), "in", len(raw))
    put_into(message.outputs.add(name="OUT"), "out", 100)
    answer = stub.ModelInfer(message)
    assert out.data == raw.ljust(100, b"\0")
    assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == len(raw)
    out.data = bytes(100)
    (streamed,) = stub.ModelStreamInfer(iter([message]))
    assert streamed.error_message == ""
    assert list(streamed.infer_response.raw_output_contents) == [b""]
    assert out.data == raw.ljust(100, b"\0")


REGISTER = "failed to register shared memory region 'r': invalid args"


def test_what_cannot_be_registered(stub: GRPCInferenceServiceStub, exported: Exported, double: Double) -> None:
    memory = exported.make("kept", 64)
    before = double.open_handles()
    assert refusal(lambda: register(stub, "kept", memory, 64)) == (
        "ALREADY_EXISTS",
        "shared memory region 'kept' already in manager",
    )
    for byte_size, device in ((65, 0), (0, 0), (2**64 - 1, 0), (64, 1), (64, 2), (64, -1), (64, 2**62)):
        assert refusal(lambda: register(stub, "r", memory, byte_size, device)) == ("INVALID_ARGUMENT", REGISTER)  # noqa: B023
    for handle in (b"", b"AAAA", bytes(64), memory.handle[:-1], memory.handle + b"\0"):
        message = pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=handle, byte_size=64)
        assert refusal(lambda: stub.CudaSharedMemoryRegister(message)) == ("INVALID_ARGUMENT", REGISTER)  # noqa: B023
    double.fails("cudaIpcOpenMemHandle", 1)
    assert refusal(lambda: register(stub, "r", memory, 64)) == ("INVALID_ARGUMENT", REGISTER)
    assert double.open_handles() == before
    assert refusal(lambda: stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="r"))) == (
        "NOT_FOUND",
        "Unable to find cuda shared memory region: 'r'",
    )


def test_places_beyond_their_region(stub: GRPCInferenceServiceStub, exported: Exported) -> None:
    memory = exported.make("r", 128, A.tobytes() + B.tobytes())
    for byte_size, offset, text in (
        (64, 128, "Invalid offset for shared memory region: 'r'"),
        (64, -4, "Invalid offset for shared memory region: 'r'"),
        (65, 64, "Invalid offset + byte size for shared memory region: 'r'"),
        (2**63 - 1, 1, "Invalid offset + byte size for shared memory region: 'r'"),
        (-64, 0, "Invalid offset + byte size for shared memory region: 'r'"),
    ):
        message = simple({"INPUT0": ("r", 0)})
        put_into(message.inputs[0], "r", byte_size, offset)
        assert refusal(lambda: stub.ModelInfer(message)) == ("INVALID_ARGUMENT", text)  # noqa: B023 - called at once
        message = simple(outputs={"OUTPUT0": ("r", 0)})
        put_into(message.outputs[0], "r", byte_size, offset)
        assert refusal(lambda: stub.ModelInfer(message)) == ("INVALID_ARGUMENT", text)  # noqa: B023
    message = simple(outputs={"OUTPUT0": ("r", 0)})
    put_into(message.outputs[0], "r", 8)
    code, text = refusal(lambda: stub.ModelInfer(message))
    assert code == "INTERNAL"
    assert text.endswith("output 'OUTPUT0' (8 bytes) should be at least 64 bytes to hold the results")
    code, text = refusal(lambda: stub.ModelInfer(simple(outputs={"OUTPUT0": ("r", 0), "OUTPUT1": ("r", 60)})))
    assert (code, text) == ("INVALID_ARGUMENT", "outputs overlap in shared memory: regions 'r' and 'r'")
    assert refusal(lambda: stub.ModelInfer(simple({"INPUT0": ("x", 0)}))) == (
        "NOT_FOUND",
        "Unable to find shared memory region: 'x'",
    )
    assert memory.data == A.tobytes() + B.tobytes()


def test_a_region_may_be_unregistered_and_its_name_used_again_at_any_moment(
    sharing: Serving, stub: GRPCInferenceServiceStub, exported: Exported, double: Double
) -> None:
    first = exported.make("r", 16)
    call = executing(sharing, stub, slow_request("r", 7))
    unregister(stub, "r")
    second = exported.make("r", 16)
    later = stub.ModelInfer.future(slow_request("r", 8), timeout=60)
    assert sorted(double.open_handles()) == sorted([first.text, second.text])
    for each in (call, later):
        assert list(each.result().raw_output_contents) == [b""]
    # each went where it was to go when it was admitted
    assert np.frombuffer(first.data, np.float32).tolist() == [7] * 4
    assert np.frombuffer(second.data, np.float32).tolist() == [8] * 4
    until(lambda: double.open_handles() == [second.text], "the first one is closed")


def test_whoever_leaves_holds_no_region(
    sharing: Serving, stub: GRPCInferenceServiceStub, exported: Exported, double: Double
) -> None:
    memory = exported.make("r", 16)
    left = executing(sharing, stub, slow_request("r", 1))
    waits = stub.ModelInfer.future(slow_request("r", 2), timeout=60)
    until(lambda: admitted(sharing, "slow") == (1, 2), "one runs, one waits")
    unregister(stub, "r")
    assert double.open_handles() == [memory.text]
    for call in (left, waits):
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
    until(lambda: double.open_handles() == [], "the region is closed")
    assert memory.data == bytes(16)


def test_a_failing_copy_is_an_error_of_one_caller(stub: GRPCInferenceServiceStub, exported: Exported, double: Double) -> None:
    exported.make("in", 64, A.tobytes())
    out = exported.make("out", 64)
    text = "shared memory region '{}' cannot be used: invalid argument (CUDA error 1)"
    double.fails("to_host", 1)
    assert refusal(lambda: stub.ModelInfer(simple({"INPUT0": ("in", 0)}))) == ("INTERNAL", text.format("in"))
    # its neighbour, which only writes
    stub.ModelInfer(simple(outputs={"OUTPUT0": ("out", 0)}))
    assert np.array_equal(numbers(out.data), A + B)
    double.works()
    double.fails("cudaStreamSynchronize", 1)
    assert refusal(lambda: stub.ModelInfer(simple(outputs={"OUTPUT0": ("out", 0)}))) == ("INTERNAL", text.format("out"))
    double.works()
    stub.ModelInfer(simple({"INPUT0": ("in", 0)}, {"OUTPUT1": ("out", 0)}))
    assert np.array_equal(numbers(out.data), A - B)


def test_a_lost_device_is_told_to_who_uses_it_and_costs_nobody_else_anything(tmp_path: Path, plane: str) -> None:
    double = Double(tmp_path / "cudart")
    server = started(tmp_path / "home", plane, double)
    lost = "cuda:1 is lost to this process: an illegal memory access was encountered (CUDA error 700)"
    with server.stub() as stub, ExitStack() as stack:
        exported = Exported(stub, stack)
        bad = exported.make("bad", 64, A.tobytes(), device=1)
        exported.make("good", 64, A.tobytes())
        double.fails("to_host", 700)
        failed = "INTERNAL", f"shared memory region 'bad' cannot be used: {lost}"
        assert refusal(lambda: stub.ModelInfer(simple({"INPUT0": ("bad", 0)}))) == failed
        double.works()
        assert refusal(lambda: stub.ModelInfer(simple({"INPUT0": ("bad", 0)}))) == failed
        assert refusal(lambda: exported.make("new", 64, device=1))[1].endswith(lost)
        answer = stub.ModelInfer(simple({"INPUT0": ("good", 0)}))
        assert np.array_equal(numbers(answer.raw_output_contents[0]), A + B)
        assert [line["event"] for line in server.lines() if line["level"] == "error"] == ["a device is lost"]
        unregister(stub, "")
        until(lambda: double.open_handles() == [bad.text], "the other one is closed, and this one cannot be")
    server.stop(errors=("a device is lost",))


def test_without_a_gpu_it_is_not_offered(tmp_path: Path, plane: str) -> None:
    double = Double(tmp_path / "cudart")
    (double.folder / "no-devices").touch()
    server = started(tmp_path / "home", plane, double)
    with server.stub() as stub:
        extensions = stub.ServerMetadata(pb.ServerMetadataRequest()).extensions
        assert "system_shared_memory" in extensions
        assert "cuda_shared_memory" not in extensions
        memory = Allocation(64)
        assert refusal(lambda: register(stub, "x", memory, 64)) == (
            "UNIMPLEMENTED",
            "failed to register CUDA shared memory region: 'x', GPUs not supported",
        )
        memory.free()
    assert server.wait_for("memory of a GPU cannot be shared")["why"] == "no GPU is there"
    server.stop()
