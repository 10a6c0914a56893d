"""A server whose door is set up strictly: what its callers see, and that it leaves in order."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.frames import Peer, message
from tests.server.models import put_fake
from tests.server.serving import Serving, infer_message, refusal, until

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
SLOW = infer_message("slow", {"x": ("FP32", [1, 4], ROW.tobytes())})
TOKEN = (("authorization", "Bearer manager"),)
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Path:
    return tmp_path_factory.mktemp(f"door-{plane}")


@pytest.fixture(scope="module")
def strict(home: Path, plane: str) -> Iterator[Serving]:
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 100.0)
    put_fake(repository, "slow", 500_000.0, queue="early_drop = false\nmax_requests = 3")
    tokens = home / "tokens"
    tokens.write_text("manager\n")
    access = {"management": {"tokens_file": str(tokens)}, "health": {"header": "probe=kubelet"}}
    server = Serving(
        repository,
        home,
        data_plane=plane,
        error_codes="strict",
        compression="gzip",
        max_message_bytes=4_000_000,
        limits={"max_requests_per_caller": 2},
        access=access,
        keepalive={"time_ms": 60_000},
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def stub(strict: Serving) -> Iterator[GRPCInferenceServiceStub]:
    with strict.stub() as stub:
        yield stub


def ended_with(call: Callable[[], Any]) -> tuple[str, str, str | None]:
    """Code, text and pushback of a call that must fail."""
    with pytest.raises(grpc.RpcError) as told:
        call()
    trailing: Any = told.value.trailing_metadata()
    return told.value.code().name, str(told.value.details()), dict(trailing).get("grpc-retry-pushback-ms")


def test_a_caller_has_so_many_requests_and_another_has_its_own(stub: GRPCInferenceServiceStub) -> None:
    held = [stub.ModelInfer.future(SLOW, timeout=60) for _ in range(4)]
    refused = [each for each in held if each.exception() is not None]
    assert len(refused) == 2
    told = ended_with(refused[0].result)
    assert told == ("RESOURCE_EXHAUSTED", "exceeds the 2 requests that one caller may have open", "100")
    # all places are free again; and a name of one's own is a caller of its own
    again = [stub.ModelInfer.future(SLOW, timeout=60, metadata=(("podium-consumer", name),)) for name in "abc"]
    assert [each.result().model_name for each in again] == ["slow"] * 3


def test_a_request_that_is_too_late_is_told_so_with_its_own_code(stub: GRPCInferenceServiceStub) -> None:
    late = pb.ModelInferRequest()
    late.CopyFrom(SLOW)
    late.parameters["timeout"].int64_param = 1
    blocking = stub.ModelInfer.future(SLOW, timeout=60)
    code, _, pushback = ended_with(lambda: stub.ModelInfer(late, timeout=60))
    assert (code, pushback) == ("DEADLINE_EXCEEDED", "-1")
    assert blocking.result().model_name == "slow"


def test_each_group_has_its_rule(strict: Serving, stub: GRPCInferenceServiceStub) -> None:
    index = pb.RepositoryIndexRequest()
    assert refusal(lambda: stub.RepositoryIndex(index, timeout=30))[0] == "UNAUTHENTICATED"
    assert len(stub.RepositoryIndex(index, timeout=30, metadata=TOKEN).models) == 2
    told = refusal(lambda: stub.ServerLive(pb.ServerLiveRequest(), timeout=30))
    assert told == ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-probe'")
    with InferenceServerClient(strict.grpc_address) as client:
        assert client.is_server_ready(headers={"triton-grpc-protocol-probe": "kubelet"})
        with pytest.raises(InferenceServerException, match="expecting header 'triton-grpc-protocol-probe'"):
            client.is_server_live()
        assert client.get_model_metadata("echo").name == "echo"
        assert client.get_model_repository_index(headers={"authorization": "Bearer manager"}).models
        with pytest.raises(InferenceServerException, match="none of those that may make this call"):
            client.load_model("echo", headers={"authorization": "Bearer nobody"})
    text = strict.http("/metrics")[1]
    for labels in ('group="management",reason="token"', 'group="health",reason="header"', 'reason="caller_limit"'):
        assert any(labels in line and not line.endswith(" 0.0") for line in text.splitlines()), labels


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_compressed_both_ways(strict: Serving, algorithm: str | None) -> None:
    with InferenceServerClient(strict.grpc_address) as client:
        tensor = InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ROW)
        answer = client.infer("echo", [tensor], compression_algorithm=algorithm)
        np.testing.assert_array_equal(answer.as_numpy("echo_x"), ROW)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_a_bomb_is_not_expanded(strict: Serving, encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    """Sixty megabytes in sixty thousand bytes, twenty times at once: refused, at next to no memory."""
    bomb = compress(bytes(60 * MEGABYTE))
    process = psutil.Process(strict.process.pid)
    before = process.memory_info().rss
    body = message(bomb, flag=1)
    # as much as a connection may send before it is asked for more
    assert len(body) < 65_535
    most = 0
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(strict.grpc_address)) for _ in range(20)]
        for peer in peers:
            peer.call(1, body, (b"grpc-encoding", encoding))
        for peer in peers:
            while not (reply := peer.reply(1, 0.01)).ended:
                most = max(most, process.memory_info().rss - before)
            most = max(most, process.memory_info().rss - before)
            assert reply.status == "8"
            assert "larger than max" in dict(reply.headers)["grpc-message"]
    assert most < 60 * MEGABYTE, "less than one of them"


def test_tools_find_the_services_and_hold_no_drain_up(home: Path, tmp_path: Path, plane: str) -> None:
    server = Serving(home / "repository", tmp_path, data_plane=plane, drain_grace_s=600.0)
    try:
        with server.channel() as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert "inference.GRPCInferenceService" in database.get_services()  # its stream stays open
            server.stop()
    finally:
        server.kill()


def test_reflection_can_be_left_out_and_is_behind_its_group(home: Path, tmp_path: Path, plane: str) -> None:
    without = Serving(home / "repository", tmp_path, data_plane=plane, reflection=False)
    try:
        with without.channel() as channel, pytest.raises(grpc.RpcError) as told:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        without.stop()


def test_after_all_of_that_the_server_answers(strict: Serving, stub: GRPCInferenceServiceStub) -> None:
    until(lambda: strict.http("/readyz")[0] == 200, "readiness")
    echo = infer_message("echo", {"x": ("FP32", [1, 4], ROW.tobytes())})
    assert stub.ModelInfer(echo, timeout=60).raw_output_contents[0] == ROW.tobytes()
