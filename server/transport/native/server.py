"""The native door's event loop side: calls come as events, and go to the same handlers as grpcio's would.

Floor 6. It has as much of `grpc.aio.Server` as registering and running need. Sockets, HTTP/2 and time are C++'s; nothing here
waits for them, but for the end.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from server.transport.native import interface
from server.transport.native.context import NativeContext
from server.transport.native.handlers import HandlerCallDetails, run
from server.transport.native.interface import Native, NativeCall
from server.transport.native.sockets import Listening, listen
from server.transport.tls import Certificates, Pem

_log = logging.getLogger("podium.door")
_LAST_HANDLERS_S = 1.0
"""How long handlers that were cancelled at the end have to leave. grpc.aio waits for none."""


@dataclass(slots=True, eq=False)
class _Open:
    """A call that has not ended; `task` None: its one message has not arrived."""

    path: str
    handler: Any
    context: NativeContext
    task: "asyncio.Task[None] | None" = None


class NativeServer:
    """Serves calls by their handlers. Ownership: the event loop it was made on."""

    def __init__(self, native: Native, certificates: Certificates | None = None, *, reuse_port: bool = False) -> None:
        """`certificates`: ports are bound with TLS; unix sockets never are."""
        self._native = native
        self._certificates = certificates
        self._used: Pem | None = None
        self._reuse_port = reuse_port
        self._loop = asyncio.get_running_loop()
        self._handlers: list[Any] = []
        self._calls: dict[int, _Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: list[Listening] = []
        self._running = self._stopped = False

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Serve the methods of these handlers, the first that knows one. Their behaviours are async."""
        self._handlers.extend(handlers)

    def bind(self, address: str) -> str:
        """Listen on "HOST:PORT" or "unix:PATH"; the address that clients use (port 0 is any). Before `start`.

        Raises: OSError where the address is taken or is none, or the certificate cannot be used.
        """
        listening = listen(address, reuse_port=self._reuse_port)
        secure = self._certificates is not None and listening.path is None
        if secure:
            self._renew()
            self._native.on_handshake(self._renew_if_possible)
        self._listening.append(listening)
        for fd in listening.hand_over():
            self._native.listen(fd, secure)
        return listening.address

    async def start(self) -> None:
        """Take calls. Once."""
        self._native.start()
        self._running = True
        self._loop.add_reader(self._native.event_fd, self._pump)

    async def stop(self, grace: float | None) -> None:
        """Take no new calls; cancel those that are open after so many seconds, at once for None. Idempotent, and a later call
        with less time ends it sooner."""
        if self._running:
            self._native.drain()
            if grace:
                await asyncio.to_thread(self._native.wait_drained, grace)
        if not self._stopped:
            self._stopped = True
            await asyncio.to_thread(self._native.stop)
            if self._running:
                self._loop.remove_reader(self._native.event_fd)
            self._pump()
            for each in tuple(self._calls.values()):
                self._gone(each)
            for listening in self._listening:
                listening.remove()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_HANDLERS_S)

    def counters(self) -> Any:
        """What the sockets have counted since the start, by name."""
        return self._native.counters()

    # -- certificates ---------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        assert self._certificates is not None
        newest = self._certificates.newest()
        if newest is not self._used:
            try:
                self._native.set_tls(newest.chain, newest.key, newest.roots or b"")
            except RuntimeError as error:
                raise OSError(f"the certificate cannot be used: {error}") from None
            self._used = newest

    def _renew_if_possible(self) -> None:
        """On an IO thread, before a handshake."""
        try:
            self._renew()
        except OSError as error:
            _log.warning("a changed certificate is not used; the one before holds", extra={"reason": str(error)})

    # -- events ---------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        for kind, key, payload in self._native.take_events():
            if kind == interface.STARTED:
                self._started(key, payload)
                continue
            found = self._calls.get(key)
            if found is None:
                continue  # it has ended here, and they did not know yet
            if kind == interface.MESSAGE:
                found.context.feed(payload)
                if found.task is None:
                    self._run(key, found)
            elif kind == interface.HALF_CLOSED:
                found.context.close()
                if found.task is None:
                    # grpc.aio would leave its caller waiting
                    found.context.finish(grpc.StatusCode.INVALID_ARGUMENT.value[0], "the call ended before its message")
                    del self._calls[key]
            elif kind == interface.GONE:
                del self._calls[key]
                self._gone(found)
            else:
                found.context.drained()

    def _started(self, key: int, call: NativeCall) -> None:
        path = call.path
        try:
            handler = self._handler_of(path, call)
        except Exception as error:  # noqa: BLE001 - other calls must not suffer
            _log.exception("no handler could be looked up", extra={"method": path})
            call.finish(grpc.StatusCode.UNKNOWN.value[0], f"Unexpected {type(error)}: {error}", ())
            return
        if handler is None:
            call.finish(grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!", ())
            return
        context = NativeContext(call, handler.request_deserializer, handler.response_serializer)
        found = self._calls[key] = _Open(path, handler, context)
        if handler.request_streaming:
            self._run(key, found)

    def _handler_of(self, path: str, call: NativeCall) -> Any:
        details = HandlerCallDetails(path, call.metadata)
        return next((found for each in self._handlers if (found := each.service(details)) is not None), None)

    def _run(self, key: int, found: _Open) -> None:
        found.task = task = self._loop.create_task(self._answer(key, found))
        # the loop itself holds tasks weakly
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, key: int, found: _Open) -> None:
        try:
            await run(found.handler, found.context, found.path)
        finally:
            if self._calls.get(key) is found:
                del self._calls[key]

    def _gone(self, found: _Open) -> None:
        if found.context.leave() and found.task is not None:
            found.task.cancel()
