"""`grpc.health.v1.Health`: Check and Watch, for orchestrators and client-side load balancers.

The package `grpcio-health-checking` brings the messages and the registration; its own servicer is not used because one watcher
that leaves makes it forget all others of the same service, and open watches would hold up a graceful stop.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.core.errors import InvalidRequest
from server.transport.status import code_for

SERVICES = ("", "inference.GRPCInferenceService")
"""The names a caller may ask about: the server as a whole, and its one service."""

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers whether this server wants traffic. Ownership: the event loop."""

    def __init__(self) -> None:
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Tell callers and watchers. Call on the event loop."""
        if serving != self._serving:
            self._serving = serving
            self._wake()

    def close(self) -> None:
        """End every open watch (after its last status), so that nothing holds the server open."""
        self._closed = True
        self._wake()

    async def Check(self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:  # noqa: N802
        """The status of a service; NOT_FOUND for a name this server does not have."""
        service = await _service(request, context)
        if service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service '{service}'")
        return self._response(service)

    async def Watch(  # noqa: N802
        self, request: Any, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[Any]:
        """The status now and after every change; SERVICE_UNKNOWN for other names, as the protocol wants."""
        service = await _service(request, context)
        last: object = None
        while True:
            changed = self._changed
            response = self._response(service)
            if response.status != last:
                last = response.status
                yield response
                continue  # it may have changed again while this was being sent
            if self._closed:
                return
            await changed.wait()

    def _response(self, service: str) -> Any:
        if service not in SERVICES:
            return Response(status=Response.SERVICE_UNKNOWN)
        return Response(status=Response.SERVING if self._serving else Response.NOT_SERVING)

    def _wake(self) -> None:
        # a fresh event for the next change: whoever waits holds the old one
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()


async def _service(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    try:
        name: str = request.service
    except InvalidRequest as error:
        await context.abort(code_for(error), str(error))
    return name
