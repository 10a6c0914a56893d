"""Server reflection, v1 and v1alpha: tools such as grpcurl ask a server which calls it has, and how their messages look.

Floor 6. The answers are made by `grpcio-reflection`, from a descriptor pool of its own: this project's messages are not in
protobuf's default pool (`protos.pool`). Its servicer is not used as it is, because an open stream would hold up a drain.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from protos import grpc_service_pb2, monitoring_pb2
from server.transport.ending import abort

V1, V1_ALPHA = "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"
SERVICES = (
    *("inference.GRPCInferenceService", "podium.monitoring.v1.MonitoringService", "grpc.health.v1.Health"),
    *(V1, V1_ALPHA),
)


class Reflection(aio.ReflectionServicer):  # type: ignore[misc]
    """Describes this server's services. Ownership: the event loop."""

    def __init__(self) -> None:
        super().__init__(SERVICES, pool=described())
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End every open stream, so that nothing holds the server open."""
        self._closed.set()

    async def ServerReflectionInfo(  # noqa: N802
        self, requests: AsyncIterator[Any], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[Any]:
        """One answer per request, until the caller or the server ends the stream."""
        try:
            async with (
                aclosing(self._until_closed(requests)) as coming,
                aclosing(super().ServerReflectionInfo(coming, context)) as responses,
            ):
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)

    async def _until_closed(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Any]:
        closed = asyncio.create_task(self._closed.wait())
        coming: asyncio.Task[Any] | None = None
        try:
            while True:
                coming = asyncio.create_task(_next(requests))
                await asyncio.wait((coming, closed), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() or (request := coming.result()) is None:
                    return
                yield request
        finally:
            closed.cancel()
            if coming is not None:
                coming.cancel()


def add_reflection(reflection: Reflection, registrar: Any) -> None:
    """Register both versions: they differ in the package's name alone, so that one servicer's bytes are right for both."""
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in (V1, V1_ALPHA):
        registrar.add_registered_method_handlers(service, {"ServerReflectionInfo": handler})


def described() -> DescriptorPool:
    """A pool with the files of every service that this server offers."""
    pool = DescriptorPool()
    for file in (grpc_service_pb2.DESCRIPTOR, monitoring_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        _add(pool, file, set())
    pool.AddSerializedFile(_v1().SerializeToString())
    return pool


def _v1() -> FileDescriptorProto:
    """The file of v1, which no package brings: v1alpha's under its own name."""
    file = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name, file.package = file.name.replace("v1alpha", "v1"), file.package.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
        method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return file


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    for dependency in file.dependencies:
        if dependency.name not in added:
            _add(pool, dependency, added)
    added.add(file.name)
    pool.AddSerializedFile(file.serialized_pb)


async def _next(requests: AsyncIterator[Any]) -> Any:
    return await anext(requests, None)
