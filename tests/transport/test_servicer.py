"""What the door does around the use cases: one answer per call, one status per error, nothing leaked."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import ref

import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S
from server.core.errors import BackendFailed, Expired, LoadFailed, NotFound, NotReady, Overloaded, PodiumError
from server.core.requests import InferRequest
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.transport.hand_over import HandOver
from server.transport.infer import Inference
from server.transport.malformed import Malformed, tolerant
from server.transport.servicer import Servicer
from server.transport.streams import Streams
from tests.transport.calls import Aborted, Context

NOW_NS = 5 * NS_PER_S
SIGNATURE = Signature("m", (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 4)


class Replica:
    """As much of a replica as an answer needs."""

    key = VersionKey("m", 7)
    signature = SIGNATURE
    cache = None


class Predict:
    """Admits by a rule of the test, and remembers what it is told."""

    def __init__(self, admit: Callable[[asyncio.Future[Any]], None]) -> None:
        self._admit = admit
        self.requests: list[InferRequest] = []
        self.cancelled: list[str] = []
        self.refusals: list[PodiumError] = []

    def admit(self, request: InferRequest, reply: asyncio.Future[Any]) -> tuple[Replica, str]:
        self.requests.append(request)
        self._admit(reply)
        return Replica(), request.id

    def answering(self, model: str, version: str, *, streamed: bool) -> Replica:
        if model == "foo":
            raise NotFound("Request for unknown model: 'foo' is not found")
        return Replica()

    def cancel(self, replica: Replica, ticket: str) -> None:
        self.cancelled.append(ticket)

    def count_refusal(self, replica: Replica, error: PodiumError) -> None:
        self.refusals.append(error)


class Control:
    """Loads by a rule of the test."""

    def __init__(self) -> None:
        self.loads: list[tuple[str, Any]] = []
        self.files: list[dict[str, bytes]] = []
        self.unloads: list[str] = []
        self.threads: list[str] = []
        self.error: Exception | None = None

    def settings_on_disk(self, model: str) -> Any:
        raise AssertionError("only an override needs them")

    def describe(self, model: str, version: str) -> Any:
        raise AssertionError("no test asks for more than its refusal")

    statistics = describe

    def index(self, ready_only: bool) -> Any:
        raise AssertionError("no test asks for more than its refusal")

    def load(self, model: str, settings: Any, files: dict[str, bytes]) -> None:
        self.files.append(files)
        self.threads.append(threading.current_thread().name)
        self.loads.append((model, settings))
        if self.error is not None:
            raise self.error

    def unload(self, model: str) -> None:
        self.unloads.append(model)

    def is_ready(self, model: str, version: str) -> bool:
        if self.error is not None:
            raise self.error
        return model == "m"


class Door:
    """A servicer and everything around it. Made on a running loop."""

    def __init__(self, admit: Callable[[asyncio.Future[Any]], None] = lambda reply: None) -> None:
        self.wakes = 0
        self.predict, self.control = Predict(admit), Control()
        predict: Any = self.predict
        control: Any = self.control
        self.hand_over = HandOver(self._woken)
        inference = Inference(predict, self.hand_over, lambda: NOW_NS)
        streams = Streams(inference, self.hand_over, lambda: NOW_NS, 10, 2**20)
        runtime: Any = None
        self.servicer = Servicer(inference, streams, control, lambda: True, "1.2.3", runtime)

    def _woken(self) -> None:
        self.wakes += 1

    async def infer(self, message: Any, context: Context | None = None) -> pb.ModelInferResponse:
        call: Any = context or Context()
        return await self.servicer.ModelInfer(message, call)

    async def ended(self, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> tuple[str, str]:
        """How a call that must fail was ended."""
        context = Context()
        with pytest.raises(Aborted):
            await call(context)
        assert context.ended is not None
        assert self.hand_over.callers == 0
        return context.ended[0].name, context.ended[1]


def message(**fields: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", **{"id": "a", **fields})
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(bytes(8))
    return made


def answering(outcome: Any) -> Callable[[asyncio.Future[Any]], None]:
    def admit(reply: asyncio.Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(outcome, Exception):
            loop.call_soon(reply.set_exception, outcome)
        else:
            loop.call_soon(reply.set_result, outcome)

    return admit


def refusing(error: Exception) -> Callable[[asyncio.Future[Any]], None]:
    def admit(reply: asyncio.Future[Any]) -> None:
        raise error

    return admit


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_an_answer_names_who_gave_it_and_who_asked() -> None:
    async def main() -> None:
        rows = np.array([[1, 2]], dtype=np.float32)
        door = Door(answering({"y": rows}))
        response = await door.infer(message())
        assert (response.model_name, response.model_version, response.id) == ("m", "7", "a")
        assert list(response.raw_output_contents) == [rows.tobytes()]
        assert (door.hand_over.callers, door.wakes) == (0, 1)
        assert door.predict.refusals == []

    run(main)


@pytest.mark.parametrize(("remaining_s", "deadline_ns"), [(None, None), (2.5, NOW_NS + 2_500_000_000), (0.0, NOW_NS)])
def test_the_calls_deadline_is_handed_on(remaining_s: float | None, deadline_ns: int | None) -> None:
    async def main() -> None:
        door = Door(answering({"y": np.zeros((1, 2), dtype=np.float32)}))
        await door.infer(message(), Context(remaining_s))
        (request,) = door.predict.requests
        assert (request.arrival_ns, request.deadline_ns) == (NOW_NS, deadline_ns)

    run(main)


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFound("who?"), "NOT_FOUND"), (Overloaded("full"), "UNAVAILABLE"), (NotReady("later"), "UNAVAILABLE")],
)
def test_what_is_not_admitted_wakes_nobody(error: PodiumError, code: str) -> None:
    async def main() -> None:
        door = Door(refusing(error))
        assert await door.ended(lambda context: door.infer(message(), context)) == (code, str(error))
        await asyncio.sleep(0)
        assert door.wakes == 0
        assert door.predict.refusals == []  # admit has counted it

    run(main)


def test_an_error_that_comes_as_an_answer_is_counted_once() -> None:
    async def main() -> None:
        for error, code in ((Expired("Request timeout expired"), "UNAVAILABLE"), (BackendFailed("bad"), "INTERNAL")):
            door = Door(answering(error))
            assert await door.ended(lambda context, door=door: door.infer(message(), context)) == (code, str(error))  # type: ignore[misc]
            assert door.predict.refusals == [error]
            assert door.predict.cancelled == []

    run(main)


def test_a_bug_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        door = Door(refusing(KeyError("/secret")))
        ended = await door.ended(lambda context: door.infer(message(), context))
        assert ended == ("INTERNAL", "internal error: KeyError")

    run(main)
    assert "/secret" in caplog.text


def test_one_who_leaves_is_cancelled_once_and_counted_out() -> None:
    async def main() -> None:
        door = Door()
        call = asyncio.ensure_future(door.infer(message()))
        await asyncio.sleep(0)
        assert door.hand_over.callers == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert door.predict.cancelled == ["a"]
        assert door.predict.refusals == []
        assert door.hand_over.callers == 0

    run(main)


@pytest.mark.parametrize("outcome", [Expired("Request timeout expired"), {"y": np.zeros((1, 2), dtype=np.float32)}])
def test_one_who_leaves_as_the_answer_comes_is_still_cancelled_once(outcome: Any) -> None:
    async def main() -> None:
        replies: list[asyncio.Future[Any]] = []
        door = Door(replies.append)
        call = asyncio.ensure_future(door.infer(message()))
        await asyncio.sleep(0)
        if isinstance(outcome, Exception):
            replies[0].set_exception(outcome)
        else:
            replies[0].set_result(outcome)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (door.predict.cancelled, door.predict.refusals) == (["a"], [])

    run(main)


def test_a_message_in_the_wrong_form_is_not_admitted() -> None:
    async def main() -> None:
        door = Door()
        wrong = message()
        wrong.inputs[0].contents.fp32_contents.append(1.0)
        code, text = await door.ended(lambda context: door.infer(wrong, context))
        assert code == "INVALID_ARGUMENT"
        assert text.startswith("contents field must not be specified")
        wrong.model_name = "foo"
        unknown = ("NOT_FOUND", "Request for unknown model: 'foo' is not found")
        assert await door.ended(lambda context: door.infer(wrong, context)) == unknown
        assert door.predict.requests == []

    run(main)


def test_a_body_that_is_no_message() -> None:
    async def main() -> None:
        door = Door()
        refused = ("INVALID_ARGUMENT", "the body of the call cannot be parsed as its request message")
        body = tolerant(pb.ModelInferRequest.FromString)(b"\xff" * 9)
        assert isinstance(body, Malformed)
        assert tolerant(pb.ModelInferRequest.FromString)(message().SerializeToString()) == message()
        servicer: Any = door.servicer
        for call in (
            servicer.ModelInfer,
            servicer.ModelReady,
            servicer.ModelMetadata,
            servicer.ModelConfig,
            servicer.ModelStatistics,
            servicer.RepositoryIndex,
            servicer.RepositoryModelLoad,
            servicer.RepositoryModelUnload,
        ):
            assert await door.ended(lambda context, call=call: call(body, context)) == refused  # type: ignore[misc]
        assert door.control.loads == []

    run(main)


def test_the_server_describes_itself() -> None:
    async def main() -> None:
        door, context = Door(), Context()
        call: Any = context
        metadata = await door.servicer.ServerMetadata(pb.ServerMetadataRequest(), call)
        assert (metadata.name, metadata.version) == ("triton", "1.2.3")
        assert (await door.servicer.ServerLive(pb.ServerLiveRequest(), call)).live
        assert (await door.servicer.ServerReady(pb.ServerReadyRequest(), call)).ready
        assert (await door.servicer.ModelReady(pb.ModelReadyRequest(name="m"), call)).ready

    run(main)


def load(**parameters: pb.ModelRepositoryParameter) -> pb.RepositoryModelLoadRequest:
    return pb.RepositoryModelLoadRequest(model_name="m", parameters=parameters)


Parameter = pb.ModelRepositoryParameter


def test_loads_and_unloads_run_on_threads_of_their_own() -> None:
    async def main() -> None:
        door = Door()
        context: Any = Context()
        await door.servicer.RepositoryModelLoad(load(), context)
        assert door.control.loads == [("m", None)]
        assert door.control.threads[0].startswith("podium-control")
        flag = {"unload_dependents": Parameter(bool_param=True)}
        await door.servicer.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m", parameters=flag), context)
        assert door.control.unloads == ["m"]

    run(main)


def test_files_come_with_settings_that_owe_nothing_to_the_repository() -> None:
    async def main() -> None:
        door = Door()
        context: Any = Context()
        given = {"file:1/model.onnx": Parameter(bytes_param=b"abc"), "file:1/weights/w": Parameter(bytes_param=b"")}
        await door.servicer.RepositoryModelLoad(load(config=Parameter(string_param='{"max_batch_size": 3}'), **given), context)
        assert door.control.loads == [("m", ModelSettings(max_batch=3))]
        assert door.control.files == [{"1/model.onnx": b"abc", "1/weights/w": b""}]

    run(main)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (load(colour=Parameter(string_param="red")), "INVALID_ARGUMENT", "unrecognized load parameter 'colour'."),
        (
            load(config=Parameter(int64_param=1)),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            load(config=Parameter(string_param="{}"), **{"file:1/model.onnx": Parameter(string_param="x")}),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'file:1/model.onnx', expected bytes_param.",
        ),
        (
            load(**{"file:1/model.onnx": Parameter(bytes_param=b"x")}),
            "INVALID_ARGUMENT",
            "Load parameter 'config' must be specified for model file override",
        ),
        (
            pb.RepositoryModelUnloadRequest(model_name="m", parameters={"unload_dependents": Parameter(int64_param=1)}),
            "INVALID_ARGUMENT",
            "invalid value type for 'unload_dependents' parameter, expected bool_param.",
        ),
        (
            pb.RepositoryModelUnloadRequest(model_name="m", parameters={"x": Parameter(bool_param=True)}),
            "INVALID_ARGUMENT",
            "unrecognized unload parameter 'x'.",
        ),
        (
            pb.RepositoryIndexRequest(repository_name="r"),
            "UNIMPLEMENTED",
            "'repository_name' specification is not supported",
        ),
    ],
)
def test_parameters_with_no_meaning_are_refused(request_: Any, code: str, text: str) -> None:
    async def main() -> None:
        door = Door()
        calls: dict[type, Any] = {
            pb.RepositoryModelLoadRequest: door.servicer.RepositoryModelLoad,
            pb.RepositoryModelUnloadRequest: door.servicer.RepositoryModelUnload,
            pb.RepositoryIndexRequest: door.servicer.RepositoryIndex,
        }
        assert await door.ended(lambda context: calls[type(request_)](request_, context)) == (code, text)
        assert (door.control.loads, door.control.unloads) == ([], [])

    run(main)


def test_errors_of_the_use_cases_have_their_status(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        door = Door()
        for error, told in (
            (NotFound("who?"), ("NOT_FOUND", "who?")),
            (KeyError("/secret"), ("INTERNAL", "internal error: KeyError")),
        ):
            door.control.error = error
            assert await door.ended(lambda context: door.servicer.RepositoryModelLoad(load(), context)) == told
            assert await door.ended(lambda context: door.servicer.ModelReady(pb.ModelReadyRequest(), context)) == told

    run(main)
    assert caplog.text.count("a call failed unexpectedly") == 2


def test_where_memory_is_not_shared_the_calls_about_it_say_so() -> None:
    told = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."

    async def main() -> None:
        door = Door()
        for kind in ("System", "Cuda"):
            for verb in ("Register", "Unregister"):
                request = getattr(pb, f"{kind}SharedMemory{verb}Request")()
                call = getattr(door.servicer, f"{kind}SharedMemory{verb}")
                assert await door.ended(lambda context, call=call, it=request: call(it, context)) == ("UNIMPLEMENTED", told)  # type: ignore[misc]
            status: Any = getattr(door.servicer, f"{kind}SharedMemoryStatus")
            request = getattr(pb, f"{kind}SharedMemoryStatusRequest")
            context: Any = Context()
            assert not (await status(request(), context)).regions
            one = request(name="r")
            assert await door.ended(lambda context, it=one, call=status: call(it, context)) == (  # type: ignore[misc]
                "NOT_FOUND",
                f"Unable to find {kind.lower()} shared memory region: 'r'",
            )
        anywhere: Any = Context()
        metadata = await door.servicer.ServerMetadata(pb.ServerMetadataRequest(), anywhere)
        assert "classification" in metadata.extensions
        assert "system_shared_memory" not in metadata.extensions

    run(main)


def test_files_of_a_load_that_failed_are_free_at_once_not_when_garbage_is_next_collected() -> None:
    async def main() -> None:
        door = Door()
        door.control.error = LoadFailed("no")
        context: Any = Context()
        left = ref(context)
        request = pb.RepositoryModelLoadRequest(model_name="m")
        request.parameters["config"].string_param = "{}"
        request.parameters["file:1/model.onnx"].bytes_param = b"large"
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(Aborted):
                await door.servicer.RepositoryModelLoad(request, context)
            del context
            # the thread that loaded lets go of it after it has told so
            async with asyncio.timeout(30):
                while left() is not None:  # noqa: ASYNC110 - what is waited for is a thread's doing
                    await asyncio.sleep(0.005)
        finally:
            gc.enable()

    run(main)


@pytest.mark.parametrize("error", [Expired, BackendFailed, ValueError])
def test_a_call_that_failed_is_free_at_once_not_when_garbage_is_next_collected(error: type[Exception]) -> None:
    left: list[ref[Any]] = []

    def admit(reply: asyncio.Future[Any]) -> None:
        left.append(ref(reply))
        answering(error("no"))(reply)

    async def main() -> None:
        door = Door(admit)

        def called() -> Coroutine[Any, Any, Any]:
            context: Any = Context()
            left.append(ref(context))
            return door.servicer.ModelInfer(message(), context)

        gc.collect()
        gc.disable()
        try:
            with pytest.raises(Aborted):
                await called()
            await asyncio.sleep(0)
            assert [one() for one in left] == [None, None]
        finally:
            gc.enable()

    run(main)
