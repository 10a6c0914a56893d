"""A request that asks a network for a row that its table does not have: an error on the CPU, a lost device on a GPU."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.backends.programs import small
from tests.server.lost_devices import ask, back_again, begun, row, serving, unavailable
from tests.server.models import put, put_fake
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, infer_message

OUT_OF_RANGE = 1_000_000


def repository(folder: Path, device: str) -> Path:
    made = folder / "repository"
    made.mkdir()
    settings = f'max_batch = 4\n[warmup]\nruns = 1\n[torch]\ndevice = "{device}"\n'
    for name in ("net", "other_net"):
        put(made, name, 1, {"program.pt2": small()}, settings)
    put_fake(made, "cpu", 500.0)
    return made


def look_up(model: str, code: int) -> pb.ModelInferRequest:
    codes, numbers = np.array([[code]], np.int64).tobytes(), np.zeros((1, 2), np.float32).tobytes()
    return infer_message(model, {"codes": ("INT64", [1, 1], codes), "numbers": ("FP32", [1, 2], numbers)})


def answered(stub: GRPCInferenceServiceStub, model: str) -> bytes:
    raw: bytes = stub.ModelInfer(look_up(model, 3), timeout=60).raw_output_contents[0]
    return raw


def told(server: Serving) -> grpc.RpcError:
    with server.stub() as stub, pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(look_up("net", OUT_OF_RANGE), timeout=120)
    return error.value


def test_on_the_cpu_it_is_its_callers_mistake_alone(tmp_path: Path, plane: str) -> None:
    with serving(repository(tmp_path, "cpu"), tmp_path, data_plane=plane) as server, server.stub() as stub:
        before = answered(stub, "net"), answered(stub, "other_net")
        assert told(server).code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        assert (answered(stub, "net"), answered(stub, "other_net")) == before
        assert server.http("/readyz")[0] == 200
        assert begun(server) == 1


@pytest.mark.gpu
@pytest.mark.timeout(400)
def test_on_a_gpu_the_context_is_lost_and_the_server_comes_back(tmp_path: Path, plane: str) -> None:
    with serving(repository(tmp_path, "cuda"), tmp_path, data_plane=plane) as server:
        pid = server.process.pid
        with server.stub() as stub:
            before = answered(stub, "net"), answered(stub, "other_net")
        for times in (2, 3):
            assert "CUDA" in unavailable(told(server))
            back_again(server, times)
            with server.stub() as stub:
                assert (answered(stub, "net"), answered(stub, "other_net")) == before
                assert stub.ModelInfer(ask("cpu", 5), timeout=60).raw_output_contents[0] == row(5)
        assert server.process.pid == pid
        assert value(scrape(server), "podium_device_restarts_total") == 2


@pytest.mark.gpu
@pytest.mark.timeout(400)
def test_on_a_gpu_without_restarts_nothing_on_it_is_ready_again(tmp_path: Path, plane: str) -> None:
    models = repository(tmp_path, "cuda")
    with serving(models, tmp_path, data_plane=plane, restart_on_device_loss=False) as server, server.stub() as stub:
        unavailable(told(server))
        for name, ready in (("net", False), ("other_net", False), ("cpu", True)):
            assert stub.ModelReady(pb.ModelReadyRequest(name=name)).ready is ready
        assert [server.http(page)[0] for page in ("/readyz", "/healthz")] == [503, 503]
        assert stub.ModelInfer(ask("cpu", 5), timeout=60).raw_output_contents[0] == row(5)
