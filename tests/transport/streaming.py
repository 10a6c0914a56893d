"""One open stream, what is around it, and what was said on it."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S
from server.core.errors import NotFound, PodiumError
from server.core.requests import InferRequest
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.transport.hand_over import HandOver
from server.transport.infer import Inference
from server.transport.streams import Streams
from tests.transport.calls import StreamContext

NOW_NS = 5 * NS_PER_S
SIGNATURE = Signature("m", (), (TensorSpec("y", "FP32", (2,)),), 4)
ROW = {"y": np.ones((1, 2), np.float32)}
EOF = grpc.aio.EOF


class Predict:
    """Admits what it knows: models "m" and, decoupled, "d". A test answers, by the ids of requests."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        self.requests: list[InferRequest] = []
        self.left: list[str] = []
        self.refusals: list[PodiumError] = []

    def admit(self, request: InferRequest, reply: Any) -> tuple[Any, str]:
        self.requests.append(request)
        if request.model not in ("m", "d"):
            raise NotFound(f"Request for unknown model: '{request.model}' is not found")
        self.replies[request.id] = reply
        chosen = SimpleNamespace(decoupled=request.model == "d")
        key = VersionKey(request.model, 7)
        return SimpleNamespace(key=key, signature=SIGNATURE, settings=chosen, cache=None, labels={}), request.id

    def answering(self, model: str, version: str, *, streamed: bool) -> None:
        assert streamed

    def cancel(self, replica: Any, ticket: str) -> None:
        self.left.append(ticket)

    def count_refusal(self, replica: Any, error: PodiumError) -> None:
        self.refusals.append(error)


class Door:
    """One open stream and what is around it. Made on a running loop."""

    def __init__(self, context: StreamContext | None = None, max_requests: int = 100, max_bytes: int = 2**20) -> None:
        self.predict = Predict()
        predict: Any = self.predict
        self.hand_over = HandOver(lambda: None)
        inference = Inference(predict, self.hand_over, lambda: NOW_NS)
        self.streams = Streams(inference, self.hand_over, lambda: NOW_NS, max_requests, max_bytes)
        self.context = context or StreamContext()
        self.call = asyncio.ensure_future(self.streams.serve(self.context))

    async def send(self, *messages: Any) -> None:
        for each in messages:
            self.context.arriving.put_nowait(each)
        await settled()

    async def ended(self) -> tuple[grpc.StatusCode, str] | None:
        """Code and text of a call that failed."""
        async with asyncio.timeout(10):
            status = await self.call
        assert self.hand_over.callers == 0
        return status and status[:2]

    def got(self) -> list[str]:
        """The answers so far: `id`, `id!` for an error, `id.` for an end without outputs; `+` where it is not the final one."""
        return [said(message) for message in self.context.written]


def said(message: pb.ModelStreamInferResponse) -> str:
    response = message.infer_response
    if message.error_message:
        return f"{response.id}!"
    more = "" if response.parameters["triton_final_response"].bool_param else "+"
    return f"{response.id}{more if response.outputs else '.'}"


async def settled() -> None:
    """Every step that is due has been made: nothing here waits for anything but the loop."""
    for _ in range(50):
        await asyncio.sleep(0)


def asked(id: str, model: str = "m", **parameters: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, model_version="7", id=id)
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return message


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())
