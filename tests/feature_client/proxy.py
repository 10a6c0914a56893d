"""What stands between a client and a server: a relay that delays replies, drips them, or ends TLS. It counts connections."""

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self


class Proxy:
    """A relay from a port of its own to `port` on this machine, in a thread of its own.

    `delay_s(n)`: how long the n-th piece that the server sent (from 1, over all connections) is held back; pieces of one
    connection keep their order. `piece_bytes`: replies go on in pieces of at most that size. Change both at will.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.accepted = 0
        self.port = 0
        self.delay_s: Callable[[int], float] = lambda piece: 0.0
        self.piece_bytes = 1 << 16
        self._target = port
        self._tls = tls
        self._pieces = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        assert self._up.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._ended.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            replies, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            requests = asyncio.create_task(self._forward(reader, upstream))
            try:
                await self._hold_back(replies, writer)
            finally:
                requests.cancel()
                await asyncio.gather(requests, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two ends went away, or the test is over
        finally:
            self._tasks.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.close()
                    with suppress(OSError, asyncio.CancelledError):
                        await end.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            upstream.write(data)
            await upstream.drain()
        upstream.write_eof()

    async def _hold_back(self, replies: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await replies.read(self.piece_bytes):
            self._pieces += 1
            if wait_s := self.delay_s(self._pieces):
                await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()
