"""What a process keeps, and leaves behind, when it begins anew: seen from outside, on every kind of socket."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.core.restarts import VARIABLE
from server.telemetry.usage import read_usage
from tests.server.certificates import Authority, credentials
from tests.server.lost_devices import ask, back_again, break_device, lasting_addresses, row, serving, two_devices
from tests.server.serving import ROOT, Serving

SCRIPT = "import sys\nfrom server.__main__ import main\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""As an installer writes it for `podium`."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_devices(tmp_path)


def proc(server: Serving, file: str) -> str:
    return Path(f"/proc/{server.process.pid}/{file}").read_bytes().decode()


def files(server: Serving) -> dict[int, str]:
    """What each open file of the process is; a file that is gone while they are listed is none."""
    found: dict[int, str] = {}
    for path in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            found[int(path.name)] = str(path.readlink())
        except FileNotFoundError:
            continue
    return found


def signals(server: Serving) -> list[str]:
    """Masks of blocked and of ignored signals of the first thread."""
    return [line for line in proc(server, "status").splitlines() if line.startswith(("SigBlk", "SigIgn"))]


def environment(server: Serving) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in proc(server, "environ").split("\0") if pair)
    return {name: value for name, _, value in pairs if name != VARIABLE}


def test_a_script_keeps_its_command_environment_files_and_signals(repository: Path, tmp_path: Path, plane: str) -> None:
    script = tmp_path / "podium"
    script.write_text(SCRIPT)
    reading, writing = os.pipe()

    def as_a_supervisor_would() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = {
        "env": {**os.environ, "PYTHONPATH": paths, "PODIUM_TEST_OWN": "two\nlines"},
        "pass_fds": (writing,),
        "preexec_fn": as_a_supervisor_would,
    }
    command = (sys.executable, "-X", "utf8", str(script))
    try:
        with serving(repository, tmp_path, data_plane=plane, command=command, started=started) as server:
            before = proc(server, "cmdline"), environment(server), signals(server), files(server)[writing]
            with server.channel() as channel:
                assert GRPCInferenceServiceStub(channel).ModelInfer(ask("cpu")).raw_output_contents[0] == row(0)
                opened = files(server)
                break_device(server)
                back_again(server, 2)
            assert (proc(server, "cmdline"), environment(server), signals(server), files(server)[writing]) == before
            assert before[1]["PODIUM_TEST_OWN"] == "two\nlines"
            assert [files(server)[number] for number in (0, 1, 2)] == [opened[number] for number in (0, 1, 2)]
            # what the first life had opened has gone with it: no second listener, no connection
            assert len(files(server)) <= len(opened)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("socket", ["unix", "tls"])
def test_every_kind_of_socket_is_bound_again(repository: Path, tmp_path: Path, plane: str, socket: str) -> None:
    settings: dict[str, Any] = lasting_addresses()
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    if socket == "unix":
        settings["grpc_address"] = f"unix:{tmp_path}/podium.sock"
    else:
        settings["tls"] = {"cert_file": str(cert), "key_file": str(key)}

    with serving(repository, tmp_path, data_plane=plane, **settings) as server:

        def connect() -> grpc.Channel:
            own = [("grpc.use_local_subchannel_pool", 1)]
            if socket == "unix":
                return grpc.insecure_channel(server.grpc_address, own)
            return grpc.secure_channel(server.grpc_address, credentials(authority.root), own)

        for times in (2, 3):
            break_device(server, connect())
            back_again(server, times)
            with connect() as channel:
                answer = GRPCInferenceServiceStub(channel).ModelInfer(ask("gpu", times), timeout=60)
                assert answer.raw_output_contents[0] == row(times)


def test_what_was_counted_and_traced_is_written_before(repository: Path, tmp_path: Path, plane: str) -> None:
    usage, traces = tmp_path / "usage", tmp_path / "traces.json"
    usage.mkdir()
    trace = {"level": ["TIMESTAMPS"], "rate": 1, "file": str(traces)}
    kept = {"usage_dir": str(usage), "usage_flush_s": 3600.0, "server_name": "one", "trace": trace}
    with serving(repository, tmp_path, data_plane=plane, **kept) as server:
        with server.stub() as stub:
            for tag in range(7):
                stub.ModelInfer(ask("cpu", tag))
        break_device(server)
        back_again(server, 2)
        assert requests(usage) == 7
        assert {each["model_name"] for each in json.loads(traces.read_text()) if "model_name" in each} == {"cpu", "gpu"}
        with server.stub() as stub:
            for tag in range(5):
                stub.ModelInfer(ask("cpu", tag))
        server.stop(errors=("is lost", "backend is dead"))
    assert requests(usage) == 12


def requests(folder: Path) -> int:
    (file,) = folder.glob("*.json")
    uses = read_usage(file.read_bytes(), str(file))
    return sum(use.requests for key, use in uses.items() if key.key.model == "cpu")


def test_models_that_callers_loaded_come_back(repository: Path, tmp_path: Path, plane: str) -> None:
    """In explicit mode: by their names, with the settings that the Load brought."""
    explicit = {"control_mode": "explicit", "load_models": ["gpu"]}
    with serving(repository, tmp_path, data_plane=plane, **explicit) as server:
        with server.stub() as stub:
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="cpu"))
            config = pb.ModelRepositoryParameter(string_param=json.dumps({"max_batch_size": 3}))
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="gpu2", parameters={"config": config}))
        break_device(server)
        back_again(server, 2)
        with server.stub() as stub:
            ready = {row.name for row in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models}
            assert ready == {"gpu", "cpu", "gpu2"}
            assert stub.ModelConfig(pb.ModelConfigRequest(name="gpu2")).config.max_batch_size == 3
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="gpu2"))
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="cpu"))
        break_device(server)
        back_again(server, 3)
        with server.stub() as stub:
            assert {row.name for row in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models} == {"gpu"}
