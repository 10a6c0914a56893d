"""Doubles for what gRPC gives a method."""

import asyncio
from typing import Any

import grpc


class Aborted(Exception):
    """Raised by `abort`, as gRPC does."""


class Context:
    """A call's context: remembers how it was ended, and what it raised, as gRPC's does."""

    def __init__(self, remaining_s: float | None = None, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self.remaining_s = remaining_s
        self.metadata = metadata
        self.ended: tuple[grpc.StatusCode, str] | None = None
        self.trailing: tuple[tuple[str, str], ...] = ()
        self.raised: Aborted | None = None

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    async def abort(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> Any:
        assert self.ended is None
        self.ended, self.trailing = (code, details), trailing
        self.raised = raised = Aborted()
        del self  # gRPC's own is no Python frame, so that a traceback does not lead to the context through it
        raise raised


class StreamContext(Context):
    """A stream's context: messages are put into `arriving`, answers come out in `written` while `reads` is set."""

    def __init__(self, remaining_s: float | None = None, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        super().__init__(remaining_s, metadata)
        self.arriving: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[Any] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def read(self) -> Any:
        message = await self.arriving.get()
        try:
            if isinstance(message, Exception):
                raise message
            return message
        finally:
            del message

    async def write(self, message: Any) -> None:
        await self.reads.wait()
        await asyncio.sleep(0)
        self.written.append(message)
