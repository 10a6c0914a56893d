"""How a call ends that fails."""

from typing import Any, NoReturn

import grpc

from server.transport.status import ending_for


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """End a call with the code and text of an error, and with what clients that repeat calls should know."""
    try:
        await context.abort(*ending_for(error))
    finally:
        del context  # gRPC's context keeps what it raises: see `Servicer.ModelInfer`
    raise AssertionError("abort raises")
