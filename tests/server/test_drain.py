"""How a server leaves, and how one that cannot start says so."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import put_fake, put_loop
from tests.server.serving import ROOT, Serving, infer_message, until

ROW = {"x": ("FP32", [1, 4], bytes(range(16)))}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    repository.mkdir()
    put_fake(repository, "slow", 700_000.0)
    put_fake(repository, "echo", 500.0, max_batch=16)
    return repository


def test_it_says_so_first_serves_on_and_finishes_what_it_took(repository: Path, tmp_path: Path, plane: str) -> None:
    # nothing but the signal may be what changes its health
    server = Serving(repository, tmp_path, data_plane=plane, drain_delay_s=300.0, rescan_s=300.0)

    async def main() -> None:
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            stub, health = GRPCInferenceServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            # some callers watch the whole server, some its service, one a service that is none
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", *[SERVICE] * 2)]
            stranger = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert [(await watch.read()).status for watch in watches] == [SERVING] * 3
            assert (await stranger.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="unknown service 'nobody'"):
                await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
            watches.pop().cancel()  # one that leaves takes nothing from the others
            server.terminate()
            assert [(await watch.read()).status for watch in watches] == [NOT_SERVING] * 2
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            status, page = await asyncio.to_thread(server.http, "/readyz")
            assert status == 503
            assert "the server is draining" in page
            assert (await asyncio.to_thread(server.http, "/healthz"))[0] == 200
            # and still it serves, for as long as the delay lasts
            answers = await asyncio.gather(*(stub.ModelInfer(infer_message("echo", ROW)) for _ in range(200)))
            assert {answer.raw_output_contents[0] for answer in answers} == {ROW["x"][2]}
            admitted = [stub.ModelInfer(infer_message("slow", ROW)) for _ in range(3)]
            # a call on the same connection is answered only after those were admitted
            await stub.ModelReady(pb.ModelReadyRequest(name="slow"))
            server.terminate()  # the second one ends the delay
            assert [await watch.read() for watch in watches] == [grpc.aio.EOF] * 2
            assert [list((await call).raw_output_contents) for call in admitted] == [[ROW["x"][2]]] * 3

    try:
        asyncio.run(main())
        assert server.wait() == 0
    finally:
        server.stop()
    events = [line["event"] for line in server.lines()]
    assert events[-1] == "stopped"
    assert server.lines()[-1]["everything_closed"] is True


SERVICE = "inference.GRPCInferenceService"


def test_nobody_who_was_admitted_is_lost_when_it_leaves_under_load(repository: Path, tmp_path: Path, plane: str) -> None:
    """Callers that look away once the server says so see no failure at all."""
    server = Serving(repository, tmp_path, data_plane=plane, grpc_address=f"unix:{tmp_path}/s", drain_delay_s=1.0)

    async def caller(number: int) -> int:
        calls = 0
        async with grpc.aio.insecure_channel(server.grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = GRPCInferenceServiceStub(channel)
            while (await stub.ServerReady(pb.ServerReadyRequest())).ready:
                for _ in range(5):
                    answer = await stub.ModelInfer(infer_message("echo", ROW))
                    assert list(answer.raw_output_contents) == [ROW["x"][2]]
                    calls += 1
                if number == 0 and calls == 50:
                    server.terminate()
        return calls

    async def main() -> list[int]:
        return await asyncio.gather(*map(caller, range(8)))

    try:
        assert min(asyncio.run(main())) > 0
    finally:
        server.stop()


def test_grace_has_an_end(repository: Path, tmp_path: Path, plane: str) -> None:
    put_fake(repository, "endless", 1_500_000.0)
    server = Serving(repository, tmp_path, data_plane=plane, drain_grace_s=0.1)
    with server.stub() as stub:
        call = stub.ModelInfer.future(infer_message("endless", ROW))
        stub.ModelReady(pb.ModelReadyRequest(name="endless"))
        server.terminate()
        with pytest.raises(grpc.RpcError) as told:
            call.result()
    assert told.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    server.stop()


def test_a_load_that_takes_long_does_not_keep_it(repository: Path, tmp_path: Path, plane: str) -> None:
    put_fake(repository, "endless", 300_000_000.0)
    server = Serving(repository, tmp_path, data_plane=plane, control_mode="explicit", load_models=["echo"], drain_grace_s=0.1)
    try:
        with server.stub() as stub:
            load = stub.RepositoryModelLoad.future(pb.RepositoryModelLoadRequest(model_name="endless"))
            until(lambda: any(line["event"] == "endless:1: loading" for line in server.lines()), "the load has begun")
            server.terminate()
            told: Any = load.exception()
            assert told.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    finally:
        server.stop()


def test_a_backend_that_never_returns_does_not_keep_it_or_crash_it(repository: Path, tmp_path: Path, plane: str) -> None:
    put_loop(repository, "stuck")
    server = Serving(repository, tmp_path, data_plane=plane, drain_grace_s=0.1)
    inputs = {"x": ("FP32", [8, 8], bytes(256)), "n": ("INT64", [1], (2**60).to_bytes(8, "little"))}
    try:
        with server.stub() as stub:
            call = stub.ModelInfer.future(infer_message("stuck", inputs))
            stub.ModelReady(pb.ModelReadyRequest(name="stuck"))
            server.terminate()
            with pytest.raises(grpc.RpcError):
                call.result()
    finally:
        server.stop()  # status 0: the interpreter did not abort over a thread that is still inside the backend
    assert server.lines()[-1] == {**server.lines()[-1], "event": "stopped", "everything_closed": False}


def refused(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of a server that must not start."""
    done = subprocess.run(
        [sys.executable, "-m", "server", "serve", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_an_address_that_is_taken(repository: Path, tmp_path: Path, plane: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        always = ("--repository", str(repository), "--data-plane", plane)
        status, text = refused(*always, "--grpc-address", taken, "--http-address", "127.0.0.1:0")
        assert (status, "cannot serve" in text, taken in text) == (1, True, True), text
        status, text = refused(*always, "--grpc-address", f"unix:{tmp_path}/s", "--http-address", taken)
        assert (status, "address already in use" in text) == (1, True), text
        assert "Traceback" not in text


def test_a_live_unix_socket_is_not_taken_over_and_a_stale_one_is(repository: Path, tmp_path: Path, plane: str) -> None:
    path = tmp_path / "podium.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # closed without being removed, as after a crash
    server = Serving(repository, tmp_path, data_plane=plane, grpc_address=f"unix:{path}")
    addresses = ("--grpc-address", f"unix:{path}", "--http-address", "127.0.0.1:0")
    always = ("--repository", str(repository), "--data-plane", plane, *addresses)
    try:
        status, text = refused(*always)
        assert (status, f"another server listens on '{path}'" in text) == (1, True), text
        with server.stub() as stub:
            assert list(stub.ModelInfer(infer_message("echo", ROW)).raw_output_contents) == [ROW["x"][2]]
    finally:
        server.stop()
    assert not path.exists()
    path.write_text("precious")
    status, text = refused(*always)
    assert (status, "is there and is no socket" in text) == (1, True), text
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("repository = 'r'\ndrain_dealy_s = 1\n", "drain_dealy_s: Extra inputs are not permitted"),
        ("repository = 'r'\ndrain_delay_s = -1\n", "drain_delay_s: Input should be greater than or equal to 0"),
        ("grpc_address = '127.0.0.1:0'\n", "repository: Field required"),
        ("repository = 'r'\nhttp_address = 'nowhere'\n", "http_address: 'nowhere' is not an address"),
        ("repository = \n", "config.toml"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, config: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(config)
    status, text = refused("--config", str(path))
    assert (status, words in text) == (2, True), text
    assert "Traceback" not in text


def test_the_first_signal_may_come_at_any_time(repository: Path, tmp_path: Path, plane: str) -> None:
    server: Any = Serving(repository, tmp_path, data_plane=plane, ready=False)
    server.stop()
    with contextlib.suppress(ValueError):
        assert server.lines()[-1]["event"] == "stopped"
