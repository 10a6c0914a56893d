"""Bodies that are no message are the caller's mistake, and are answered as one.

Floor 6. gRPC's own way is status UNKNOWN and an error with its traceback in the log, once per call that any stranger makes.
Here parsing yields a stand-in instead, whose fields raise InvalidRequest where the method reads them: within the method's
own handling of errors, and at no cost for the calls that parse.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from server.core.errors import InvalidRequest
from server.transport.listen import Door


class Malformed:
    """In the place of a request that could not be parsed."""

    def __getattr__(self, name: str) -> NoReturn:
        raise InvalidRequest("the body of the call cannot be parsed as its request message")


def tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`parse`, with a stand-in for what it refuses."""

    def deserialize(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Malformed()

    return deserialize


class Registrar:
    """What the generated `add_…Servicer_to_server` functions are given in place of the server."""

    def __init__(self, server: Door, *wraps: Callable[[str, Any], Any]) -> None:
        """`wraps`: what is put around each handler, from the inside out; given `package.Service/Method` and the handler."""
        self._server = server
        self._wraps = wraps

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: the generated code hands the same methods to `add_registered_method_handlers`, where they are readable."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve these methods, tolerantly."""
        wrapped = {
            name: handler._replace(request_deserializer=tolerant(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        for wrap in self._wraps:
            wrapped = {name: wrap(f"{service}/{name}", handler) for name, handler in wrapped.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
