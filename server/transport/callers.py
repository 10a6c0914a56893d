"""How many inference requests one caller may have open.

Floor 6, off by default: then no handler is wrapped. A caller is who its certificate says; without one, who it declares to be,
which keeps honest services apart and stops nobody who lies; else the machine it calls from.
"""

from collections import Counter
from typing import Any

import grpc

from server.core.errors import Overloaded, PodiumError
from server.core.requests import INVALID_CONSUMER
from server.transport.access import Access, subject_of
from server.transport.ending import abort
from server.transport.infer import consumer_in

Context = grpc.aio.ServicerContext[Any, Any]
_LIMITED = ("inference.GRPCInferenceService/ModelInfer",)
"""Messages of a stream are counted one by one, by `streams.py`."""


def caller_of(context: Context) -> str:
    """Who calls, as one word: of the certificate (as `subject_of`), else `consumer:…`, else the address without its port."""
    subject = subject_of(context)
    if subject:
        return subject
    consumer = consumer_in(context.invocation_metadata() or ())
    return f"consumer:{consumer}" if consumer not in ("", INVALID_CONSUMER) else machine_of(context.peer())


def machine_of(peer: str) -> str:
    """gRPC's word for a peer, without what differs between connections.

    >>> machine_of("ipv4:10.0.0.7:51312"), machine_of("ipv6:%5B::1%5D:51312"), machine_of("unix:")
    ('ipv4:10.0.0.7', 'ipv6:%5B::1%5D', 'unix:')
    """
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


class CallerLimit:
    """Open requests by caller; `most` 0: no limit. Memory: one entry per caller that has any. Ownership: the event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()
        self.refused = 0

    def named(self, context: Context) -> str:
        """The caller of a call, as `enter` and `leave` want it; "" where nobody is limited."""
        return caller_of(context) if self._most else ""

    def enter(self, caller: str) -> None:
        """Count one more in; whoever entered leaves, on every path. Raises: Overloaded, and then nothing was counted."""
        if self._open[caller] >= self._most:
            self.refused += 1
            raise Overloaded(f"exceeds the {self._most} requests that one caller may have open")
        self._open[caller] += 1

    def leave(self, caller: str) -> None:
        """Count one out."""
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    def __len__(self) -> int:
        return len(self._open)

    def limit(self, method: str, handler: Any) -> Any:
        """The handler of `package.Service/Method` within this limit; itself where it is no inference, or there is no limit."""
        if not self._most or method not in _LIMITED:
            return handler
        inner = handler.unary_unary

        async def limited(request: Any, context: Context) -> Any:
            try:
                caller = caller_of(context)
                try:
                    self.enter(caller)
                except PodiumError as error:
                    await abort(context, error)
                try:
                    return await inner(request, context)
                finally:
                    self.leave(caller)
            finally:
                del request, context  # as in `access.py`

        return handler._replace(unary_unary=limited)


def refusals(access: Access, callers: CallerLimit) -> list[tuple[str, str, int]]:
    """What the door refused before anything was decoded: group, reason, and how often. Ownership: any thread."""
    return [*((*key, count) for key, count in access.refused.copy().items()), ("inference", "caller_limit", callers.refused)]
