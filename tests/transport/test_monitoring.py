"""Outcomes and reports on drift over real sockets, by both doors: what callers are told, and what ends a stream."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from protos import monitoring_pb2 as pb
from protos.monitoring_pb2_grpc import MonitoringServiceStub, add_MonitoringServiceServicer_to_server
from server.core.door_settings import AccessSettings
from server.core.errors import BackendFailed, InvalidRequest, NotFound, Overloaded, Unsupported
from server.monitoring.outcome import Receipt, ReceiptStatus
from server.service.outcomes import Reported
from server.transport.access import GROUPS, Access
from server.transport.malformed import Registrar
from server.transport.monitoring import STATUSES, MonitoringCalls
from tests.server.certificates import OWN_POOL
from tests.transport.doors import new_door

SERVICE = "podium.monitoring.v1.MonitoringService"


class Taking:
    """Answers by a rule of the test, and remembers what it is told."""

    def __init__(self, answer: Callable[[Reported], Receipt], *, may_wait: bool = False) -> None:
        self._answer = answer
        self.may_wait = may_wait
        self.reported: list[Reported] = []
        self.threads: set[str] = set()

    def report(self, reported: Reported) -> Receipt:
        self.reported.append(reported)
        self.threads.add(threading.current_thread().name)
        return self._answer(reported)


class Served:
    """A door with the service alone."""

    def __init__(self, calls: MonitoringCalls, taking: Taking, channel: grpc.aio.Channel, door: Any) -> None:
        self.calls, self.taking, self.channel, self.door = calls, taking, channel, door
        self.stub: Any = MonitoringServiceStub(channel)

    async def refusal(self, call: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call
        return told.value.code().name, str(told.value.details())


@asynccontextmanager
async def serving(
    plane: str,
    answer: Callable[[Reported], Receipt] = lambda reported: Receipt(ReceiptStatus.ACCEPTED, 3),
    drift: Callable[[str, str, int], pb.DriftReport] = lambda model, version, windows: pb.DriftReport(),
    *,
    may_wait: bool = False,
    access: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    taking = Taking(answer, may_wait=may_wait)
    as_outcomes: Any = taking
    calls = MonitoringCalls(as_outcomes, drift)
    door = new_door(plane, **settings)
    registrar: Any = Registrar(door, Access(AccessSettings.model_validate(access or {})).wrap)
    add_MonitoringServiceServicer_to_server(calls, registrar)
    address = door.bind("127.0.0.1:0")
    await door.start()
    try:
        async with grpc.aio.insecure_channel(address, OWN_POOL) as channel:
            yield Served(calls, taking, channel, door)
    finally:
        calls.close()
        await door.stop(10)


def outcome(row: int = 0, **fields: Any) -> pb.Outcome:
    return pb.Outcome(model_name="m", prediction_id="p", row=row, **fields)


@pytest.mark.parametrize("status", ReceiptStatus)
@pytest.mark.parametrize("may_wait", [False, True])
def test_one_outcome_is_taken_and_answered(plane: str, status: ReceiptStatus, may_wait: bool) -> None:
    async def main() -> None:
        version = 0 if status is ReceiptStatus.NOT_SAMPLED else 3
        async with serving(plane, lambda reported: Receipt(status, version), may_wait=may_wait) as served:
            message = pb.Outcome(
                model_name="m", model_version="champion", prediction_id="ä", row=2**31 - 1, positive=True, observed_at_us=5
            )
            receipt = await served.stub.ReportOutcome(message, timeout=30)
            word = pb.OutcomeReceipt.Status.Name(receipt.status)
            assert word == status.name
            assert (receipt.prediction_id, receipt.row, receipt.error) == ("ä", 2**31 - 1, "")
            assert receipt.model_version == ("3" if version else "")
            assert served.taking.reported == [Reported("m", "champion", "ä", 2**31 - 1, True, 5)]
            # what may take long is never done on the event loop
            assert (threading.current_thread().name in served.taking.threads) is not may_wait

    asyncio.run(main())


def test_every_status_has_a_word_of_its_own() -> None:
    assert set(STATUSES) == set(ReceiptStatus)
    assert len(set(STATUSES.values())) == len(STATUSES)


def test_labels_come_as_they_were_said(plane: str) -> None:
    async def main() -> None:
        async with serving(plane) as served:
            for fields in ({"value": 0.0}, {"positive": False}, {"name": ""}, {"value": float("nan")}, {}):
                await served.stub.ReportOutcome(outcome(**fields), timeout=30)
            labels = [reported.label for reported in served.taking.reported]
            assert [(type(label).__name__, str(label)) for label in labels] == [
                ("float", "0.0"),
                ("bool", "False"),
                ("str", ""),
                ("float", "nan"),
                ("NoneType", "None"),
            ]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), "INVALID_ARGUMENT"),
        (NotFound("no"), "NOT_FOUND"),
        (Unsupported("no"), "UNIMPLEMENTED"),
        (Overloaded("no"), "UNAVAILABLE"),
        (BackendFailed("no"), "INTERNAL"),
    ],
)
def test_an_error_ends_the_call_with_its_code(plane: str, error: Exception, code: str) -> None:
    def fails(reported: Reported) -> Receipt:
        raise error

    def no_report(model: str, version: str, windows: int) -> pb.DriftReport:
        raise error

    async def main() -> None:
        async with serving(plane, fails, no_report) as served:
            assert await served.refusal(served.stub.ReportOutcome(outcome(), timeout=30)) == (code, "no")
            assert await served.refusal(served.stub.GetDrift(pb.DriftRequest(), timeout=30)) == (code, "no")

    asyncio.run(main())


def test_what_is_no_message_is_the_caller_s_mistake(plane: str) -> None:
    async def main() -> None:
        async with serving(plane) as served:
            told = ("INVALID_ARGUMENT", "the body of the call cannot be parsed as its request message")
            for method in ("ReportOutcome", "GetDrift"):
                call: Any = served.channel.unary_unary(f"/{SERVICE}/{method}")
                assert await served.refusal(call(b"\xff" * 9, timeout=30)) == told
            stream: Any = served.channel.stream_stream(
                f"/{SERVICE}/ReportOutcomes", response_deserializer=pb.OutcomeReceipt.FromString
            )
            bodies = [b"\xff" * 9, outcome(7).SerializeToString()]
            got = [receipt async for receipt in stream(bodies, timeout=30)]
            assert [(each.status, each.error, each.row) for each in got] == [
                (pb.OutcomeReceipt.INVALID, told[1], 0),
                (pb.OutcomeReceipt.ACCEPTED, "", 7),
            ]

    asyncio.run(main())


def test_a_message_that_is_too_large_is_refused(plane: str) -> None:
    async def main() -> None:
        async with serving(plane, max_message_bytes=4096) as served:
            large = pb.Outcome(model_name="m", prediction_id="p" * 5000)
            code, _ = await served.refusal(served.stub.ReportOutcome(large, timeout=30))
            assert code == "RESOURCE_EXHAUSTED"
            assert served.taking.reported == []

    asyncio.run(main())


@pytest.mark.parametrize("may_wait", [False, True])
def test_a_stream_answers_each_in_its_turn_and_goes_on_after_a_refusal(plane: str, may_wait: bool) -> None:
    def every_third(reported: Reported) -> Receipt:
        if reported.row % 3 == 0:
            raise (InvalidRequest, NotFound, Unsupported)[reported.row // 3 % 3](f"no {reported.row}")
        return Receipt(ReceiptStatus.ACCEPTED, reported.row)

    async def main() -> None:
        async with serving(plane, every_third, may_wait=may_wait) as served:
            rows = 2000
            stream = served.stub.ReportOutcomes((outcome(row) for row in range(rows)), timeout=60)
            got = [receipt async for receipt in stream]
            assert [each.row for each in got] == list(range(rows))
            for each in got:
                refused = each.row % 3 == 0
                assert each.prediction_id == "p"
                assert each.status == (pb.OutcomeReceipt.INVALID if refused else pb.OutcomeReceipt.ACCEPTED)
                assert each.error == (f"no {each.row}" if refused else "")
                assert each.model_version == ("" if refused else str(each.row))

    asyncio.run(main())


def test_a_stream_ends_where_the_server_can_take_no_more(plane: str) -> None:
    def full_at_two(reported: Reported) -> Receipt:
        if reported.row == 2:
            raise Overloaded("full")
        return Receipt(ReceiptStatus.ACCEPTED, 1)

    async def main() -> None:
        async with serving(plane, full_at_two) as served:
            stream = served.stub.ReportOutcomes(timeout=30)
            for row in range(2):
                await stream.write(outcome(row))
                assert (await stream.read()).row == row
            await stream.write(outcome(2))
            assert await served.refusal(stream.read()) == ("UNAVAILABLE", "full")
            assert [each.row for each in served.taking.reported] == [0, 1, 2]

    asyncio.run(main())


def test_a_caller_that_does_not_read_is_soon_not_read_from(plane: str) -> None:
    """What waits for it is bounded, whatever it sends."""

    async def main() -> None:
        async with serving(plane) as served:
            stream = served.stub.ReportOutcomes(timeout=60)
            rows = 200_000
            sent = 0

            async def send() -> None:
                nonlocal sent
                for row in range(rows):
                    await stream.write(pb.Outcome(model_name="m", prediction_id="p" * 1000, row=row))
                    sent += 1

            sending = asyncio.create_task(send())
            before = -1
            while not sending.done() and before != len(served.taking.reported):
                before = len(served.taking.reported)
                await asyncio.sleep(0.5)
            assert not sending.done()
            assert sent < rows
            got = [await stream.read() for _ in range(before)]
            assert [each.row for each in got] == list(range(before))
            sending.cancel()
            stream.cancel()

    asyncio.run(main())


def test_an_open_stream_does_not_hold_a_drain_up(plane: str) -> None:
    async def main() -> None:
        async with serving(plane) as served:
            stream = served.stub.ReportOutcomes(timeout=60)
            await stream.write(outcome(4))
            assert (await stream.read()).row == 4
            served.calls.close()
            code, text = await served.refusal(stream.read())
            assert (code, "shutting down" in text) == ("UNAVAILABLE", True)
            later = served.stub.ReportOutcomes(timeout=60)
            assert (await served.refusal(later.read()))[0] == "UNAVAILABLE"

    asyncio.run(main())


def test_a_caller_that_leaves_takes_its_stream_with_it(plane: str) -> None:
    async def main() -> None:
        async with serving(plane) as served:
            stream = served.stub.ReportOutcomes(timeout=60)
            await stream.write(outcome(4))
            await stream.read()
            open_streams: Any = served.calls._idle
            while len(open_streams) != 1:  # noqa: ASYNC110 - gRPC tells nobody
                await asyncio.sleep(0.01)
            stream.cancel()
            while open_streams:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_drift_is_asked_for_on_a_thread(plane: str) -> None:
    asked: list[tuple[str, str, int, str]] = []

    def report(model: str, version: str, windows: int) -> pb.DriftReport:
        asked.append((model, version, windows, threading.current_thread().name))
        return pb.DriftReport(versions=[pb.VersionDrift(model_name=model, state="ok")])

    async def main() -> None:
        async with serving(plane, drift=report) as served:
            got = await served.stub.GetDrift(pb.DriftRequest(model_name="m", model_version="2", windows=9), timeout=30)
            assert got.versions[0].state == "ok"
            assert asked[0][:3] == ("m", "2", 9)
            assert asked[0][3] != threading.current_thread().name

    asyncio.run(main())


def test_outcomes_are_of_the_group_inference_and_drift_of_management(plane: str) -> None:
    groups = {method.partition("/")[2]: group for method, group in GROUPS.items() if method.startswith(SERVICE)}
    assert groups == {"ReportOutcome": "inference", "ReportOutcomes": "inference", "GetDrift": "management"}

    async def main() -> None:
        access = {"inference": {"header": "i=1"}, "management": {"header": "m=1"}}
        inference, management = [("triton-grpc-protocol-i", "1")], [("triton-grpc-protocol-m", "1")]
        async with serving(plane, access=access) as served:
            stub = served.stub
            for metadata, right in ((inference, True), (management, False), ([], False)):
                one = stub.ReportOutcome(outcome(), metadata=metadata, timeout=30)
                # without a message: grpc.aio's client reports INTERNAL where it is refused while it writes one
                stream = stub.ReportOutcomes(metadata=metadata, timeout=30)
                if right:
                    await stream.write(outcome())
                    assert (await one).status == (await stream.read()).status == pb.OutcomeReceipt.ACCEPTED
                    assert (await served.refusal(stub.GetDrift(pb.DriftRequest(), metadata=metadata)))[0] == "UNAVAILABLE"
                else:
                    assert (await served.refusal(one))[0] == "UNAVAILABLE"
                    assert (await served.refusal(stream.read()))[0] == "UNAVAILABLE"
            assert await stub.GetDrift(pb.DriftRequest(), metadata=management, timeout=30) == pb.DriftReport()

    asyncio.run(main())
