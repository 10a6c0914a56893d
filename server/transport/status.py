"""Which gRPC status each error of the domain is answered with.

Floor 6: the only file that joins `server.core.errors` to gRPC's codes. It never makes a text: that is the error's own.
"""

from grpc import StatusCode

from server.core import errors

CODES: dict[type[BaseException], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.NotReady: StatusCode.UNAVAILABLE,
    errors.Overloaded: StatusCode.UNAVAILABLE,
    errors.Expired: StatusCode.UNAVAILABLE,
    errors.ShuttingDown: StatusCode.UNAVAILABLE,
    errors.Cancelled: StatusCode.CANCELLED,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.BackendFailed: StatusCode.INTERNAL,
    errors.SharedMemoryFailed: StatusCode.INTERNAL,
    errors.LoadFailed: StatusCode.INTERNAL,
    errors.RegistryError: StatusCode.INTERNAL,
}
"""NVIDIA Triton's codes, because clients decide by them whether to try again. A subclass has its parent's code.

Source: triton-inference-server/server, src/grpc/grpc_utils.cc, 2026-08.
"""


def code_for(error: BaseException) -> StatusCode:
    """The code of the nearest class in the table; INTERNAL for anything else, which is a bug by definition.

    >>> code_for(errors.BackendDead("device lost"))
    <StatusCode.INTERNAL: (13, 'internal')>
    """
    for kind in type(error).__mro__:
        code = CODES.get(kind)
        if code is not None:
            return code
    return StatusCode.INTERNAL
