"""Many requests on one call: who is answered when, with what, and what is left behind."""

import asyncio

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.clock import NS_PER_S
from server.core.errors import BackendFailed, Expired
from server.transport.malformed import Malformed
from tests.transport.calls import StreamContext
from tests.transport.streaming import EOF, NOW_NS, ROW, Door, asked, run, settled


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


def test_an_empty_stream_is_a_good_one() -> None:
    async def main() -> None:
        door = Door()
        await door.send(EOF)
        assert await door.ended() is None
        assert door.got() == []

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
