"""Few requests for many callers: what is sent when, who waits for whom, and that nobody's haste or end harms another."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from feature_client.coalescer import CLOSED, MAX_KEYS, MAX_REQUESTS, SLOW_S, Asked, Coalescer
from feature_client.errors import StoreError
from feature_client.store import Key, Row

LONG_S = 30.0


class Server:
    """Answers when it is told to. `out`: the requests that are out, each with what answers it."""

    def __init__(self) -> None:
        self.out: list[tuple[list[Key], asyncio.Future[Sequence[Row | StoreError | None]]]] = []
        self.asked: list[list[Key]] = []

    async def exchange(self, keys: Sequence[Key]) -> Sequence[Row | StoreError | None]:
        answer: asyncio.Future[Sequence[Row | StoreError | None]] = asyncio.get_running_loop().create_future()
        self.out.append((list(keys), answer))
        self.asked.append(list(keys))
        return await answer

    def answer(self, at: int = 0) -> None:
        keys, answer = self.out.pop(at)
        answer.set_result([b"row of " + key for key in keys])

    def fail(self, error: Exception) -> None:
        self.out.pop(0)[1].set_exception(error)


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(scene: Callable[[Server], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(Server()), 60))


def rows(asked: Sequence[Asked]) -> list[Row | None]:
    assert all(each.answered and each.failed is None for each in asked)
    return [each.row for each in asked]


def test_what_is_asked_in_one_turn_goes_at_once_and_together() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        callers = [asyncio.create_task(coalescer.ask([b"%d" % at], LONG_S)) for at in range(5)]
        await turns()
        assert server.asked == [[b"0", b"1", b"2", b"3", b"4"]]
        server.answer()
        assert [rows(await caller) for caller in callers] == [[b"row of %d" % at] for at in range(5)]
        assert coalescer.requests == 0

    run(scene)


def test_what_comes_while_a_request_is_out_goes_with_the_next() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        first = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        later = [asyncio.create_task(coalescer.ask([key], LONG_S)) for key in (b"b", b"c")]
        await turns()
        assert server.asked == [[b"a"]]
        server.answer()
        await turns()
        assert server.asked == [[b"a"], [b"b", b"c"]]
        server.answer()
        await asyncio.gather(first, *later)

    run(scene)


def test_a_key_that_is_out_is_not_asked_again() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        callers = [asyncio.create_task(coalescer.ask([b"a", b"b"], LONG_S))]
        await turns()
        callers += [asyncio.create_task(coalescer.ask([b"a"], LONG_S)) for _ in range(10)]
        await turns()
        server.answer()
        for caller in callers:
            assert rows(await caller)[0] == b"row of a"
        assert server.asked == [[b"a", b"b"]]
        # once it has been answered it is asked anew: nothing is remembered here
        again = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        assert server.asked[-1] == [b"a"]
        server.answer()
        await again

    run(scene)


def test_no_request_is_longer_than_it_may_be_and_never_more_than_two_are_out() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        caller = asyncio.create_task(coalescer.ask([b"%d" % at for at in range(5 * MAX_KEYS)], LONG_S))
        await turns()
        assert [len(keys) for keys in server.asked] == [MAX_KEYS] * MAX_REQUESTS
        while server.out:
            server.answer()
            await turns()
            assert coalescer.requests <= MAX_REQUESTS
        assert len(server.asked) == 5
        assert rows(await caller)[-1] == b"row of %d" % (5 * MAX_KEYS - 1)

    run(scene)


def test_requests_are_as_long_as_their_answers_allow() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        first = asyncio.create_task(coalescer.ask([b"a", b"b"], LONG_S))
        await turns()
        server.out.pop()[1].set_result([bytes(64 * 1024), bytes(64 * 1024)])
        await first
        caller = asyncio.create_task(coalescer.ask([b"%d" % at for at in range(8)], LONG_S))
        await turns()
        assert [len(keys) for keys in server.asked[1:]] == [4, 4]
        server.answer()
        server.answer()
        await caller
        # and keys count as well
        large = asyncio.create_task(coalescer.ask([bytes(100 * 1024) + b"%d" % at for at in range(3)], LONG_S))
        await turns()
        assert [len(keys) for keys in server.asked[3:]] == [2]
        server.answer()
        await turns()
        server.answer()
        await large

    run(scene)


def test_a_slow_request_does_not_hold_up_the_next() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        slow = asyncio.create_task(coalescer.ask([b"slow"], LONG_S))
        await turns()
        await asyncio.sleep(2 * SLOW_S)
        quick = asyncio.create_task(coalescer.ask([b"quick"], LONG_S))
        await turns()
        assert server.asked == [[b"slow"], [b"quick"]]
        server.answer(1)
        assert rows(await quick) == [b"row of quick"]
        server.answer()
        assert rows(await slow) == [b"row of slow"]

    run(scene)


def test_who_came_while_it_was_not_slow_yet_is_not_held_up_either() -> None:
    """Nobody asks for anything afterwards that could have it sent."""

    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        slow = asyncio.create_task(coalescer.ask([b"slow"], LONG_S))
        await turns()
        quick = asyncio.create_task(coalescer.ask([b"quick"], LONG_S))
        await asyncio.sleep(50 * SLOW_S)
        assert server.asked == [[b"slow"], [b"quick"]]
        server.answer(1)
        assert rows(await quick) == [b"row of quick"]
        server.answer()
        await slow

    run(scene)


def test_requests_that_are_cancelled_with_their_loop_leave_nobody_waiting_and_begin_nothing() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        scenes = asyncio.all_tasks()
        out = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        queued = asyncio.create_task(coalescer.ask([b"b"], LONG_S))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - scenes - {out, queued}:
            task.cancel()
        for told in (*await out, *await queued):
            assert str(told.failed) == CLOSED
        await turns()
        assert server.asked == [[b"a"]]
        # where the loop goes on after all, the key is asked for anew
        again = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        assert server.asked == [[b"a"], [b"a"]]
        server.answer(1)
        assert rows(await again) == [b"row of a"]

    run(scene)


def test_a_budget_ends_and_its_request_goes_on() -> None:
    async def scene(server: Server) -> None:
        told: list[list[Key]] = []
        late: list[int] = []
        coalescer = Coalescer(
            server.exchange,
            unawaited=lambda asked: told.append([each.key for each in asked]),
            late=lambda: late.append(1),
        )
        patient = asyncio.create_task(coalescer.ask([b"a", b"b"], LONG_S))
        hasty = await coalescer.ask([b"a", b"c"], 0.01)
        assert [each.answered for each in hasty] == [False, False]
        assert [each.failed for each in hasty] == [None, None]
        assert late == [1]
        assert not patient.done()
        server.answer()
        assert rows(await patient) == [b"row of a", b"row of b"]
        # the answer that nobody waits for any more is told
        assert told == [[b"c"]]
        # who cannot wait at all says nothing about the store
        await coalescer.ask([b"d"], 0.0001)
        assert late == [1]
        await coalescer.close()

    run(scene)


def test_cancelling_a_caller_harms_nobody() -> None:
    async def scene(server: Server) -> None:
        told: list[Key] = []
        coalescer = Coalescer(server.exchange, unawaited=lambda asked: told.extend(each.key for each in asked))
        leaving = [asyncio.create_task(coalescer.ask([b"a"], LONG_S)) for _ in range(3)]
        staying = asyncio.create_task(coalescer.ask([b"a", b"b"], LONG_S))
        alone = asyncio.create_task(coalescer.ask([b"c"], LONG_S))
        await turns()
        for caller in (*leaving, alone):
            caller.cancel()
        await turns()
        server.answer()
        assert rows(await staying) == [b"row of a", b"row of b"]
        assert told == [b"c"]
        assert len(server.asked) == 1

    run(scene)


def test_a_failure_is_told_to_those_it_concerns() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        caller = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        server.fail(StoreError("gone"))
        (asked,) = await caller
        assert str(asked.failed) == "gone"
        # one key of several
        caller = asyncio.create_task(coalescer.ask([b"a", b"b"], LONG_S))
        await turns()
        server.out.pop()[1].set_result([b"row", StoreError("moved")])
        one, other = await caller
        assert one.row == b"row"
        assert str(other.failed) == "moved"

    run(scene)


def test_a_fault_of_this_program_leaves_nobody_waiting() -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        caller = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        await turns()
        server.fail(ZeroDivisionError("oops"))
        (asked,) = await caller
        assert "oops" in str(asked.failed)

    run(scene)


@pytest.mark.parametrize("settled", [False, True])
def test_closing_answers_everybody(settled: bool) -> None:
    async def scene(server: Server) -> None:
        coalescer = Coalescer(server.exchange)
        out = asyncio.create_task(coalescer.ask([b"a"], LONG_S))
        if settled:
            await turns()
        queued = asyncio.create_task(coalescer.ask([b"b"], LONG_S))
        await asyncio.sleep(0)
        await coalescer.close()
        await coalescer.close()
        for asked in (*await out, *await queued, *await coalescer.ask([b"c"], LONG_S)):
            assert str(asked.failed) == CLOSED
        assert coalescer.requests == 0

    run(scene)
