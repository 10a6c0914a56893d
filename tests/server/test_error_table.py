"""Triton's table of errors, row by row: the code and the whole text, by Triton's codes and by the strict ones.

The rows are those of test_errors.py and of error_rows.py; what ends a server, or needs another one, has a test of its own.
"""

import json
import queue
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.core.errors import InvalidRequest
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.transport import codec
from server.transport.access import GROUPS
from tests.server.error_rows import REGION, REGION_BYTES, ROWS, X4, loading, register
from tests.server.models import QUICK, put, put_fake, put_identity, put_others, put_scaling, put_simple, remove
from tests.server.serving import Serving, infer_message, refusal
from tests.server.streaming import LEAVING, Open, put_repeat, said
from tests.server.test_errors import CASES

STRICT = {"Exceeds maximum queue size": "RESOURCE_EXHAUSTED", "Request timeout expired": "DEADLINE_EXCEEDED"}
"""Texts that have another code with `error_codes = "strict"`; all others have the same one."""


def put_models(repository: Path) -> None:
    put_simple(repository)
    put_identity(repository, "BYTES")
    put_identity(repository, "INT32")
    put_others(repository)
    put_repeat(repository, "repeat")
    put_fake(repository, "narrow", 300_000.0, queue="max_requests = 1")
    put_fake(repository, "late", 1000.0, queue="early_drop = false")
    put_fake(repository, "slow", 2_000_000.0, queue="early_drop = false")
    optional = [{"name": name, "datatype": "FP32", "shape": [1], "optional": name != "a"} for name in ("a", "b")]
    fake = {"inputs": optional, "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}]}
    put(repository, "lenient", 1, {"fake.json": json.dumps(fake).encode()}, "max_batch = 4\n" + QUICK)


@pytest.fixture(scope="module", params=["triton", "strict"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    """Explicit mode, clients may share memory, one region is registered."""
    home = tmp_path_factory.mktemp("table")
    repository = home / "repository"
    repository.mkdir()
    put_models(repository)
    good = sorted(folder.name for folder in repository.iterdir())
    everything = QUICK + '[versions]\npolicy = "all"\n'
    put_scaling(repository, "halves", 1, everything)
    put(repository, "halves", 2, {"fake.json": b"{"}, None)
    put(repository, "broken", 1, {"readme": b"no model"}, 'backend = "fake"\n' + QUICK)
    put_scaling(repository, "empty", 1)
    remove(repository / "empty", "1")
    made = Path("/dev/shm", REGION)
    made.write_bytes(bytes(REGION_BYTES))
    server = Serving(
        repository,
        home,
        error_codes=request.param,
        control_mode="explicit",
        load_models=good,
        allow_client_shm=True,
        libcudart="none here",
        data_plane=plane,
    )
    try:
        with server.stub() as stub:
            for name in ("halves", "broken"):
                refusal(lambda name=name: stub.RepositoryModelLoad(loading(name)))  # type: ignore[misc]
            register(REGION)(stub)
        yield server
    finally:
        made.unlink()
        server.stop()


@pytest.fixture
def stub(server: Serving) -> Iterator[GRPCInferenceServiceStub]:
    with server.stub() as stub:
        yield stub


def in_force(server: Serving, code: str, text: str) -> str:
    if "strict" not in (server.repository.parent / "config.toml").read_text():
        return code
    return next((strict for ending, strict in STRICT.items() if text.endswith(ending)), code)


@pytest.mark.parametrize("row", ROWS)
def test_rows(server: Serving, stub: GRPCInferenceServiceStub, row: str) -> None:
    call, code, text, _ = ROWS[row]
    assert refusal(lambda: call(stub)) == (in_force(server, code, text), text)


@pytest.mark.parametrize("case", CASES)
def test_the_rows_of_a_plain_server_have_the_same_codes(server: Serving, stub: GRPCInferenceServiceStub, case: str) -> None:
    message, code, text = CASES[case]
    assert refusal(lambda: stub.ModelInfer(message, timeout=60)) == (code, text)


@pytest.mark.parametrize("case", CASES)
def test_a_stream_tells_the_same_and_goes_on(stub: GRPCInferenceServiceStub, case: str) -> None:
    message, _, text = CASES[case]
    good = infer_message("late", X4, id="good")
    got = list(stub.ModelStreamInfer(iter([message, good]), timeout=60))
    assert [(each.error_message, said(each)) for each in got] == [(text, f"{message.id}!"), ("", "good")]


def client_refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as told:
        call()
    return str(told.value.status()).removeprefix("StatusCode."), str(told.value.message())


def triton_input() -> Any:
    tensor = InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    return tensor


def test_what_clients_say_themselves(server: Serving) -> None:
    """The slow one is being executed: nobody but the client ends the call."""
    results: Any = queue.SimpleQueue()
    with InferenceServerClient(server.grpc_address) as client:
        deadline = client_refusal(lambda: client.infer("slow", [triton_input()], client_timeout=0.3))
        assert deadline == ("DEADLINE_EXCEEDED", "Deadline Exceeded")
        call = client.async_infer("slow", [triton_input()], lambda result, error: results.put((result, error)))
        call.cancel()
        result, error = results.get(timeout=30)
        assert result is None
        assert (error.status(), error.message()) == ("StatusCode.CANCELLED", "Locally cancelled by application!")


def answers_to(call: Any, metadata: Any) -> list[Any]:
    return list(call(iter([b""]), metadata=metadata, timeout=30))


def test_every_call_of_a_restricted_group_names_its_header(tmp_path: Path, plane: str) -> None:
    """All calls there are, before anything of them is read: an empty body would be another error, or none."""
    repository = tmp_path / "repository"
    repository.mkdir()
    put_fake(repository, "late", 1000.0)
    groups = sorted(set(GROUPS.values()))
    server = Serving(
        repository, tmp_path, data_plane=plane, access={group: {"header": f"{group}-key=secret"} for group in groups}
    )
    try:
        with server.channel() as channel:
            anything: Any = channel
            # newer versions of gRPC's health service have this one; the one that is served has not
            served = {method: group for method, group in GROUPS.items() if not method.endswith("/List")}
            for method, group in served.items():
                call = anything.stream_stream(f"/{method}")
                text = f"This protocol is restricted, expecting header 'triton-grpc-protocol-{group}-key'"
                for metadata in ((), ((f"triton-grpc-protocol-{group}-key", "wrong"),), (("authorization", "secret"),)):
                    assert refusal(partial(answers_to, call, metadata)) == ("UNAVAILABLE", text), method
    finally:
        server.stop()


def test_a_server_that_leaves(tmp_path: Path, plane: str) -> None:
    """Triton answers new calls on an old connection itself. Here gRPC says that the connection ends, and the client's next
    attempt finds nobody: another text, the same code, and a client with other servers to ask goes there by itself.
    """
    repository = tmp_path / "repository"
    repository.mkdir()
    put_fake(repository, "slow", 1_500_000.0)
    put_fake(repository, "late", 1000.0)
    server = Serving(repository, tmp_path, data_plane=plane, drain_grace_s=300.0)
    try:
        with server.stub() as stub:
            stream = Open(stub)
            stream.send(infer_message("late", X4, id="a"))
            assert said(next(stream.call)) == "a"
            admitted = stub.ModelInfer.future(infer_message("slow", X4), timeout=60)
            stub.ModelReady(pb.ModelReadyRequest(name="slow"))
            server.terminate()
            server.wait_for("draining")
            told = refusal(lambda: next(stream.call))
            assert told == ("UNAVAILABLE", LEAVING)
            stream.half_close()
            code, _ = refusal(lambda: stub.ModelInfer(infer_message("late", X4), timeout=60))
            assert code == "UNAVAILABLE"
            assert list(admitted.result().raw_output_contents) == [bytes(16)]
        assert server.wait() == 0
    finally:
        server.stop()


def test_an_answer_that_no_message_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit made small: the real one would take 4 GB. That it is Triton's is stated first."""
    assert codec.MAX_RESPONSE_BYTES == 2_147_483_647
    specs = (TensorSpec("y", "FP32", (4,)),)
    outputs: dict[str, Any] = {"y": np.zeros((1, 4), np.float32)}
    signature = Signature("m", (), specs, 1)
    monkeypatch.setattr(codec, "MAX_RESPONSE_BYTES", 20)
    with pytest.raises(InvalidRequest) as told:
        codec.encode("", VersionKey("m", 1), signature, (), outputs)
    size = str(told.value).split()[4]
    assert str(told.value) == f"Response has byte size {size} which exceeds gRPC's byte size limit 20."
    assert int(size) >= 16
