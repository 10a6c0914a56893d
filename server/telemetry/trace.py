"""One traced request, and the caller's trace that it may be part of. **Pure.**

Floor 2: the door says what became of a request, sinks write it down or send it away.
"""

import re
from dataclasses import dataclass

from server.core.tensors import Array

QUEUE_INPUT = "TENSOR_QUEUE_INPUT"
BACKEND_OUTPUT = "TENSOR_BACKEND_OUTPUT"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_FORBIDDEN = "ff"
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's own span. `state` is its `tracestate`, handed on as it is."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """A tensor of a traced request. `activity` is Triton's word for where it was seen; `shape` has the batch dimension.

    Ownership: `data` is a copy, bytes in wire form or an array.
    """

    activity: str
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Array


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of a request.

    Units: monotonic ns. `taken_ns`, `started_ns` and `ran_ns` are its batch's, 0 for what never happened. `version` 0: none
    was chosen. `admitted`: it waited in a queue. `code` is gRPC's number; `reason` is what the caller was told. `number` is
    its own among those of this process, from 1.
    """

    number: int
    method: str
    model: str
    version: int
    request_id: str
    arrival_ns: int
    ended_ns: int
    admitted: bool = True
    taken_ns: int = 0
    started_ns: int = 0
    ran_ns: int = 0
    rows: int = 0
    batch_rows: int = 0
    code: int = 0
    reason: str = ""
    parent: Parent | None = None
    timestamps: bool = True
    log_frequency: int = 0
    tensors: tuple[TracedTensor, ...] = ()


def parent_of(traceparent: str, tracestate: str = "") -> Parent | None:
    """The span that a `traceparent` header names; None where it names none, or is not one.

    Source: W3C Trace Context, 3.2: a later version may add fields at the end, version ff and identifiers of zeros are invalid.

    >>> parent_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").sampled
    True
    """
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == _FORBIDDEN or (version == "00" and more):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED), tracestate)
    return parent if parent.trace_id and parent.span_id else None
