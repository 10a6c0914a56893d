"""A real server process for end-to-end tests: started on free addresses, watched, drained, and its log judged."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def until(true: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of a condition that another process will bring about."""
    give_up = time.monotonic() + patience_s
    while not (value := true()):
        if time.monotonic() > give_up:
            raise AssertionError(f"{what}: not within {patience_s} s")
        time.sleep(0.01)
    return value


def toml(value: Any) -> str:
    """A value as TOML writes it: as JSON does, but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(value)


class Serving:
    """One `podium serve`. `grpc_address` and `http_address` are what it bound, read from its log."""

    def __init__(
        self,
        repository: Path,
        home: Path,
        *,
        ready: bool = True,
        command: Sequence[str] = (sys.executable, "-m", "server"),
        started: Mapping[str, Any] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        """`started`: what `Popen` is told beside the command."""
        self.repository = repository
        self._log = home / "server.log"
        config = {
            "repository": str(repository),
            "grpc_address": "127.0.0.1:0",
            "http_address": "127.0.0.1:0",
            "settle_s": 0.0,
            "drain_delay_s": 0.0,
            **settings,
        }
        path = home / "config.toml"
        path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in config.items()))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--config", str(path)], cwd=ROOT, stdout=log, stderr=log, **started
            )
        try:
            self.grpc_address = str(self.wait_for("serving")["grpc"])
            listening = self.wait_for("http side port is listening")
            self.http_address = f"{listening['host']}:{listening['port']}"
            if ready:
                until(lambda: self.http("/readyz")[0] == 200, f"readiness: {self.log_text()}")
        except BaseException:
            self.kill()
            raise

    def log_text(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def lines(self) -> list[dict[str, Any]]:
        """The log so far; whatever is no JSON line is an error of its own (a traceback, a warning of a library)."""
        found: list[dict[str, Any]] = []
        for line in self.log_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"level": "error", "event": line})
        return found

    def wait_for(self, event: str) -> dict[str, Any]:
        """The first log line of this event."""

        def seen() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise AssertionError(f"the server has gone: {self.log_text()}")
            with suppress(ValueError):
                return next((line for line in map(json.loads, self.log_text().splitlines()) if line["event"] == event), None)
            return None

        line: dict[str, Any] = until(seen, f"log line '{event}'")
        return line

    def http(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.http_address}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, errors: tuple[str, ...] = ()) -> None:
        """Drain; status 0 and no error in the log, except lines that hold one of `errors`."""
        try:
            self.terminate()
            status = self.wait()
        finally:
            self.kill()
        bad = [line for line in self.lines() if line["level"] == "error"]
        unexpected = [line for line in bad if not any(text in json.dumps(line) for text in errors)]
        assert unexpected == [], unexpected
        assert status == 0, status
        if self.grpc_address.startswith("unix:"):
            assert not Path(self.grpc_address.removeprefix("unix:")).exists()

    @contextmanager
    def stub(self) -> Iterator[GRPCInferenceServiceStub]:
        with self.channel() as channel:
            yield GRPCInferenceServiceStub(channel)

    def channel(self) -> grpc.Channel:
        # a pool of its own: channels of one process would share connections otherwise
        return grpc.insecure_channel(self.grpc_address, [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)])


UNLIMITED: list[tuple[str, Any]] = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def infer_message(model: str, inputs: dict[str, tuple[str, list[int], bytes]], **fields: Any) -> pb.ModelInferRequest:
    """A ModelInfer message with raw contents, exactly as stated: nothing is checked."""
    message = pb.ModelInferRequest(model_name=model, **fields)
    for name, (datatype, shape, raw) in inputs.items():
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw)
    return message


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Code and text of a call that must fail."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, str(error.details())
    raise AssertionError("the call was answered")


def counts(stub: GRPCInferenceServiceStub, model: str, version: str = "") -> tuple[int, int, int, int]:
    """(success, fail, inference_count, execution_count) of a model's one version."""
    (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model, version=version)).model_stats
    stats = row.inference_stats
    return stats.success.count, stats.fail.count, row.inference_count, row.execution_count


def admitted(server: Serving, model: str) -> tuple[int, int]:
    """(waiting, admitted) requests of a model."""
    values = {
        line.split("{")[0]: int(float(line.rsplit(" ", 1)[1]))
        for line in server.http("/metrics")[1].splitlines()
        if line.startswith(("podium_queue_requests{", "podium_inflight_requests{")) and f'"{model}"' in line
    }
    return values["podium_queue_requests"], values["podium_inflight_requests"]


def executing(server: Serving, stub: Any, message: pb.ModelInferRequest) -> Any:
    """A call whose batch runs."""
    call = stub.ModelInfer.future(message, timeout=60)
    until(lambda: admitted(server, message.model_name) == (0, 1), "the batch runs")
    return call
