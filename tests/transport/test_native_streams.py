"""Streams of the fast lane: which messages Python never sees, and how a stream becomes Python's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import grpc
import pytest

from protos import grpc_service_pb2 as pb
from tests.server.streaming import LEAVING
from tests.transport.stream_lane import (
    BAD,
    PYTHON,
    Lane,
    answers,
    asked,
    eventually,
    lane,
    requests_of,
    rest,
    said,
    typed,
    whole,
)

WIDE, MANY = 16_384, 400
"""A message of 128 KiB, and 50 MiB of them: more than sockets and windows hold."""
FULL = "[request id: {}] Exceeds maximum queue size"
Test = Callable[[Lane], Coroutine[Any, Any, None]]


def within(test: Test, **settings: Any) -> None:
    async def main() -> None:
        async with lane(**settings) as made:
            await asyncio.wait_for(test(made), 60)

    asyncio.run(main())


def by_python(*numbers: int) -> list[str]:
    return [f"{PYTHON} {number}" for number in numbers]


def test_plain_messages_are_answered_in_order_and_python_sees_none() -> None:
    async def test(made: Lane) -> None:
        numbers = range(500)
        got = await whole(made.stream(), *(typed(each) if each % 3 else asked(each, width=1 + each % 2) for each in numbers))
        assert got == [str(each) for each in numbers]
        assert await whole(made.stream()) == []
        assert made.python_streams == 0
        assert made.plane.take_uses() == [(1, "", 500)]

    within(test, max_stream_requests=7)


@pytest.mark.parametrize(
    "odd",
    [asked(9, "other"), asked(9, width=0, model_version="x"), pb.ModelInferRequest(id="9")],
    ids=["model", "version", "empty"],
)
def test_from_the_first_message_that_is_not_plain_a_stream_is_pythons(odd: pb.ModelInferRequest) -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        call = made.stream()
        for message in (asked(1), asked(2), odd, asked(3)):
            await call.write(message)
        await made.waiting(2)
        assert made.python_streams == 0
        made.gate.set()
        assert [said(await call.read()) for _ in range(4)] == ["1", "2", *by_python(9, 3)]
        assert await whole(call, asked(4), asked(5)) == by_python(4, 5)
        assert made.python_streams == 1

    within(test)


def test_a_stream_that_has_sent_everything_is_handed_over_whole() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        many = [asked(number, "other") for number in range(100, 700)]
        call = made.stream()
        for message in (asked(1), *many):
            await call.write(message)
        await call.done_writing()
        await made.waiting(1)
        made.gate.set()
        assert await rest(call) == ["1", *by_python(*range(100, 700))]
        assert await call.code() is grpc.StatusCode.OK

    within(test)


@pytest.mark.parametrize("when", ["from the start", "later", "asked for"])
def test_where_the_lane_is_closed_python_answers(when: str) -> None:
    async def test(made: Lane) -> None:
        before = ["1"] if when == "later" else by_python(1)
        made.plane.open_lane(when != "from the start")
        call = made.stream(metadata=(("triton_grpc_error", "true"),) if when == "asked for" else ())
        await call.write(asked(1))
        assert said(await call.read()) == before[0]
        made.plane.open_lane(when == "asked for")
        assert await whole(call, asked(2)) == by_python(2)

    within(test)


def test_errors_are_answers_and_the_stream_stays() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        call = made.stream()
        await call.write(asked(1))
        await made.busy()
        late = asked(2)
        late.parameters["timeout"].int64_param = 20_000
        await call.write(late)
        await eventually(lambda: dict(made.plane.take_refusals()).get(1, {}).get("expired"), "it is too late")
        for number in (3, BAD, 5):
            await call.write(asked(number))
        await eventually(lambda: dict(made.plane.take_refusals()).get(1, {}).get("queue_full"), "the queue is full")
        made.gate.set()
        await call.done_writing()
        got = [message async for message in answers(call)]
        assert [each.infer_response.id for each in got] == ["1", "2", "3", str(BAD), "5"]
        expired, failed, refused = got[1], got[3], got[4]
        end = pb.ModelInferResponse(id="2", model_name="m")
        end.parameters["triton_final_response"].bool_param = True
        assert expired == pb.ModelStreamInferResponse(error_message="Request timeout expired", infer_response=end)
        # one that was not admitted says no more than which it is
        assert refused.error_message.startswith(FULL.format(5))
        assert refused.infer_response == pb.ModelInferResponse(id="5")
        assert failed.error_message
        end.id = str(BAD)
        assert failed.infer_response == end
        assert made.python_streams == 0

    within(test, max_requests=2)


def test_a_version_that_leaves_service_is_pythons_to_replace() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        call = made.stream()
        await call.write(asked(1))
        await made.waiting(1)
        made.plane.close(1)
        # elements that came one by one stand behind their message: what Python gets is the message as it came
        for message in (typed(2), asked(3)):
            await call.write(message)
        made.gate.set()
        assert [said(await call.read()) for _ in range(3)] == ["1", *by_python(2, 3)]
        assert await whole(call) == []

    within(test)


def test_whoever_leaves_leaves_nothing_behind() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        calls = [made.stream(), made.stream(timeout=1.0)]
        for call in calls:
            for number in range(5):
                await call.write(asked(number))
        await made.waiting(10)
        calls[0].cancel()
        assert await calls[1].code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await made.waiting(0)
        made.gate.set()
        assert await whole(made.stream(), asked(7)) == ["7"]
        assert made.python_streams == 0

    within(test)


def test_no_more_are_open_than_may_be() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        call = made.stream()
        for number in range(200):
            await call.write(asked(number))
        await made.waiting(10)
        made.gate.set()
        await call.done_writing()
        assert await rest(call) == [str(number) for number in range(200)]
        assert max(requests_of(batch) for batch in made.runner.batches) <= 10

    within(test, max_stream_requests=10)


def test_a_caller_that_does_not_read_is_not_read_from() -> None:
    async def test(made: Lane) -> None:
        call = made.stream()

        async def send() -> None:
            for number in range(MANY):
                await call.write(asked(number, width=WIDE))
            await call.done_writing()

        def executed() -> int:
            return sum(requests_of(batch) for batch in made.runner.batches if batch.inputs["X"].shape[1] == WIDE)

        sending = asyncio.get_running_loop().create_task(send())
        before = -1
        while before < (before := executed()):
            for _ in range(20):
                assert await whole(made.stream(), asked(1), asked(2)) == ["1", "2"]
        assert 0 < before < MANY / 2
        assert await rest(call) == [str(number) for number in range(MANY)]
        await sending

    within(test, max_stream_bytes=2_000_000)


def test_a_server_that_leaves_answers_what_it_has_read() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        idle, open_ended, ended = made.stream(), made.stream(), made.stream()
        for call, number in ((open_ended, 1), (open_ended, 2), (ended, 3)):
            await call.write(asked(number))
        await ended.done_writing()
        await made.waiting(3)
        # what was sent before this has arrived, too
        assert await whole(made.stream(), asked(4, "other")) == by_python(4)
        stopping = asyncio.get_running_loop().create_task(made.door.stop(60))
        await left(idle)  # so all of them have heard of it
        made.gate.set()
        assert [said(await open_ended.read()) for _ in range(2)] == ["1", "2"]
        await left(open_ended)
        assert await rest(ended) == ["3"]
        assert await ended.code() is grpc.StatusCode.OK
        await stopping
        assert made.python_streams == 1

    within(test)


async def left(call: Any) -> None:
    """Nothing comes any more, because the server leaves."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await call.read()
    assert (told.value.code().name, told.value.details()) == ("UNAVAILABLE", LEAVING)


