"""How a handler is run, whichever of the four kinds it is, and what its call ends with.

Floor 6: grpc.aio's rules, as far as callers and handlers see them. Nothing here keeps a message longer than its handler does.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from server.transport.native.context import NativeContext

_log = logging.getLogger("podium.door")
_UNKNOWN = 2


class HandlerCallDetails(grpc.HandlerCallDetails):
    """What a handler is looked up by."""

    def __init__(self, method: str, invocation_metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


async def run(handler: Any, context: NativeContext, path: str) -> None:
    """Answer a call; its first message is there, unless it is a stream of them. It ends the call, whatever happens."""
    try:
        await _run(handler, context)
    except asyncio.CancelledError:
        # because the caller has gone, or the server has; a handler that stopped itself must not leave its caller waiting
        context.finish(grpc.StatusCode.CANCELLED.value[0], "")
    except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
        if not _is_an_end(error, context):
            _log.exception("a handler failed", extra={"method": path})
            context.finish(context.number or _UNKNOWN, f"Unexpected {type(error)}: {error}")
    finally:
        _called_back(context, path)


def _is_an_end(error: Exception, context: NativeContext) -> bool:
    """Whether a call ended so, and not its handler: it was aborted, or written to after its caller had gone."""
    return (isinstance(error, grpc.aio.AbortError) and context.aborted) or (
        isinstance(error, grpc.aio.InternalError) and context.gone
    )


def _called_back(context: NativeContext, path: str) -> None:
    try:
        context.run_callbacks()
    except Exception:  # noqa: BLE001 - the call has ended
        _log.exception("a callback of a call failed", extra={"method": path})


async def _run(handler: Any, context: NativeContext) -> None:
    request = _Requests(context) if handler.request_streaming else context.parsed(context.take())
    if handler.response_streaming:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        if inspect.isasyncgenfunction(behaviour):
            answers = behaviour(request, context)
            del request
            await _write_all(answers, context)
        else:
            answered = behaviour(request, context)
            del request
            await answered
        context.check()
        context.finish(context.number, context.details())
        return
    behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
    answered = behaviour(request, context)
    del request
    response = await answered
    context.check()
    if context.number:
        context.finish(context.number, context.details())
    else:
        context.answer(context.serialized(response))


async def _write_all(answers: Any, context: NativeContext) -> None:
    # closed at once when its caller leaves, not by a collection
    async with aclosing(answers):
        async for answer in answers:
            await context.write(answer)


class _Requests:
    """The messages of a call, in turn. Ownership: one handler."""

    def __init__(self, context: NativeContext) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
