"""Who may make which calls: the rules of `[access]`, put around the handlers of the groups that have any.

Floor 6. A group without rules keeps its handlers as they are and pays nothing. In a restricted group the rules are asked
before the call's message is taken in: a stranger costs a header, not `max_message_bytes`.
"""

import hmac
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from server.core.door_settings import AccessRules, AccessSettings
from server.core.errors import InvalidRequest, PermissionDenied, PodiumError, Restricted, Unauthenticated
from server.transport.ending import abort
from server.transport.subjects import SubjectPatterns, names_in
from server.transport.tokens import Tokens

Context = grpc.aio.ServicerContext[Any, Any]
_SERVICE = "inference.GRPCInferenceService"
_MONITORING = "podium.monitoring.v1.MonitoringService"
_HEALTH = ("ServerLive", "ServerReady", "ModelReady")
_MANAGEMENT = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings")
_INFERENCE = (
    *("ModelInfer", "ModelStreamInfer", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")),
)
GROUPS: Mapping[str, str] = {
    **{f"{_SERVICE}/{name}": "health" for name in _HEALTH},
    **{f"{_SERVICE}/{name}": "management" for name in _MANAGEMENT},
    **{f"{_SERVICE}/{name}": "inference" for name in _INFERENCE},
    **{f"{_MONITORING}/{name}": "inference" for name in ("ReportOutcome", "ReportOutcomes")},
    # it shows values of the rows that a model was built with
    f"{_MONITORING}/GetDrift": "management",
    "grpc.health.v1.Health/Check": "health",
    "grpc.health.v1.Health/Watch": "health",
    "grpc.health.v1.Health/List": "health",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "inference",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "inference",
}
"""The group of every call. One that is not here cannot be registered: no call is open because it was forgotten."""

HEADER_PREFIX = "triton-grpc-protocol-"
_BEARER = "bearer "
_REASONS: Mapping[type[PodiumError], str] = {Unauthenticated: "token", Restricted: "header", PermissionDenied: "subject"}
"""The rule that a caller could have satisfied, by what it is told."""


def subject_of(context: Context) -> str:
    """The caller's most specific name in its certificate (`uri:…`, else `cn:…`, else `dns:…`); "" where it has none."""
    return next(iter(names_in(context.auth_context())), "")


class Guard:
    """The rules of one group. Ownership: the event loop."""

    def __init__(self, rules: AccessRules) -> None:
        """Raises: OSError for a tokens file that cannot be read or understood."""
        self._tokens = None if rules.tokens_file is None else Tokens(Path(rules.tokens_file))
        self._subjects = SubjectPatterns(rules.subjects) if rules.subjects else None
        key, _, value = (rules.header or "").partition("=")
        self._header, self._value = HEADER_PREFIX + key, value.encode()
        self._has_header = rules.header is not None

    def refusal(self, context: Context) -> PodiumError | None:
        """Why this call may not be made; None when one of the rules is satisfied."""
        if self._subjects is not None and self._subjects.admit(names_in(context.auth_context())):
            return None
        metadata = context.invocation_metadata() or ()
        if self._has_header and any(
            key == self._header and hmac.compare_digest(str(value).encode(), self._value) for key, value in metadata
        ):
            return None
        if self._tokens is not None:
            return self._check_token(self._tokens, metadata)
        if self._has_header:
            return Restricted(f"This protocol is restricted, expecting header '{self._header}'")
        return PermissionDenied("the client certificate is none of those that may make this call")

    def _check_token(self, tokens: Tokens, metadata: Any) -> PodiumError | None:
        given = [str(value) for key, value in metadata if key == "authorization"]
        if not given:
            return Unauthenticated("this call needs the header 'authorization: Bearer <token>'")
        # one only: a list of them would be a way to try many tokens in one call
        if given[0][: len(_BEARER)].lower() == _BEARER and tokens.admits(given[0][len(_BEARER) :].strip()):
            return None
        return Unauthenticated("the bearer token is none of those that may make this call")


class Access:
    """The guards of all groups, and how often each refused. Ownership: the event loop; `refused` is read by any thread."""

    def __init__(self, settings: AccessSettings) -> None:
        """Raises: OSError as `Guard` does."""
        groups = {"inference": settings.inference, "management": settings.management, "health": settings.health}
        self._guards = {group: Guard(rules) for group, rules in groups.items() if not rules.open}
        self.refused: Counter[tuple[str, str]] = Counter()
        """By group and reason, which are few."""

    def wrap(self, method: str, handler: Any) -> Any:
        """The handler of `package.Service/Method`, behind its group's guard; itself where there is none.

        Raises: KeyError for a method that is in no group.
        """
        group = GROUPS[method]
        rules = self._guards.get(group)
        if rules is None:
            return handler
        admit = partial(self._admit, group, rules)
        codecs = handler.request_deserializer, handler.response_serializer
        # taken as a stream of requests, whatever it is: gRPC reads the message of any other kind before its handler is asked
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else _of_one(handler.unary_stream)
            return grpc.stream_stream_rpc_method_handler(_guarded_stream(admit, inner), *codecs)
        inner = handler.stream_unary if handler.request_streaming else _answer_of_one(handler.unary_unary)
        return grpc.stream_unary_rpc_method_handler(_guarded(admit, inner), *codecs)

    async def _admit(self, group: str, rules: Guard, context: Context) -> None:
        """Return, or end the call."""
        refusal = rules.refusal(context)
        if refusal is not None:
            self.refused[group, _REASONS[type(refusal)]] += 1
            await abort(context, refusal)


Admit = Callable[[Context], Any]
# each of the following lets go of what it was given: gRPC's context keeps the error that ends a call, whose traceback leads
# to these frames, and the request with all its tensors would wait for a collection


def _guarded(admit: Admit, inner: Any) -> Any:
    async def guarded(requests: Any, context: Context) -> Any:
        try:
            await admit(context)
            return await inner(requests, context)
        finally:
            del requests, context

    return guarded


def _guarded_stream(admit: Admit, inner: Any) -> Any:
    """A handler of either kind that grpc.aio knows: a generator, or a coroutine that writes by itself."""
    if not inspect.isasyncgenfunction(inner):
        return _guarded(admit, inner)

    async def guarded(requests: Any, context: Context) -> AsyncIterator[Any]:
        try:
            await admit(context)
            async with aclosing(inner(requests, context)) as responses:
                async for response in responses:
                    yield response
        finally:
            del requests, context

    return guarded


async def _only(context: Context) -> Any:
    """The one message of a call. Not by the iterator that gRPC offers: that keeps the last message until a collection."""
    request = await context.read()
    if request is grpc.aio.EOF:
        await abort(context, InvalidRequest("the call ended before its message"))
    return request


def _answer_of_one(inner: Any) -> Any:
    async def answered(requests: Any, context: Context) -> Any:
        try:
            return await inner(await _only(context), context)
        finally:
            del context

    return answered


def _of_one(inner: Any) -> Any:
    async def streamed(requests: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with aclosing(inner(await _only(context), context)) as responses:
                async for response in responses:
                    yield response
        finally:
            del context

    return streamed
