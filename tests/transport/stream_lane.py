"""A native door and its plane in this process: one model, an engine that a test holds up, a handler that says it was Python."""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.core.errors import BackendFailed, PodiumError
from server.core.settings import ServerSettings
from server.dataplane.interface import Batch, Part
from server.dataplane.native.routes import RouteRules
from server.transport.status import ending_for
from tests.dataplane.histories import rules
from tests.dataplane.planes import Runner, echo, new_of
from tests.server.serving import until
from tests.transport.doors import UNLIMITED

BAD = -1
"""A request with this number fails when it is executed."""
PYTHON = "python"
"""What the handler adds to the id of each message that it answers."""


def asked(number: int, model: str = "m", width: int = 2, **fields: Any) -> pb.ModelInferRequest:
    """One row, of one number; its id is that number."""
    message = pb.ModelInferRequest(model_name=model, **{"id": str(number), **fields})
    message.inputs.add(name="X", datatype="INT64", shape=[1, width])
    message.raw_input_contents.append(np.full((1, width), number, np.int64).tobytes())
    return message


def typed(number: int) -> pb.ModelInferRequest:
    """The same, its elements one by one."""
    message = asked(number)
    del message.raw_input_contents[:]
    message.inputs[0].contents.int64_contents.extend([number, number])
    return message


def said(message: pb.ModelStreamInferResponse) -> str:
    """The id; behind it what the error is, where it is one. A result is checked, by the id."""
    response = message.infer_response
    if message.error_message:
        return f"{response.id}: {message.error_message}"
    if not response.id.startswith(PYTHON):
        assert response.parameters["triton_final_response"].bool_param
        assert set(np.frombuffer(response.raw_output_contents[0], np.int64).tolist()) == {10 * int(response.id)}
    return response.id


def requests_of(batch: Batch) -> int:
    """Requests of a batch."""
    return len(batch.spans) - 1


def ending(error: PodiumError) -> tuple[int, str, Any]:
    """As the server has it."""
    code, text, trailing = ending_for(error)
    return code.value[0], text, trailing


class Lane:
    """What is around the streams of one door. `gate` closed: nothing is executed."""

    def __init__(self, plane: Any, door: Any, stub: Any) -> None:
        self.plane, self.door, self.stub = plane, door, stub
        self.gate = threading.Event()
        self.gate.set()
        self.python_streams = 0
        self.runner = Runner(plane, self._executed)

    def serve(self, version: int, max_requests: int = 0) -> None:
        """Let this version be the one that serves; the one before it leaves. `max_requests` may wait in its queue."""
        queue = rules(version, max_requests=max_requests)
        self.plane.open(queue)
        self.plane.publish({("m", ""): RouteRules(queue, 0, True, 0, 0, False, lambda names: True)})
        self.plane.close(version - 1)

    def _executed(self, batch: Batch) -> list[Part]:
        self.gate.wait(20)
        if (batch.inputs["X"] == BAD).any():
            return [Part(0, requests_of(batch), None, BackendFailed("no"))]
        return echo(batch)

    def stream(self, **options: Any) -> Any:
        return self.stub.ModelStreamInfer(timeout=options.pop("timeout", 60), **options)

    async def waiting(self, requests: int) -> None:
        """Until so many wait in the queue, or are executed."""
        await eventually(lambda: self.plane.snapshot(1).open_requests == requests, f"{requests} are open")

    async def busy(self) -> None:
        """Until something is executed."""
        await eventually(lambda: self.runner.batches, "a batch is executed")


async def eventually(true: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, true, what)


async def whole(call: Any, *messages: pb.ModelInferRequest) -> list[str]:
    """Send all of them, and then nothing more; every answer."""
    for message in messages:
        await call.write(message)
    await call.done_writing()
    return await rest(call)


async def answers(call: Any) -> AsyncIterator[pb.ModelStreamInferResponse]:
    """Those that are left. (A call that was written to is not iterated over.)"""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


async def rest(call: Any) -> list[str]:
    return [said(message) async for message in answers(call)]


@asynccontextmanager
async def lane(max_requests: int = 0, **settings: Any) -> AsyncIterator[Lane]:
    """A served door. `max_requests` may wait in the queue."""
    plane = new_of("native")(ending=ending)
    chosen = ServerSettings.model_validate({"repository": "r", **settings})
    door = importlib.import_module("server.transport.native.open").open_native(chosen, plane.native)
    address = door.bind("127.0.0.1:0")
    async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
        made = Lane(plane, door, GRPCInferenceServiceStub(channel))
        made.serve(1, max_requests)
        plane.open_lane(True)

        async def answer(requests: Any, context: Any) -> None:
            made.python_streams += 1
            while (message := await context.read()) is not grpc.aio.EOF:
                response = pb.ModelInferResponse(id=f"{PYTHON} {message.id}")
                await context.write(pb.ModelStreamInferResponse(infer_response=response))

        methods = {
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                answer, pb.ModelInferRequest.FromString, pb.ModelStreamInferResponse.SerializeToString
            )
        }
        door.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),))
        await door.start()
        try:
            yield made
        finally:
            made.gate.set()
            await door.stop(None)
            plane.stop()
