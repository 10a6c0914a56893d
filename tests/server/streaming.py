"""Models that answer by streams, open streams, and what was said on them."""

import json
import queue
from pathlib import Path
from typing import Any

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import QUICK, put
from tests.server.serving import Serving, infer_message

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
LEAVING = "GRPC server is shutting down and has stopped accepting new requests."
ROW = {"x": ("FP32", [1, 4], bytes(range(16)))}
REPEAT = {
    "inputs": [{"name": "IN", "datatype": "INT32", "shape": [1]}],
    "outputs": [{"name": "OUT_IN", "datatype": "INT32", "shape": [1]}],
}
MANY = 2_000_000
"""Answers that would take minutes: whoever asks for them leaves before."""


def put_repeat(repository: Path, name: str, t0_us: float = 0.0, width: int = 1) -> None:
    """As many answers as `IN` says, like Triton's `repeat_int32`; each also has `width` numbers more."""
    fake = f"[fake]\nt0_us = {t0_us}\nrow_us = 0.0\nresponses_input = 'IN'\n"
    settings = f"decoupled = true\nmax_batch = 0\n{QUICK}{fake}"
    wide = {"name": "more", "datatype": "INT32", "shape": [width]}
    files = {"fake.json": json.dumps({**REPEAT, "outputs": [*REPEAT["outputs"], wide]}).encode()}
    put(repository, name, 1, files, settings)


def asked(number: int, model: str = "repeat", *, empty_final: bool = False, **fields: Any) -> pb.ModelInferRequest:
    message = infer_message(model, {"IN": ("INT32", [1], number.to_bytes(4, "little", signed=True))}, **fields)
    if empty_final:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def echo(name: str, model: str = "echo") -> pb.ModelInferRequest:
    return infer_message(model, ROW, id=name)


def said(message: Any) -> str:
    """See tests/transport/streaming.py."""
    response = message.infer_response
    if message.error_message:
        return f"{response.id}!"
    more = "" if response.parameters["triton_final_response"].bool_param else "+"
    return f"{response.id}{more if response.outputs else '.'}"


class Open:
    """A stream whose requests are sent one by one."""

    def __init__(self, stub: GRPCInferenceServiceStub, **options: Any) -> None:
        self._requests: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
        self.call: Any = stub.ModelStreamInfer(iter(self._requests.get, None), timeout=60, **options)

    def send(self, *messages: pb.ModelInferRequest) -> None:
        for message in messages:
            self._requests.put(message)

    def half_close(self) -> None:
        self._requests.put(None)


def whole(stub: GRPCInferenceServiceStub, *messages: pb.ModelInferRequest) -> list[str]:
    """Every answer to a stream of these messages."""
    return [said(message) for message in stub.ModelStreamInfer(iter(messages), timeout=60)]


def waiting(server: Serving) -> float:
    """Requests in all queues."""
    lines = server.http("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("podium_queue_requests{"))
