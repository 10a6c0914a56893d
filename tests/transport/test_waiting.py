"""Functions run on threads of their own, and those whose caller left before they began do not run at all."""

import asyncio
import threading

import pytest

from server.transport.waiting import WaitingThreads


def test_results_and_errors_come_back() -> None:
    async def main() -> None:
        threads = WaitingThreads(2)
        assert (await threads.run(lambda: threading.current_thread().name)).startswith("podium-control-")
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(lambda: 7) == 7

    asyncio.run(main())


def test_one_more_waits_its_turn_unless_its_caller_leaves() -> None:
    async def main() -> None:
        threads = WaitingThreads(1)
        gate, begun = threading.Event(), threading.Event()
        ran: list[str] = []

        def first() -> str:
            begun.set()
            gate.wait(30)
            ran.append("first")
            return "first"

        running = asyncio.ensure_future(threads.run(first))
        leaving = asyncio.ensure_future(threads.run(lambda: ran.append("left")))
        staying = asyncio.ensure_future(threads.run(lambda: ran.append("stayed")))
        await asyncio.to_thread(begun.wait, 30)
        leaving.cancel()
        running.cancel()  # too late: it runs to its end, for nobody
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.set()
        await staying
        assert ran == ["first", "stayed"]

    asyncio.run(main())
