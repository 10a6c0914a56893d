"""Somebody who receives events, as an HTTP server of its own."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from server.core.versions import VersionKey
from server.monitoring.events import Cause, Event, event

Answer = tuple[int, Mapping[str, str]]


def raised(model: str = "m", number: int = 1) -> Event:
    """An event of this model's window of that number."""
    return event([Cause("drift", VersionKey(model, 1), "champion", "moved", number, number + 1, 0)], number)


@dataclass
class Receiver:
    """Answers as it is told to; `requests` holds what came, headers and body."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    pause_s: float = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
        self.came.release()
        await asyncio.sleep(self.pause_s)
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=headers)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A server on a free port of 127.0.0.1."""
    made = Receiver()
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop: Callable[[], object] = lambda: None  # noqa: E731 - set by the thread

    async def serve() -> None:
        nonlocal stop
        ended = asyncio.Event()
        stop = lambda: loop.call_soon_threadsafe(ended.set)  # noqa: E731 - a name for it
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", made.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}/hook"
        started.set()
        await ended.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield made
    finally:
        stop()
        thread.join(10)
        loop.close()
