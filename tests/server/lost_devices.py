"""What tests of lost devices share: models on a device that a request can break, lasting addresses, callers that try again."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import QUICK, put, put_fake
from tests.server.serving import UNLIMITED, Serving, infer_message, until

BREAKABLE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}, {"name": "break", "datatype": "INT32", "shape": [1]}],
    "outputs": [{"name": "echo_x", "datatype": "FP32", "shape": [4]}],
}
SOON = [*UNLIMITED, ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
"""Of channels whose server comes back."""


def put_breakable(repository: Path, name: str, t0_us: float = 20_000.0, version: int = 1, device_id: int = 0) -> None:
    """A model on an accelerator that its input `break` breaks, for all models on it."""
    device = f'device = "accelerator"\ndevice_id = {device_id}\nkills_input = "break"'
    settings = f"max_batch = 4\n{QUICK}[fake]\nt0_us = {t0_us}\nrow_us = 0.0\n{device}\n[queue]\nearly_drop = false\n"
    put(repository, name, version, {"fake.json": json.dumps(BREAKABLE).encode()}, settings)


def two_devices(folder: Path) -> Path:
    """A repository: `gpu` and `gpu2` on one accelerator, `cpu`."""
    repository = folder / "repository"
    repository.mkdir()
    put_breakable(repository, "gpu")
    put_breakable(repository, "gpu2", 1000.0)
    put_fake(repository, "cpu", 500.0, max_batch=16)
    return repository


def row(tag: int) -> bytes:
    return np.full(4, tag, dtype=np.float32).tobytes()


def ask(model: str, tag: int = 0, *, breaks: bool = False) -> pb.ModelInferRequest:
    inputs = {"x": ("FP32", [1, 4], row(tag))}
    if model.startswith("gpu"):
        inputs["break"] = ("INT32", [1, 1], int(breaks).to_bytes(4, "little"))
    return infer_message(model, inputs, id=str(tag))


def lasting_addresses() -> dict[str, str]:
    """Two that are free now, and the same after a new beginning."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [each.getsockname()[1] for each in (one, other)]
    return {"grpc_address": f"127.0.0.1:{ports[0]}", "http_address": f"127.0.0.1:{ports[1]}"}


def unavailable(error: Any) -> str:
    """The text of an error that says: try again."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
    return str(error.details())


def begun(server: Serving) -> int:
    """How often it has begun to serve."""
    return sum(line["event"] == "serving" for line in server.lines())


def back_again(server: Serving, times: int) -> None:
    """Until it has begun so often, and is ready."""

    def is_ready() -> bool:
        assert server.process.poll() is None, server.log_text()
        try:
            return begun(server) == times and server.http("/readyz")[0] == 200
        except OSError:
            return False  # between two of its lives

    until(is_ready, f"beginning {times}: {server.log_text()}")


def break_device(server: Serving, channel: grpc.Channel | None = None) -> str:
    """The text that the one who breaks it is told."""
    with channel or server.channel() as used:
        try:
            GRPCInferenceServiceStub(used).ModelInfer(ask("gpu", breaks=True), timeout=60)
        except grpc.RpcError as error:
            return unavailable(error)
    raise AssertionError("the device did not break")


TRY_AGAIN = {
    "native": {grpc.StatusCode.UNAVAILABLE},
    # grpcio cancels calls that have arrived and were not looked at when it stops
    "python": {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED},
}
"""What calls end with that met a server on its way to a new beginning, by its data plane."""


async def insistent(stub: Any, message: Any, plane: str) -> bytes:
    """The one answer to a request that is asked again as long as that makes sense."""
    while True:
        try:
            answer = await stub.ModelInfer(message, timeout=60)
        except grpc.aio.AioRpcError as error:
            if error.code() not in TRY_AGAIN[plane]:
                raise
            await asyncio.sleep(0.02)
        else:
            assert answer.id == message.id
            raw: bytes = answer.raw_output_contents[0]
            return raw


@contextmanager
def serving(repository: Path, home: Path, *, data_plane: str, **settings: Any) -> Iterator[Serving]:
    """A server whose devices are going to be lost; its end is the test's business, if only its log is good."""
    server = Serving(repository, home, data_plane=data_plane, **{**lasting_addresses(), **settings})
    try:
        yield server
        if server.process.poll() is None:
            server.stop(errors=("is lost", "backend is dead"))
    finally:
        server.kill()
