"""Which gRPC status each error of the domain is answered with.

Floor 6: the only file that joins `server.core.errors` to gRPC's codes. The text is the error's own, unless it is a bug.
"""

import logging
from typing import Literal

from grpc import StatusCode

from server.core import errors

_log = logging.getLogger("podium.door")

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
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
    errors.Restricted: StatusCode.UNAVAILABLE,
    errors.BackendFailed: StatusCode.INTERNAL,
    errors.InputsUnfit: StatusCode.INVALID_ARGUMENT,
    errors.OutOfDeviceMemory: StatusCode.UNAVAILABLE,
    errors.DeviceLost: StatusCode.UNAVAILABLE,
    errors.SharedMemoryFailed: StatusCode.INTERNAL,
    errors.FeaturesUnavailable: StatusCode.UNAVAILABLE,
    errors.InvalidValues: StatusCode.INVALID_ARGUMENT,
    errors.LoadFailed: StatusCode.INTERNAL,
    errors.RegistryError: StatusCode.INTERNAL,
}
"""NVIDIA Triton's codes, because clients decide by them whether to try again. A subclass has its parent's code.

Source: triton-inference-server/server, src/grpc/grpc_utils.cc, 2026-08.
"""

STRICT: dict[type[BaseException], StatusCode] = {
    **CODES,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfDeviceMemory: StatusCode.RESOURCE_EXHAUSTED,
    errors.Expired: StatusCode.DEADLINE_EXCEEDED,
}
"""Codes that tell "full" and "too late" from "not there", for clients that do not expect Triton's."""

RETRY_S = 0.1
"""After how long an overloaded server is asked again, where the error does not say: some batches later."""

PUSHBACK = "grpc-retry-pushback-ms"
"""In the trailing metadata: a client that repeats calls by itself waits so long; a negative number tells it not to.

Source: gRPC proposal A6, "Pushback"; tried out with grpcio 1.85: 200 is waited for before each attempt, -1 ends them.
"""

Codes = Literal["triton", "strict"]
Trailing = tuple[tuple[str, str], ...]
Ending = tuple[StatusCode, str, Trailing]
"""What a call that fails ends with, as gRPC's `abort` takes it: code, text, trailing metadata."""


class _InForce:
    """Which table a process answers by. Ownership: the roof, before anything is served."""

    codes = CODES


def follow(codes: Codes) -> None:
    """Answer by these codes from now on: the setting `error_codes`, one for the whole process, as the log's level is."""
    _InForce.codes = STRICT if codes == "strict" else CODES


def trailing_for(error: BaseException) -> Trailing:
    """What a failed call ends with beside its code and text: nothing by Triton's codes, whose clients know nothing of it."""
    if _InForce.codes is CODES:
        return ()
    if isinstance(error, errors.Overloaded):
        return ((PUSHBACK, str(round(1000 * (RETRY_S if error.retry_after_s is None else error.retry_after_s)))),)
    if isinstance(error, errors.Expired):
        return ((PUSHBACK, "-1"),)  # its time is over: another attempt would be late from the start
    return ()


def code_for(error: BaseException) -> StatusCode:
    """The code in force of the nearest class in the table; INTERNAL for anything else, which is a bug by definition.

    >>> code_for(errors.BackendDead("device lost"))
    <StatusCode.INTERNAL: (13, 'internal')>
    """
    for kind in type(error).__mro__:
        code = _InForce.codes.get(kind)
        if code is not None:
            return code
    return StatusCode.INTERNAL


def told(error: BaseException) -> tuple[StatusCode, str]:
    """Code and text of an error. What is not a `PodiumError` is a bug: logged, not shown to callers."""
    if isinstance(error, errors.PodiumError):
        return code_for(error), str(error)
    _log.error("a call failed unexpectedly", exc_info=error)
    return StatusCode.INTERNAL, f"internal error: {type(error).__name__}"


def ending_for(error: BaseException) -> Ending:
    """All that a call that fails with an error ends with."""
    return *told(error), trailing_for(error)