def test_a_plane_that_stops_says_so_to_each_that_waits() -> None:
    async def test(made: Lane) -> None:
        made.gate.clear()
        call = made.stream()
        await call.write(asked(1))
        await made.busy()
        await call.write(asked(2))
        await made.waiting(2)
        made.plane.stop()
        made.gate.set()
        assert said(await call.read()) == "1"
        assert said(await call.read()) == "2: Server is stopping"
        # from here on it is Python's to say so
        assert await whole(call, asked(3)) == by_python(3)

    within(test)


def test_streams_do_not_disturb_each_other() -> None:
    async def test(made: Lane) -> None:
        async def one(first: int) -> None:
            odd = [asked(first, "other")] if first % 3 == 0 else []
            numbers = [*range(first, first + 100)]
            got = await whole(made.stream(), *map(asked, numbers), *odd)
            assert got == [*map(str, numbers), *by_python(*([first] if odd else []))]

        await asyncio.gather(*(one(1000 * each) for each in range(12)))

    within(test, io_threads=3, max_stream_requests=20)


def test_whatever_happens_answers_are_in_order_and_nothing_is_left_open() -> None:
    """Callers leave at any time, run out of time, send what is Python's; the version is replaced again and again."""

    async def test(made: Lane) -> None:
        random = Random(7)
        over = False

        async def one(numbers: range, odd: int, read: int, time_s: float) -> None:
            async def sent() -> AsyncIterator[pb.ModelInferRequest]:
                for number in numbers:
                    yield asked(number, "other" if number == odd else "m")

            call = made.stub.ModelStreamInfer(sent(), timeout=time_s)
            with suppress(grpc.aio.AioRpcError):
                for number in numbers[:read]:
                    message = await call.read()
                    assert said(message).split(": ")[0] in (str(number), f"{PYTHON} {number}")
                    assert number < odd or message.infer_response.id.startswith(PYTHON)
            call.cancel()

        async def streams(first: int) -> None:
            while not over:
                first += 1000
                numbers = range(first, first + random.randrange(60))
                odd = first + random.choice([random.randrange(60), 10**9])
                time_s = random.choice([60.0, 60.0, random.random() / 20])
                await one(numbers, odd, random.choice([len(numbers), random.randrange(60)]), time_s)

        running = [asyncio.get_running_loop().create_task(streams(10**6 * each)) for each in range(12)]
        for version in range(2, 20):
            await asyncio.sleep(0.05)
            made.serve(version)
            assert await asyncio.to_thread(made.plane.wait_idle, version - 1, 10.0)
        over = True
        await asyncio.gather(*running)
        await eventually(lambda: made.plane.snapshot(19).open_requests == 0, "nothing is open")

    within(test, io_threads=2, max_stream_requests=20)
