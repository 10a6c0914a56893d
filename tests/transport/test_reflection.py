"""Tools learn the services and their messages, and an open stream holds nothing up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import grpc_service_pb2 as pb
from server.core.settings import ServerSettings
from server.transport.listen import bind, open_server
from server.transport.malformed import Registrar
from server.transport.reflection import SERVICES, V1, V1_ALPHA, Reflection, add_reflection
from tests.server.certificates import OWN_POOL

Request, Response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse


@asynccontextmanager
async def reflecting() -> AsyncIterator[tuple[str, Reflection, grpc.aio.Server]]:
    server, reflection = open_server(ServerSettings(repository="r")), Reflection()
    registrar: Any = Registrar(server)
    add_reflection(reflection, registrar)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield address, reflection, server
    finally:
        reflection.close()
        await server.stop(30)


def described(address: str) -> None:
    """With gRPC's own client, as a tool would."""
    with grpc.insecure_channel(address, OWN_POOL) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert sorted(database.get_services()) == sorted(SERVICES)
        pool = DescriptorPool(database)
        service = pool.FindServiceByName("inference.GRPCInferenceService")
        assert [method.name for method in service.methods] == [
            method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        ]
        infer = service.FindMethodByName("ModelInfer").input_type
        assert set(infer.fields_by_name) == set(pb.ModelInferRequest.DESCRIPTOR.fields_by_name)
        assert pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["max_batch_size"]
        assert pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Watch")
        for name in (V1, V1_ALPHA):
            method = pool.FindServiceByName(name).FindMethodByName("ServerReflectionInfo")
            assert method.input_type.full_name == f"{name.rpartition('.')[0]}.ServerReflectionRequest"
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("inference.NoSuchMessage")


def test_grpcs_own_client_finds_everything() -> None:
    async def main() -> None:
        async with reflecting() as (address, _, _):
            await asyncio.to_thread(described, address)

    asyncio.run(main())


@pytest.mark.parametrize("service", [V1, V1_ALPHA])
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            Request(list_services="*"),
            lambda got: [each.name for each in got.list_services_response.service] == sorted(SERVICES),
        ),
        (Request(file_by_filename="no/such.proto"), lambda got: got.error_response.error_code == 5),
        (Request(file_containing_symbol="\0"), lambda got: got.error_response.error_code == 5),
        (Request(all_extension_numbers_of_type="none"), lambda got: got.error_response.error_code == 5),
        (Request(), lambda got: got.error_response.error_code == 3),
    ],
)
def test_both_versions_answer(service: str, request_: Any, expected: Callable[[Any], bool]) -> None:
    async def main() -> None:
        async with reflecting() as (address, _, _), grpc.aio.insecure_channel(address, OWN_POOL) as channel:
            method: Any = channel.stream_stream(f"/{service}/ServerReflectionInfo", response_deserializer=Response.FromString)
            stream = method([request_.SerializeToString()] * 3, timeout=30)
            got = [response async for response in stream]
            assert len(got) == 3
            assert all(map(expected, got))

    asyncio.run(main())


def test_what_is_no_message_is_the_caller_s_mistake() -> None:
    async def main() -> None:
        async with reflecting() as (address, _, _), grpc.aio.insecure_channel(address, OWN_POOL) as channel:
            method: Any = channel.stream_stream(f"/{V1}/ServerReflectionInfo")
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await method([b"\xff" * 9], timeout=30).read()
            assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(main())


def test_an_open_stream_does_not_hold_a_drain_up() -> None:
    async def main() -> None:
        async with reflecting() as (address, reflection, server):
            channel = grpc.aio.insecure_channel(address, OWN_POOL)
            method: Any = channel.stream_stream(f"/{V1}/ServerReflectionInfo", response_deserializer=Response.FromString)
            stream = method()
            await stream.write(Request(list_services="*").SerializeToString())
            await stream.read()
            reflection.close()
            await server.stop(600)  # far longer than this test may take
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK
            await channel.close()
            left = [task for task in asyncio.all_tasks() if "reflection" in repr(task.get_coro())]
            assert left == []

    asyncio.run(main())
