"""Many requests on one call: who is answered when, with what, and what is left behind."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S
from server.core.errors import BackendFailed, Cancelled, Expired, NotFound, PodiumError
from server.core.requests import InferRequest
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.transport.hand_over import HandOver
from server.transport.infer import Inference
from server.transport.malformed import Malformed
from server.transport.streams import LEAVING, Streams
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
        async with asyncio.timeout(10):
            status = await self.call
        assert self.hand_over.callers == 0
        return status

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


def test_ordinary_answers_leave_in_the_order_of_their_requests() -> None:
    async def main() -> None:
        door = Door()
        await door.send(*map(asked, "abc"))
        replies = door.predict.replies
        assert door.hand_over.callers == 3
        replies["c"].set_result(ROW)
        replies["b"].set_exception(BackendFailed("bad"))
        await settled()
        assert door.got() == []
        replies["a"].set_result(ROW)
        await settled()
        assert door.got() == ["a", "b!", "c"]
        assert door.hand_over.callers == 0
        await door.send(EOF)
        assert await door.ended() is None
        first = door.context.written[0].infer_response
        assert (first.model_name, first.model_version, list(first.raw_output_contents)) == ("m", "7", [ROW["y"].tobytes()])

    run(main)


def test_decoupled_answers_leave_as_they_come() -> None:
    async def main() -> None:
        door = Door()
        await door.send(asked("a"), asked("p", "d"), asked("q", "d", triton_enable_empty_final_response=True), asked("b"))
        replies = door.predict.replies
        for name, outputs in (("q", ROW), ("p", ROW), ("q", ROW)):
            assert replies[name].reserve(outputs) < 1
            replies[name].add(outputs)
        replies["b"].set_result(ROW)
        replies["q"].set_result({})
        replies["p"].set_result({})
        await settled()
        assert door.got() == ["q+", "p+", "q+", "q."]
        replies["a"].set_result(ROW)
        await door.send(EOF)
        assert await door.ended() is None
        assert door.got()[4:] == ["a", "b"]
        end = door.context.written[3].infer_response
        assert (end.id, end.model_name, end.model_version) == ("q", "d", "7")

    run(main)


def test_a_decoupled_request_without_any_answer_ends_in_silence() -> None:
    async def main() -> None:
        door = Door()
        await door.send(asked("p", "d"), EOF)
        assert not door.call.done()
        door.predict.replies["p"].set_result({})
        assert await door.ended() is None
        assert door.got() == []

    run(main)


def test_an_error_is_a_message_and_the_stream_goes_on() -> None:
    async def main() -> None:
        door = Door()
        await door.send(asked("a", "nobody"), asked("p", "d"), asked("b"), asked("c", triton_bogus=True), Malformed())
        expired = Expired("Request timeout expired")
        door.predict.replies["p"].set_exception(expired)
        door.predict.replies["b"].set_result({})  # it lacks its output
        await door.send(asked("d"))
        door.predict.replies["d"].set_result(ROW)
        await door.send(EOF)
        assert await door.ended() is None
        assert door.got() == ["a!", "p!", "b!", "c!", "!", "d"]
        texts = [message.error_message for message in door.context.written]
        assert texts[:3] == [
            "Request for unknown model: 'nobody' is not found",
            "Request timeout expired",
            "model 'm' gave no output 'y'",
        ]
        assert texts[3].startswith("parameter keys starting with 'triton_' are reserved")
        assert texts[4] == "the body of the call cannot be parsed as its request message"
        # as in Triton: what was refused says its id alone, what failed later says what was asked for
        refused, failed = (door.context.written[place].infer_response for place in (0, 1))
        assert (refused.model_name, len(refused.parameters)) == ("", 0)
        assert (failed.model_name, failed.model_version) == ("d", "7")
        assert failed.parameters["triton_final_response"].bool_param
        assert door.predict.refusals == [expired]  # admit counts its own, batches count their failures
        assert door.predict.left == []

    run(main)


def test_a_bug_is_logged_and_costs_only_its_request(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        door = Door()
        await door.send(asked("a"), asked("p", "d"), asked("b"))
        door.predict.replies["p"].add({"y": np.array([["text"]])})
        door.predict.replies["p"].set_result({})  # nobody told the engine yet
        door.predict.replies["a"].set_exception(KeyError("secret"))
        door.predict.replies["b"].set_result(ROW)
        await door.send(EOF)
        assert await door.ended() is None
        assert sorted(door.got()) == ["a!", "b", "p!"]
        assert {message.error_message for message in door.context.written} == {
            "",
            "internal error: KeyError",
            "internal error: ValueError",
        }
        assert door.predict.left == ["p"]

    run(main)
    assert caplog.text.count("a call failed unexpectedly") == 2


def test_an_error_ends_the_stream_where_its_caller_asked_for_that() -> None:
    async def main() -> None:
        door = Door(StreamContext(metadata=(("triton_grpc_error", "true"),)))
        await door.send(*map(asked, "ab"), asked("p", "d"), asked("c", "nobody"))
        replies = door.predict.replies
        replies["a"].set_result(ROW)
        replies["p"].add(ROW)
        replies["b"].set_exception(BackendFailed("bad"))
        assert await door.ended() == (grpc.StatusCode.INTERNAL, "bad")
        assert sorted(door.got()) == ["a", "p+"]
        assert door.predict.left == ["p"]  # c was refused, and comes after b
        door = Door(StreamContext(metadata=(("triton_grpc_error", "false"),)))
        await door.send(asked("c", "nobody"), EOF)
        assert await door.ended() is None
        assert door.got() == ["c!"]

    run(main)


def test_the_streams_deadline_bounds_each_request() -> None:
    async def main() -> None:
        door = Door(StreamContext(2.0))
        await door.send(*map(asked, "ab"))
        assert {request.deadline_ns for request in door.predict.requests} == {NOW_NS + 2 * NS_PER_S}
        assert all(request.streamed for request in door.predict.requests)
        door.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await door.ended()

    run(main)


def test_a_caller_that_leaves_takes_everything_back_at_once() -> None:
    async def main() -> None:
        door = Door()
        await door.send(*map(asked, "abc"), asked("p", "d"))
        replies = door.predict.replies
        replies["b"].set_result(ROW)
        replies["p"].add(ROW)
        door.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await door.ended()
        assert sorted(door.predict.left) == ["a", "c", "p"]
        # what was on its way meanwhile goes nowhere
        assert replies["a"].done()
        replies["p"].add(ROW)
        replies["p"].set_exception(BackendFailed("late"))
        await settled()
        assert "a" not in door.got()

    run(main)


def test_whoever_does_not_read_is_not_read_from() -> None:
    async def main() -> None:
        door = Door(max_requests=3)
        door.context.reads.clear()
        await door.send(*(asked(str(number)) for number in range(10)))
        assert len(door.predict.requests) == 3
        for number in range(3):
            door.predict.replies[str(number)].set_result(ROW)
        await settled()
        assert len(door.predict.requests) == 3  # answered, but the answers have not left
        door.context.reads.set()
        await door.send(EOF)
        while len(door.got()) < 10:
            for reply in [reply for reply in door.predict.replies.values() if not reply.done()]:
                reply.set_result(ROW)
            await settled()
        assert await door.ended() is None
        assert door.got() == [str(number) for number in range(10)]

    run(main)


def test_neither_is_one_whose_answers_are_large() -> None:
    async def main() -> None:
        door = Door(max_bytes=5000)
        door.context.reads.clear()
        await door.send(asked("a"), asked("b"))
        door.predict.replies["a"].set_result({"y": np.zeros((1, 2000), np.float32)})
        await door.send(asked("c"), asked("d"))
        # the read that was already open still brings one message
        assert [request.id for request in door.predict.requests] == ["a", "b", "c"]
        door.context.reads.set()
        await settled()
        assert door.predict.requests[-1].id == "d"
        door.call.cancel()

    run(main)


def test_there_is_room_for_so_many_decoupled_answers_that_nobody_reads() -> None:
    async def main() -> None:
        door = Door(max_bytes=10_000)
        door.context.reads.clear()
        await door.send(asked("p", "d"))
        reply = door.predict.replies["p"]
        large = {"y": np.zeros((1, 9000), np.float32)}
        assert reply.reserve(large) == 1.0  # by itself, an answer of any size has room
        assert reply.reserve(ROW) > 1
        reply.add(large)
        await settled()
        assert reply.reserve(ROW) > 1
        door.context.reads.set()
        await settled()
        filled = [reply.reserve(ROW) for _ in range(10)]
        assert filled == sorted(filled)
        assert [each > 1 for each in filled] == [False] * 9 + [True]
        for _ in range(9):
            reply.add(ROW)
        await settled()
        assert reply.reserve(ROW) == filled[0]
        assert door.got() == ["p+"] * 10
        # an answer that is made for nobody is not kept for anybody
        reply.set_exception(BackendFailed("too slow"))
        assert reply.reserve(ROW) == filled[1]
        reply.add(ROW)
        assert reply.reserve(ROW) == filled[1]
        await door.send(EOF)
        assert await door.ended() is None
        assert door.got()[10:] == ["p!"]

    run(main)


def test_a_server_that_leaves_answers_what_it_has_read() -> None:
    async def main() -> None:
        door = Door()
        await door.send(*map(asked, "ab"))
        door.streams.close()
        await door.send(asked("c"))
        assert not door.call.done()
        for reply in door.predict.replies.values():
            reply.set_result(ROW)
        assert await door.ended() == (grpc.StatusCode.UNAVAILABLE, LEAVING)
        assert door.got() == ["a", "b"]
        # whoever comes now is told at once
        assert await door.streams.serve(StreamContext()) == (grpc.StatusCode.UNAVAILABLE, LEAVING)

    run(main)


def test_a_server_that_leaves_ends_idle_streams_at_once() -> None:
    async def main() -> None:
        for messages, status in (((), (grpc.StatusCode.UNAVAILABLE, LEAVING)), ((asked("a"), EOF), None)):
            door = Door()
            await door.send(*messages)
            door.streams.close()
            for reply in door.predict.replies.values():
                reply.set_result(ROW)
            # a caller that had nothing more to say misses nothing
            assert await door.ended() == status

    run(main)


def test_an_empty_stream_is_a_good_one() -> None:
    async def main() -> None:
        door = Door()
        await door.send(EOF)
        assert await door.ended() is None
        assert door.got() == []

    run(main)


@pytest.mark.parametrize(
    ("error", "told"), [(OSError("a bug"), OSError), (grpc.aio.InternalError("gRPC's word for a lost call"), Cancelled)]
)
def test_a_read_that_fails_ends_the_stream(error: Exception, told: type[Exception]) -> None:
    async def main() -> None:
        door = Door()
        await door.send(asked("a"), error)
        with pytest.raises(told):
            await door.ended()
        assert door.predict.left == ["a"]

    run(main)


STEPS = st.sampled_from(("m", "d", "nobody", "malformed", "answer", "fail", "add", "block", "read", "turn"))


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(STEPS, st.integers(0, 7)), max_size=60), empty_final=st.booleans())
def test_whatever_happens_each_request_is_answered_once_and_in_order(steps: list[tuple[str, int]], empty_final: bool) -> None:
    async def main() -> None:
        door = Door(max_requests=5, max_bytes=20_000)
        expected: dict[str, list[str]] = {}
        ordered: list[str] = []
        waiting: list[str] = []

        async def step(kind: str, number: int) -> None:
            name = str(len(expected))
            if kind in ("m", "d", "nobody"):
                parameters = {"triton_enable_empty_final_response": True} if empty_final else {}
                expected[name] = [f"{name}!"] if kind == "nobody" else []
                if kind != "d":
                    ordered.append(name)
                if kind != "nobody":
                    waiting.append(name)
                await door.send(asked(name, kind, **parameters))
            elif kind == "malformed":
                await door.send(Malformed())
                expected[f"malformed {name}"] = ["!"]
            elif kind == "block":
                door.context.reads.clear()
            elif kind == "read":
                door.context.reads.set()
            elif kind == "turn":
                await settled()
            else:
                admitted = [each for each in waiting if each in door.predict.replies]
                if admitted:
                    respond(kind, admitted[number % len(admitted)])

        def respond(kind: str, name: str) -> None:
            reply = door.predict.replies[name]
            if kind == "add":
                if reply.decoupled and reply.reserve(ROW) <= 1:
                    reply.add(ROW)
                    expected[name].append(f"{name}+")
                return
            waiting.remove(name)
            if kind == "fail":
                reply.set_exception(BackendFailed("bad"))
                expected[name].append(f"{name}!")
            elif reply.decoupled:
                reply.set_result({})
                expected[name] += [f"{name}."] if empty_final else []
            else:
                reply.set_result(ROW)
                expected[name].append(name)

        for kind, number in steps:
            await step(kind, number)
        door.context.reads.set()
        await door.send(EOF)
        while not door.call.done():
            for name in [each for each in waiting if each in door.predict.replies]:
                respond("answer", name)
            await settled()
        assert await door.ended() is None
        got = door.got()
        for name, answers in expected.items():
            if not name.startswith("malformed"):
                assert [each for each in got if each.strip("+!.") == name] == answers
        assert got.count("!") == sum(name.startswith("malformed") for name in expected)
        finals = [each.strip("!") for each in got if each.strip("!") in ordered]
        assert finals == ordered
        assert door.predict.left == []

    run(main)


def test_callers_are_counted_by_what_is_outstanding() -> None:
    async def main() -> None:
        door = Door()
        await door.send(*map(asked, "ab"))
        other = asyncio.ensure_future(door.streams.serve(context := StreamContext()))
        context.arriving.put_nowait(asked("c"))
        await settled()
        assert door.hand_over.callers == 3
        other.cancel()
        await settled()
        assert door.hand_over.callers == 2
        assert door.predict.left == ["c"]
        door.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await door.ended()

    run(main)
