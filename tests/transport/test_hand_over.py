"""When the engine is woken: at once for a lone caller, once for a burst."""

import asyncio
from collections.abc import Callable

from server.transport.hand_over import MEMORY, ROUNDS, HandOver


def on_a_loop(check: Callable[[HandOver, list[str]], None], turns: int = 100) -> list[str]:
    """What happened, in order, on a loop that `check` has prepared; "turn" marks each of the loop's rounds after it."""
    happened: list[str] = []

    async def main() -> None:
        hand_over = HandOver(lambda: happened.append("wake"))
        check(hand_over, happened)
        for _ in range(turns):
            await asyncio.sleep(0)
            happened.append("turn")

    asyncio.run(main())
    return happened


def test_a_lone_caller_waits_for_no_round() -> None:
    def one(hand_over: HandOver, _: list[str]) -> None:
        hand_over.callers = 1
        hand_over.arm()

    assert on_a_loop(one, turns=3) == ["wake", "turn", "turn", "turn"]


def test_a_burst_wakes_once_after_what_had_arrived() -> None:
    def burst(hand_over: HandOver, happened: list[str]) -> None:
        def handler() -> None:
            hand_over.arm()
            happened.append("queued")

        hand_over.callers = 16
        loop = asyncio.get_running_loop()
        for _ in range(16):
            loop.call_soon(handler)

    happened = on_a_loop(burst)
    assert happened.count("wake") == 1
    assert happened.index("wake") > max(index for index, event in enumerate(happened) if event == "queued")


def test_those_who_come_while_it_turns_ride_along() -> None:
    def trickle(hand_over: HandOver, happened: list[str]) -> None:
        hand_over.callers = 64
        hand_over.arm()

        def later() -> None:
            hand_over.arm()
            happened.append("later")

        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(later))

    happened = on_a_loop(trickle)
    assert happened.count("wake") == 1
    assert happened.index("later") < happened.index("wake")


def test_however_many_call_the_wake_comes_soon() -> None:
    def crowd(hand_over: HandOver, _: list[str]) -> None:
        hand_over.callers = 100_000
        hand_over.arm()

    assert on_a_loop(crowd).index("wake") <= ROUNDS


def test_each_burst_has_its_wake() -> None:
    def first(hand_over: HandOver, happened: list[str]) -> None:
        hand_over.callers = 1
        hand_over.arm()

        def again() -> None:
            happened.append("again")
            hand_over.arm()

        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(again)))

    happened = [event for event in on_a_loop(first) if event != "turn"]
    assert happened == ["wake", "again", "wake"]


def test_a_caller_who_stays_alone_is_soon_treated_as_alone() -> None:
    """And not at once: at 64 in flight the door often sees one caller at a time."""

    async def main() -> list[int]:
        waits: list[int] = []
        woken = asyncio.Event()
        hand_over = HandOver(woken.set)
        hand_over.callers = 2
        for _ in range(MEMORY + 1):
            woken.clear()
            hand_over.arm()
            turns = 0
            while not woken.is_set():
                await asyncio.sleep(0)
                turns += 1
            waits.append(turns)
            hand_over.callers = 1
        return waits

    waits = asyncio.run(main())
    assert min(waits[:MEMORY]) >= ROUNDS
    assert waits[MEMORY] <= 2
