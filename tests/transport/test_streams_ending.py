"""How a stream ends before its caller has all its answers, and that nothing of it is left behind."""

import asyncio
import gc
from weakref import ref

import grpc
import pytest

from server.core.errors import BackendFailed, Cancelled, Expired
from server.transport.status import PUSHBACK, follow
from server.transport.streams import LEAVING
from tests.transport.calls import StreamContext
from tests.transport.streaming import EOF, ROW, Door, asked, run, settled


def test_by_strict_codes_such_an_end_says_whether_to_try_again() -> None:
    async def main() -> None:
        door = Door(StreamContext(metadata=(("triton_grpc_error", "true"),)))
        await door.send(asked("a"))
        door.predict.replies["a"].set_exception(Expired("late"))
        assert await door.call == (grpc.StatusCode.DEADLINE_EXCEEDED, "late", ((PUSHBACK, "-1"),))

    follow("strict")
    try:
        run(main)
    finally:
        follow("triton")


@pytest.mark.parametrize("how", ["cancelled", "gone", "failed"])
def test_a_stream_that_ended_early_is_free_at_once_not_when_garbage_is_next_collected(how: str) -> None:
    async def main() -> None:
        door = Door(StreamContext(metadata=(("triton_grpc_error", "true"),)))
        left = ref(door.context)
        await door.send(*map(asked, "abc"))
        replies, reply = door.predict.replies, door.predict.replies["b"]
        reply.set_result(ROW)
        gc.collect()
        gc.disable()
        try:
            if how == "cancelled":
                door.call.cancel()
            elif how == "gone":
                door.context.arriving.put_nowait(grpc.aio.InternalError("lost"))
            else:
                replies["a"].set_exception(BackendFailed("bad"))
            await asyncio.wait([door.call])
            assert door.call.cancelled() or (door.call.exception() is None) == (how == "failed")
            await settled()
            replies.clear()
            del reply, door.call, door.context
            await settled()
            assert left() is None
        finally:
            gc.enable()

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
        assert await door.streams.serve(StreamContext()) == (grpc.StatusCode.UNAVAILABLE, LEAVING, ())

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
