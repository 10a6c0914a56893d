"""What the door knows of a request that is traced.

Floor 6, off the hot path: only what was chosen comes here, when it has ended. A stream calls `Inference.finished` once per
message, as `Inference.once` does.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import grpc

from protos import grpc_service_pb2 as pb
from server.core.requests import Caller, InferRequest
from server.core.tensors import Array
from server.dataplane.interface import Execution
from server.dataplane.ticket import Ticket
from server.lifecycle.replica import Replica
from server.service.predict import Hit
from server.telemetry.trace import BACKEND_OUTPUT, QUEUE_INPUT, Trace, TracedTensor
from server.telemetry.tracer import Chosen, Tracer
from server.transport.status import code_for

NO_TRACER = Tracer()
"""Traces nothing, and cannot be made to."""

_NOT_EXECUTED = Execution(0)
_LONGEST = 1024
"""Characters of a caller's own words that a trace keeps: an id may be as long as a message, headers as long as
`max_metadata_bytes`, and many traces wait at once."""


class Admitted(Protocol):
    """As much of `infer.Pending` as a trace is made of."""

    request: InferRequest
    replica: Replica
    ticket: Ticket | Hit


def traced_caller(caller: Caller, metadata: Sequence[tuple[str, str | bytes]] | None) -> Caller:
    """A caller with the W3C trace context of a call, if it has one."""
    found: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for key, value in metadata or ():
        if key in found:
            found[key].append(str(value))
    if len(found["traceparent"]) != 1:
        return caller  # none, or nobody knows which
    state = ",".join(found["tracestate"])
    # whole or not at all, as W3C has it: a part of it would say something else
    return replace(caller, traceparent=found["traceparent"][0], tracestate=state if len(state) <= _LONGEST else "")


def record(
    tracer: Tracer,
    chosen: Chosen,
    method: str,
    message: pb.ModelInferRequest,
    arrival_ns: int,
    pending: Admitted | None,
    error: BaseException | None,
    outputs: Mapping[str, Array] | None,
) -> None:
    """Hand what became of a chosen request to the tracer."""
    version = rows = 0
    execution = _NOT_EXECUTED
    tensors: tuple[TracedTensor, ...] = ()
    if pending is not None:
        version = pending.replica.key.version
        if type(pending.ticket) is not Hit:
            rows = pending.ticket.rows
            execution = pending.ticket.execution or _NOT_EXECUTED
        if chosen.tensors:
            tensors = tuple(_tensors(pending, outputs or {}))
    tracer.record(
        Trace(
            number=chosen.number,
            method=method,
            model=message.model_name[:_LONGEST],
            version=version,
            request_id=message.id[:_LONGEST],
            arrival_ns=arrival_ns,
            ended_ns=tracer.clock(),
            admitted=pending is not None and type(pending.ticket) is not Hit,
            taken_ns=execution.taken_ns,
            started_ns=execution.started_ns,
            ran_ns=execution.ran_ns,
            rows=rows,
            batch_rows=execution.rows,
            code=_code(error),
            reason="" if error is None else str(error)[:_LONGEST],
            parent=chosen.parent,
            timestamps=chosen.timestamps,
            log_frequency=chosen.rules.log_frequency,
            tensors=tensors,
        )
    )


def _tensors(pending: Admitted, outputs: Mapping[str, Array]) -> Iterator[TracedTensor]:
    """Copies: what a request brought, or was given, may not be there any more once it has been answered."""
    for tensor in pending.request.inputs:
        data: Any = tensor.data
        copied = bytes(data) if isinstance(data, bytes | memoryview) else data.copy()
        yield TracedTensor(QUEUE_INPUT, tensor.name, tensor.datatype, tensor.shape, copied)
    specs = pending.replica.signature.output_names
    for name in pending.request.outputs or specs:
        if name in outputs:
            yield TracedTensor(BACKEND_OUTPUT, name, specs[name].datatype, outputs[name].shape, outputs[name].copy())


def _code(error: BaseException | None) -> int:
    """gRPC's number of how a call ended."""
    if error is None:
        return 0
    code = grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else code_for(error)
    number: int = code.value[0]
    return number
