"""Every error of the domain has a code, and it is the one clients of NVIDIA Triton act on."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from server.core import errors
from server.core.errors import PodiumError
from server.core.settings import ServerSettings
from server.transport.ending import abort
from server.transport.listen import bind, open_server
from server.transport.status import CODES, PUSHBACK, code_for, follow, trailing_for


def subclasses(kind: type[PodiumError]) -> Iterator[type[PodiumError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_has_a_code_of_its_own_or_of_a_parent() -> None:
    kinds = list(subclasses(PodiumError))
    assert len(kinds) >= 13
    for kind in kinds:
        assert any(parent in CODES for parent in kind.__mro__), kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("x"), StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("x"), StatusCode.NOT_FOUND),
        (errors.AlreadyExists("x"), StatusCode.ALREADY_EXISTS),
        (errors.NotReady("x"), StatusCode.UNAVAILABLE),
        (errors.Overloaded("x"), StatusCode.UNAVAILABLE),
        (errors.Expired("x"), StatusCode.UNAVAILABLE),
        (errors.ShuttingDown("x"), StatusCode.UNAVAILABLE),
        (errors.Cancelled("x"), StatusCode.CANCELLED),
        (errors.Unsupported("x"), StatusCode.UNIMPLEMENTED),
        (errors.Unauthenticated("x"), StatusCode.UNAUTHENTICATED),
        (errors.PermissionDenied("x"), StatusCode.PERMISSION_DENIED),
        (errors.Restricted("x"), StatusCode.UNAVAILABLE),
        (errors.BackendFailed("x"), StatusCode.INTERNAL),
        (errors.InputsUnfit("x"), StatusCode.INVALID_ARGUMENT),
        (errors.InvalidValues("x"), StatusCode.INVALID_ARGUMENT),
        (errors.BackendDead("x"), StatusCode.INTERNAL),
        (errors.SharedMemoryFailed("x"), StatusCode.INTERNAL),
        (errors.LoadFailed("x"), StatusCode.INTERNAL),
        (errors.RegistryError("x"), StatusCode.INTERNAL),
    ],
)
def test_codes(error: PodiumError, code: StatusCode) -> None:
    assert code_for(error) is code


def test_an_error_of_no_known_kind_is_a_bug() -> None:
    assert code_for(KeyError("x")) is StatusCode.INTERNAL


def test_a_new_subclass_inherits() -> None:
    parents: tuple[type[errors.NotFound]] = (errors.NotFound,)
    # made from `type`, so that it is gone again before another test walks the subclasses
    assert code_for(type("NoSuchAlias", parents, {})("x")) is StatusCode.NOT_FOUND


def test_codes_that_triton_never_answers_are_not_used() -> None:
    never = {StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.FAILED_PRECONDITION}
    assert never.isdisjoint(CODES.values())


@pytest.fixture
def strict() -> Iterator[None]:
    follow("strict")
    yield
    follow("triton")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("error", "code", "pushback"),
    [
        (errors.Overloaded("x"), StatusCode.RESOURCE_EXHAUSTED, "100"),
        (errors.Overloaded("x", 1.2345), StatusCode.RESOURCE_EXHAUSTED, "1234"),
        (errors.Overloaded("x", 0.0), StatusCode.RESOURCE_EXHAUSTED, "0"),
        (errors.Expired("x"), StatusCode.DEADLINE_EXCEEDED, "-1"),
        (errors.NotReady("x"), StatusCode.UNAVAILABLE, None),
        (errors.InvalidRequest("x"), StatusCode.INVALID_ARGUMENT, None),
    ],
)
def test_strict_codes_say_whether_to_try_again(error: PodiumError, code: StatusCode, pushback: str | None) -> None:
    assert code_for(error) is code
    assert trailing_for(error) == (() if pushback is None else ((PUSHBACK, pushback),))


def test_tritons_codes_say_nothing_more() -> None:
    assert trailing_for(errors.Overloaded("x")) == trailing_for(errors.Expired("x")) == ()


async def attempts(error: PodiumError) -> tuple[int, str]:
    """How often a client with a retry policy calls a method that always fails so, and the code that it ends with."""
    made = 0

    async def fails(request: bytes, context: Any) -> bytes:
        nonlocal made
        made += 1
        await abort(context, error)

    server = open_server(ServerSettings(repository="r"))
    handlers: dict[str, Any] = {"m": grpc.unary_unary_rpc_method_handler(fails)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
    address = bind(server, "127.0.0.1:0")
    await server.start()
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{"service": "s"}], "retryPolicy": policy}]})
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", config)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        call: Any = channel.unary_unary("/s/m")
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call(b"", timeout=30)
    await server.stop(None)
    return made, told.value.code().name


@pytest.mark.usefixtures("strict")
def test_grpcs_clients_obey_the_pushback() -> None:
    assert asyncio.run(attempts(errors.Overloaded("x", 0.001))) == (3, "RESOURCE_EXHAUSTED")
    assert asyncio.run(attempts(errors.Expired("x"))) == (1, "DEADLINE_EXCEEDED")


def test_without_pushback_they_do_as_their_policy_says() -> None:
    assert asyncio.run(attempts(errors.Expired("x"))) == (3, "UNAVAILABLE")
