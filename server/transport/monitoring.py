"""`podium.monitoring.v1.MonitoringService`: outcomes in, verdicts out. Nothing here decides anything.

Floor 6. A stream of outcomes has one message in hand at a time: who sends on waits in HTTP/2's own flow control. An outcome
that is refused is answered so, and the stream goes on; it ends where the server cannot take any more, and everything before
the message that it ended at has been answered.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from protos import monitoring_pb2 as pb
from protos.monitoring_pb2_grpc import MonitoringServiceServicer
from server.core.errors import Cancelled, InvalidRequest, NotFound, ShuttingDown, Unsupported
from server.monitoring.outcome import Receipt, ReceiptStatus
from server.service.outcomes import Outcomes, Reported
from server.transport.ending import abort
from server.transport.streams import LEAVING
from server.transport.waiting import WaitingThreads

Context = grpc.aio.ServicerContext[Any, Any]
Drift = Callable[[str, str, int], pb.DriftReport]
"""The report on a model, a version ("": all) and so many windows back (0: one). Raises: the errors of the domain."""

STATUSES: Mapping[ReceiptStatus, Any] = {
    ReceiptStatus.ACCEPTED: pb.OutcomeReceipt.ACCEPTED,
    ReceiptStatus.DUPLICATE: pb.OutcomeReceipt.DUPLICATE,
    ReceiptStatus.REPLACED: pb.OutcomeReceipt.REPLACED,
    ReceiptStatus.LATE: pb.OutcomeReceipt.LATE,
    ReceiptStatus.NOT_SAMPLED: pb.OutcomeReceipt.NOT_SAMPLED,
}

_REFUSALS = (InvalidRequest, NotFound, Unsupported)
"""What is wrong with one outcome, and says nothing about the next."""

_WAITING_THREADS = 2
"""For reports on drift, which may be large, and for outcomes that are forwarded."""


class MonitoringCalls(MonitoringServiceServicer):
    """Ownership: the event loop it was made on."""

    def __init__(self, outcomes: Outcomes, drift: Drift) -> None:
        """`drift` is called on a thread."""
        self._outcomes = outcomes
        self._drift = drift
        self._threads = WaitingThreads(_WAITING_THREADS)
        self._idle: set[asyncio.Task[bool]] = set()
        self._closed = False

    def close(self) -> None:
        """End every open stream once what was read of it is answered, so that nothing holds the server open."""
        self._closed = True
        for each in self._idle:
            each.cancel()

    async def ReportOutcome(self, request: pb.Outcome, context: Context) -> pb.OutcomeReceipt:  # noqa: N802
        """Take one outcome; an error ends the call."""
        try:
            return await self._taken(request)
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)
        finally:
            del context  # as in `Servicer.ModelInfer`

    async def ReportOutcomes(self, requests: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Take many, each answered in its turn. `requests` is not used: this reads from the context, and writes to it."""
        # a task of its own, so that the server can stop it while it waits for a message
        answering = asyncio.get_running_loop().create_task(self._answer_all(context))
        try:
            if not await self._ended(answering):
                raise ShuttingDown(LEAVING)
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)
        finally:
            del context, answering

    async def GetDrift(self, request: pb.DriftRequest, context: Context) -> pb.DriftReport:  # noqa: N802
        """Every verdict with every number that it was found by."""
        try:
            model, version, windows = request.model_name, request.model_version, request.windows
            return await self._threads.run(lambda: self._drift(model, version, windows))
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)
        finally:
            del context

    async def _ended(self, answering: "asyncio.Task[bool]") -> bool:
        """Whether all that a caller sent was answered; False where the server left first."""
        try:
            return await answering
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise  # the caller has gone
            return False

    async def _answer_all(self, context: Context) -> bool:
        own = asyncio.current_task()
        assert own is not None
        try:
            while not self._closed:
                self._idle.add(own)
                try:
                    message = await context.read()
                finally:
                    self._idle.discard(own)
                if message is grpc.aio.EOF:
                    return True
                await context.write(await self._answered(message))
        except grpc.aio.InternalError:
            # gRPC noticed while it wrote or read, before it could cancel this
            raise Cancelled("the caller has gone") from None
        return False

    async def _answered(self, message: Any) -> pb.OutcomeReceipt:
        try:
            return await self._taken(message)
        except _REFUSALS as error:
            return _refused(message, error)

    async def _taken(self, message: Any) -> pb.OutcomeReceipt:
        reported = reported_of(message)
        if self._outcomes.may_wait:
            receipt = await self._threads.run(lambda: self._outcomes.report(reported))
        else:
            receipt = self._outcomes.report(reported)
        return receipt_of(reported, receipt)


def reported_of(message: Any) -> Reported:
    """What a message says. Raises: InvalidRequest for a body that was no message."""
    kind = message.WhichOneof("label")
    return Reported(
        model=message.model_name,
        version=message.model_version,
        prediction_id=message.prediction_id,
        row=message.row,
        label=None if kind is None else getattr(message, kind),
        observed_us=message.observed_at_us,
    )


def receipt_of(reported: Reported, receipt: Receipt) -> pb.OutcomeReceipt:
    """The answer to an outcome that was taken."""
    return pb.OutcomeReceipt(
        prediction_id=reported.prediction_id,
        row=reported.row,
        status=STATUSES[receipt.status],
        model_version=str(receipt.version or ""),
    )


def _refused(message: Any, error: Exception) -> pb.OutcomeReceipt:
    refused = pb.OutcomeReceipt(status=pb.OutcomeReceipt.INVALID, error=str(error))
    if isinstance(message, pb.Outcome):
        refused.prediction_id, refused.row = message.prediction_id, message.row
    return refused
