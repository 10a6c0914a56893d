"""Doors of both kinds with toy handlers behind them: what a caller or a handler can tell apart is a fault."""

import importlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from server.core.settings import ServerSettings
from server.transport.listen import Door, GrpcioDoor
from tests.server.certificates import OWN_POOL

UNLIMITED: list[tuple[str, int]] = [*OWN_POOL, ("grpc.max_receive_message_length", -1)]
KINDS: dict[str, Callable[..., Any]] = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "down": grpc.unary_stream_rpc_method_handler,
    "up": grpc.stream_unary_rpc_method_handler,
    "both": grpc.stream_stream_rpc_method_handler,
}


def new_door(kind: str, **settings: Any) -> Door:
    """A door of a kind of data plane; behind the native one there is no plane."""
    chosen = ServerSettings.model_validate({"repository": "r", **settings})
    if kind == "python":
        return GrpcioDoor(chosen)
    door: Door = importlib.import_module("server.transport.native.open").open_native(chosen)
    return door


def handlers_of(**behaviours: Any) -> Any:
    """A service `s`; a name begins with its kind. A value may be a handler already made."""
    methods = {name: KINDS[name.partition("_")[0]](each) if callable(each) else each for name, each in behaviours.items()}
    return grpc.method_handlers_generic_handler("s", methods)


class Toy:
    """A served toy and a channel to it."""

    def __init__(self, door: Door, address: str, channel: grpc.aio.Channel) -> None:
        self.door = door
        self.address = address
        self.channel = channel

    def call(self, method: str, kind: str = "") -> Any:
        """The multicallable of a method, of raw bytes; as if the method were of another kind, where that is given."""
        kinds: Mapping[str, Any] = {
            "unary": self.channel.unary_unary,
            "down": self.channel.unary_stream,
            "up": self.channel.stream_unary,
            "both": self.channel.stream_stream,
        }
        return kinds[kind or method.partition("_")[0]](f"/s/{method}")

    async def outcome(self, method: str, message: bytes = b"q", **call: Any) -> tuple[Any, ...]:
        """Answer, code and text of a unary call."""
        made = self.call(method)(message, timeout=call.pop("timeout", 30), **call)
        try:
            answer = await made
        except grpc.aio.AioRpcError as error:
            return None, error.code().name, error.details()
        return answer, (await made.code()).name, await made.details()


@asynccontextmanager
async def serving(kind: str, *, door_settings: Mapping[str, Any] | None = None, **behaviours: Any) -> AsyncIterator[Toy]:
    """A door with toy handlers, served until the end."""
    door = new_door(kind, **(door_settings or {}))
    door.add_generic_rpc_handlers((handlers_of(**behaviours),))
    address = door.bind("127.0.0.1:0")
    await door.start()
    try:
        async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
            yield Toy(door, address, channel)
    finally:
        await door.stop(None)
