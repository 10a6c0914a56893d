"""A few threads for calls that wait: Load and Unload.

Floor 6. Not the loop's own threads, where a few Loads would hold up scrapes and the drain; and not a ThreadPoolExecutor,
whose threads Python waits for at exit: a Load that takes minutes must not keep a process that has drained.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class WaitingThreads:
    """Runs functions one after the other on each of `count` threads. One more call waits its turn."""

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"podium-control-{number}", daemon=True).start()

    async def run(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises. If the caller leaves first: it runs to its end, or never begins."""
        future: Future[Result] = Future()
        self._tasks.put((future, function))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            future, function = self._tasks.get()
            if not future.set_running_or_notify_cancel():
                del future, function
                continue
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            # while it waits for the next one: what a function leads to may be all the files of a model
            del future, function
