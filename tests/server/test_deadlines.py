"""Deadlines, limits and order of the queue, seen from outside. The engine is kept busy by models that take long."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.serving import Serving, counts, infer_message, refusal, until

ROW = {"x": ("FP32", [1, 4], bytes(16))}
EXPIRED = "Request timeout expired"


def request(model: str, *, timeout_us: int = 0, priority: int = 0, tag: str = "") -> pb.ModelInferRequest:
    message = infer_message(model, ROW, id=tag)
    if timeout_us:
        message.parameters["timeout"].int64_param = timeout_us
    if priority:
        message.parameters["priority"].int64_param = priority
    return message


@pytest.fixture
def stub(serving: Serving) -> Iterator[GRPCInferenceServiceStub]:
    with serving.stub() as stub:
        yield stub


@contextmanager
def busy(serving: Serving, stub: Any, model: str) -> Iterator[Any]:
    """While a batch of this model runs. Yields its call; afterwards the call has been answered and counted."""
    before = counts(stub, model)
    running = stub.ModelInfer.future(request(model), timeout=60)
    until(lambda: waiting(serving, model) == (0, 1), "the batch runs")
    try:
        yield running
    finally:
        assert list(running.result().raw_output_contents) == [bytes(16)]
        until(lambda: counts(stub, model)[3] > before[3], "the batch is counted")


def waiting(serving: Serving, model: str) -> tuple[int, int]:
    """(waiting, admitted) requests of a model, from the metrics page."""
    page = serving.http("/metrics")[1]
    values = {
        line.split("{")[0]: int(float(line.rsplit(" ", 1)[1]))
        for line in page.splitlines()
        if line.startswith(("podium_queue_requests{", "podium_inflight_requests{")) and f'"{model}"' in line
    }
    return values["podium_queue_requests"], values["podium_inflight_requests"]


def test_a_timeout_is_told_while_a_long_batch_still_runs(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    before = counts(stub, "slow")
    with busy(serving, stub, "slow") as running:
        told = refusal(lambda: stub.ModelInfer(request("slow", timeout_us=50_000)))
        assert not running.done()
        assert told == ("UNAVAILABLE", EXPIRED)
    after = counts(stub, "slow")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 1]


def test_the_calls_own_deadline_counts(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    before = counts(stub, "slow")
    with busy(serving, stub, "slow") as running:
        code, _ = refusal(lambda: stub.ModelInfer(request("slow"), timeout=0.05))
        assert code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
        until(lambda: waiting(serving, "slow") == (0, 1), "the expired left the queue")
        assert not running.done()
        assert counts(stub, "slow")[1] - before[1] == 1
    after = counts(stub, "slow")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 1]


def test_the_cancelled_leave_the_queue_and_never_run(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    before = counts(stub, "slow")
    with busy(serving, stub, "slow") as running:
        doomed = [stub.ModelInfer.future(request("slow")) for _ in range(3)]
        until(lambda: waiting(serving, "slow") == (3, 4), "three wait")
        for future in doomed:
            assert future.cancel()
        until(lambda: waiting(serving, "slow") == (0, 1), "the cancelled left")
        assert not running.done()
    after = counts(stub, "slow")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 3, 1, 1]


def test_a_model_has_a_timeout_of_its_own(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    with busy(serving, stub, "slow"):
        assert refusal(lambda: stub.ModelInfer(request("hasty"))) == ("UNAVAILABLE", EXPIRED)
        longer = stub.ModelInfer.future(request("hasty", timeout_us=30_000_000))
        until(lambda: waiting(serving, "hasty") == (1, 1), "it waits")
        # this model allows no other than its own
        assert refusal(lambda: stub.ModelInfer(request("strict", timeout_us=30_000_000))) == ("UNAVAILABLE", EXPIRED)
        assert not longer.done()
    assert list(longer.result().raw_output_contents) == [bytes(16)]


def test_what_is_predicted_to_be_late_is_refused_at_once(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    before = counts(stub, "choosy")
    code, text = refusal(lambda: stub.ModelInfer(request("choosy", timeout_us=200_000)))
    assert code == "UNAVAILABLE"
    assert text.startswith(EXPIRED + ": predicted to finish ")
    assert [now - then for now, then in zip(counts(stub, "choosy"), before, strict=True)] == [0, 1, 0, 0]
    assert list(stub.ModelInfer(request("choosy", timeout_us=20_000_000)).raw_output_contents) == [bytes(16)]


def test_a_full_queue_says_so(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    before = counts(stub, "narrow")
    with busy(serving, stub, "narrow"):
        queued = [stub.ModelInfer.future(request("narrow")) for _ in range(2)]
        until(lambda: waiting(serving, "narrow") == (2, 3), "the queue is full")
        assert refusal(lambda: stub.ModelInfer(request("narrow", tag="9"))) == (
            "UNAVAILABLE",
            "[request id: 9] Exceeds maximum queue size",
        )
    for future in queued:
        future.result()
    until(lambda: counts(stub, "narrow")[0] - before[0] == 3, "all are counted")
    assert [now - then for now, then in zip(counts(stub, "narrow"), before, strict=True)] == [3, 1, 3, 3]


def test_the_more_urgent_go_first(serving: Serving, stub: GRPCInferenceServiceStub) -> None:
    order: list[str] = []
    lock = threading.Lock()

    def done(tag: str, call: Any) -> None:
        with lock:
            order.append(tag if call.code() is grpc.StatusCode.OK else str(call.code()))

    def queued(number: int) -> bool:
        return waiting(serving, "ranked") == (number, number)

    with busy(serving, stub, "slow"):
        calls = []
        for number, (tag, priority) in enumerate(
            (("third", 3), ("second a", 0), ("second b", 2), ("first", 1), ("second c", 9)), 1
        ):
            # without a deadline: clients round theirs by up to 0.1 s, and the earlier one goes first
            call = stub.ModelInfer.future(request("ranked", priority=priority, tag=tag))
            call.add_done_callback(partial(done, tag))
            calls.append(call)
            until(partial(queued, number), "it waits")
    for call in calls:
        call.result(60)
    until(lambda: len(order) == 5, "all are told")
    assert order == ["first", "second a", "second b", "second c", "third"]


@pytest.mark.parametrize("timeout_us", [2**63 - 1, 2**62 // 1000 + 1, 2**50])
def test_the_longest_timeouts_are_no_timeouts(stub: GRPCInferenceServiceStub, timeout_us: int) -> None:
    """Such a number once ended the engine's thread: it does not fit the arrays of a batch."""
    # no deadline of the call itself: it would be the earlier one
    for message in (request("echo", timeout_us=timeout_us), request("echo")):
        call = stub.ModelInfer.future(message)
        try:
            assert list(call.result(timeout=20).raw_output_contents) == [bytes(16)]
        finally:
            call.cancel()
