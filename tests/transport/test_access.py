"""Every group with every kind of rule, over real sockets: who may call, who may not, and what each is told."""

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from server.core.door_settings import AccessSettings
from server.core.errors import NotFound
from server.core.settings import ServerSettings
from server.transport.access import GROUPS, Access, subject_of
from server.transport.ending import abort
from server.transport.health import Health
from server.transport.listen import bind, open_server
from server.transport.malformed import Registrar
from server.transport.reflection import Reflection, add_reflection
from server.transport.servicer import answer
from server.transport.tls import server_credentials
from tests.server.certificates import OWN_POOL, Authority, credentials

TOKEN = "token-of-the-test"
CALLS = {
    "inference": ["/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/SystemSharedMemoryRegister"],
    "management": ["/inference.GRPCInferenceService/RepositoryModelLoad", "/inference.GRPCInferenceService/LogSettings"],
    "health": ["/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Check"],
}
STREAMS = {
    "inference": [
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
    "health": ["/grpc.health.v1.Health/Watch"],
}
Metadata = Sequence[tuple[str, str]]


class Calls(GRPCInferenceServiceServicer):
    """Calls that are answered, so that those who get through can be told from those who do not."""

    def __init__(self) -> None:
        self.subjects: list[str] = []

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.subjects.append(subject_of(context))
        return await answer(context, lambda: pb.ModelInferResponse(id=request.id))

    async def _unimplemented(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")

    SystemSharedMemoryRegister = _unimplemented
    ModelStreamInfer = _unimplemented  # type: ignore[assignment]  # grpc.aio takes a coroutine for a stream as well

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.RepositoryModelLoadResponse()


class Guarded:
    """A server of the door alone. `outcome` is what a caller sees."""

    def __init__(self, access: Access, address: str, calls: Calls) -> None:
        self.access, self.address, self.calls = access, address, calls

    async def outcome(
        self, method: str, metadata: Metadata = (), channel: grpc.ChannelCredentials | None = None, data: bytes = b""
    ) -> tuple[str, str]:
        # not grpc.aio: its client reports INTERNAL where a stream is refused while its first message is being written
        return await asyncio.to_thread(self._outcome, method, metadata, channel, data)

    def _outcome(
        self, method: str, metadata: Metadata, channel: grpc.ChannelCredentials | None, data: bytes
    ) -> tuple[str, str]:
        with (
            grpc.insecure_channel(self.address, OWN_POOL)
            if channel is None
            else grpc.secure_channel(self.address, channel, OWN_POOL)
        ) as opened:
            try:
                if any(method in methods for methods in STREAMS.values()):
                    streams: Any = opened.stream_stream(method)
                    stream = streams(iter([data]), metadata=metadata, timeout=30)
                    next(stream, None)
                    stream.cancel()
                else:
                    call: Any = opened.unary_unary(method)
                    call(data, metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                ended: Any = error
                return ended.code().name, str(ended.details())
        return "OK", ""


@asynccontextmanager
async def guarded(access: dict[str, Any], tls: dict[str, str] | None = None) -> AsyncIterator[Guarded]:
    settings = ServerSettings.model_validate({"repository": "r", "access": access, "tls": tls or {}})
    kind: Any = Calls  # the stubs call the generated methods abstract; at run time none is
    server, gates, calls = open_server(settings), Access(settings.access), kind()
    registrar: Any = Registrar(server, gates.wrap)
    health, reflection = Health(), Reflection()
    add_GRPCInferenceServiceServicer_to_server(calls, registrar)
    health_pb2_grpc.add_HealthServicer_to_server(health, registrar)
    add_reflection(reflection, registrar)
    address = bind(server, "127.0.0.1:0", server_credentials(settings.tls))
    await server.start()
    try:
        yield Guarded(gates, address, calls)
    finally:
        health.close()
        reflection.close()
        await server.stop(10)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n\n{TOKEN}\nnightly:{hashlib.sha256(b'another').hexdigest()}\n")
    return path


def admitted(outcome: tuple[str, str]) -> bool:
    """Whether the call came as far as its handler: some of them answer that they are not offered."""
    return outcome[0] in ("OK", "UNIMPLEMENTED")


def bearer(token: str) -> Metadata:
    return [("authorization", f"Bearer {token}")]


@pytest.mark.parametrize("group", CALLS)
def test_tokens_admit_to_their_group_and_to_no_other(group: str, tokens: Path) -> None:
    async def main() -> None:
        async with guarded({group: {"tokens_file": str(tokens)}}) as door:
            for method in (*CALLS[group], *STREAMS.get(group, ())):
                missing = ("UNAUTHENTICATED", "this call needs the header 'authorization: Bearer <token>'")
                wrong = ("UNAUTHENTICATED", "the bearer token is none of those that may make this call")
                assert await door.outcome(method) == missing
                for header in (*(bearer(token) for token in ("", TOKEN[:-1], TOKEN + "x")), [("authorization", TOKEN)]):
                    assert await door.outcome(method, header) == wrong
                assert await door.outcome(method, [*bearer("wrong"), *bearer(TOKEN)]) == wrong
                for header in (*(bearer(token) for token in (TOKEN, "another")), [("authorization", f"bearer  {TOKEN}")]):
                    assert admitted(await door.outcome(method, header))
            for other in CALLS.keys() - {group}:
                for method in (*CALLS[other], *STREAMS.get(other, ())):
                    assert admitted(await door.outcome(method))
            assert set(door.access.refused) == {(group, "token")}

    asyncio.run(main())


@pytest.mark.parametrize("group", CALLS)
def test_tritons_header_admits_to_its_group(group: str) -> None:
    async def main() -> None:
        async with guarded({group: {"header": "infer-key=infer=value"}}) as door:
            told = ("UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-infer-key'")
            for method in (*CALLS[group], *STREAMS.get(group, ())):
                assert await door.outcome(method) == told
                assert await door.outcome(method, [("triton-grpc-protocol-infer-key", "infer")]) == told
                assert await door.outcome(method, [("triton-grpc-protocol-other", "infer=value")]) == told
                assert admitted(await door.outcome(method, [("triton-grpc-protocol-infer-key", "infer=value")]))
            other = next(iter(CALLS.keys() - {group}))
            assert admitted(await door.outcome(CALLS[other][0]))

    asyncio.run(main())


@pytest.mark.parametrize("group", CALLS)
def test_certificates_admit_by_name(group: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    tls = {"cert_file": str(cert), "key_file": str(key), "client_ca_file": str(authority.root)}
    named = credentials(authority.root, authority.issue("named", "a.example", common_name="billing"))
    by_dns = credentials(authority.root, authority.issue("by_dns", "Web1.internal", common_name="web"))
    by_uri = credentials(authority.root, authority.issue_uri("by_uri", "spiffe://example/ns/a/sa/web"))
    # a name of the right text and the wrong kind
    posing = credentials(authority.root, authority.issue("posing", "billing", common_name="web1.internal"))

    async def main() -> None:
        async with guarded(
            {group: {"subjects": ["cn:billing", "dns:*.internal", "uri:spiffe://example/ns/*/sa/web"]}}, tls
        ) as door:
            for method in (*CALLS[group], *STREAMS.get(group, ())):
                assert admitted(await door.outcome(method, channel=named))
                assert admitted(await door.outcome(method, channel=by_dns))
                assert admitted(await door.outcome(method, channel=by_uri))
                told = ("PERMISSION_DENIED", "the client certificate is none of those that may make this call")
                assert await door.outcome(method, bearer(TOKEN), posing) == told
            other = next(iter(CALLS.keys() - {group}))
            assert admitted(await door.outcome(CALLS[other][0], channel=posing))
            await door.outcome(CALLS["inference"][0], channel=named)
            await door.outcome(CALLS["inference"][0], channel=by_uri)
            assert door.calls.subjects[-2:] == ["cn:billing", "uri:spiffe://example/ns/a/sa/web"]

    asyncio.run(main())


def test_any_rule_of_a_group_admits(tmp_path: Path, tokens: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    tls = {"cert_file": str(cert), "key_file": str(key), "client_ca_file": str(authority.root)}
    named = credentials(authority.root, authority.issue("named", "a.example"))
    stranger = credentials(authority.root, authority.issue("stranger", "b.example"))
    rules = {"tokens_file": str(tokens), "subjects": ["dns:a.example"], "header": "k=v"}
    method = CALLS["inference"][0]

    async def main() -> None:
        async with guarded({"inference": rules}, tls) as door:
            assert await door.outcome(method, channel=named) == ("OK", "")
            assert door.calls.subjects == ["dns:a.example"]
            assert await door.outcome(method, bearer(TOKEN), stranger) == ("OK", "")
            assert await door.outcome(method, [("triton-grpc-protocol-k", "v")], stranger) == ("OK", "")
            assert (await door.outcome(method, channel=stranger))[0] == "UNAUTHENTICATED"

    asyncio.run(main())


def test_tokens_change_while_serving(tokens: Path) -> None:
    method = CALLS["inference"][0]

    async def main() -> None:
        async with guarded({"inference": {"tokens_file": str(tokens)}}) as door:
            assert await door.outcome(method, bearer(TOKEN)) == ("OK", "")
            replace(tokens, "the-next-one\n")
            assert (await door.outcome(method, bearer(TOKEN)))[0] == "UNAUTHENTICATED"
            assert await door.outcome(method, bearer("the-next-one")) == ("OK", "")
            replace(tokens, "not a token\n")
            assert await door.outcome(method, bearer("the-next-one")) == ("OK", "")
            replace(tokens, "")
            assert (await door.outcome(method, bearer("the-next-one")))[0] == "UNAUTHENTICATED"

    asyncio.run(main())


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_open_groups_keep_their_handlers() -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: None)
    access = Access(AccessSettings.model_validate({"inference": {"header": "k=v"}}))
    assert all((access.wrap(method, handler) is handler) == (group != "inference") for method, group in GROUPS.items())
    with pytest.raises(KeyError):
        access.wrap("some.Service/Call", handler)


def test_a_stranger_s_message_is_not_taken_in(tokens: Path) -> None:
    """The answer comes although the message never does: nothing is kept for who may not call."""

    async def main() -> None:
        async with guarded({"inference": {"tokens_file": str(tokens)}}) as door:

            async def never() -> AsyncIterator[bytes]:
                await asyncio.Event().wait()
                yield b""

            async with grpc.aio.insecure_channel(door.address, OWN_POOL) as channel:
                method: Any = channel.stream_unary(CALLS["inference"][0])
                with pytest.raises(grpc.aio.AioRpcError) as told:
                    await method(never(), timeout=60)
            assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(main())


def test_a_call_without_a_message_and_one_that_is_none(tokens: Path) -> None:
    async def main() -> None:
        rule = {"tokens_file": str(tokens)}
        async with guarded({"health": rule, "inference": rule}) as door:
            async with grpc.aio.insecure_channel(door.address, OWN_POOL) as channel:
                for method in ("/inference.GRPCInferenceService/ServerLive", "/grpc.health.v1.Health/Watch"):
                    stream: Any = channel.stream_stream(method)
                    with pytest.raises(grpc.aio.AioRpcError) as told:
                        await stream([], metadata=bearer(TOKEN), timeout=30).read()
                    assert told.value.details() == "the call ended before its message"
            garbage = await door.outcome(CALLS["inference"][0], bearer(TOKEN), data=b"\xff" * 9)
            assert garbage == ("INVALID_ARGUMENT", "the body of the call cannot be parsed as its request message")

    asyncio.run(main())


def test_a_request_that_fails_is_let_go(tokens: Path) -> None:
    """Nothing of a guarded call waits for a collection: not its request, and not what its error leads to."""
    held: list[ref[Any]] = []

    class Request:
        pass

    async def fails(request: Any, context: Any) -> Any:
        held.append(ref(request))
        try:
            if len(held) > 1:
                await abort(context, NotFound("no"))
            return b""
        finally:
            del request, context

    def parsed(data: bytes) -> Request:
        return Request()

    async def main() -> None:
        settings = ServerSettings(repository="r")
        server = open_server(settings)
        access = Access(AccessSettings.model_validate({"inference": {"tokens_file": str(tokens)}}))
        handler = access.wrap(
            "inference.GRPCInferenceService/ModelInfer", grpc.unary_unary_rpc_method_handler(fails, request_deserializer=parsed)
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
        address = bind(server, "127.0.0.1:0")
        await server.start()
        gc.disable()
        try:
            async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
                call: Any = channel.unary_unary("/s/m")
                assert await call(b"", metadata=bearer(TOKEN), timeout=30) == b""
                for _ in range(2):
                    with pytest.raises(grpc.aio.AioRpcError, match="no"):
                        await call(b"", metadata=bearer(TOKEN), timeout=30)
            await server.stop(None)
            assert [each() for each in held] == [None] * 3
        finally:
            gc.enable()

    asyncio.run(main())


def test_without_a_certificate_there_is_no_subject() -> None:
    async def main() -> None:
        async with guarded({}) as door:
            assert await door.outcome(CALLS["inference"][0]) == ("OK", "")
            assert door.calls.subjects == [""]

    asyncio.run(main())
