"""An HTTP/2 server whose every byte a test chooses: no library would let it answer so badly."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

SETTINGS, HEADERS, DATA, RST, GOAWAY = 4, 1, 0, 3, 7
END_STREAM, END_HEADERS = 1, 4
OK = b"\x88"
""":status 200, of HPACK's static table."""
STATUS_0 = b"\x00\x0bgrpc-status\x010"
_PREFACE_BYTES = 24


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def answered(stream: int, message: bytes, trailers: bytes = STATUS_0, headers: bytes = OK) -> bytes:
    head, data = frame(HEADERS, END_HEADERS, stream, headers), frame(DATA, 0, stream, message)
    return head + data + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


Behaviour = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def raw_server(behave: Behaviour) -> Iterator[str]:
    """HTTP/2 by hand: `behave` gets each request's stream and message, and writes whatever bytes it likes."""
    loop = asyncio.new_event_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(_PREFACE_BYTES)
            writer.write(frame(SETTINGS, 0, 0, b""))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == SETTINGS and not head[4]:
                    writer.write(frame(SETTINGS, 1, 0, b""))
                if head[3] == DATA:
                    task = loop.create_task(answer(int.from_bytes(head[5:], "big"), payload, writer))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def answer(stream: int, payload: bytes, writer: asyncio.StreamWriter) -> None:
        await behave(stream, payload[5:], writer)

    listening = socket.create_server(("127.0.0.1", 0))
    server = loop.run_until_complete(asyncio.start_server(serve, sock=listening))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await server.wait_closed()

    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
