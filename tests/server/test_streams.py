"""Streams over the wire: with Triton's own clients, and with callers that behave badly."""

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio_client
from tritonclient.utils import InferenceServerException

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import put_fake
from tests.server.serving import Serving, counts, infer_message, until
from tests.server.streaming import MANY, METHOD, Open, asked, echo, put_repeat, said, waiting, whole


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    """A server of its own: these tests count what their models did."""
    home = tmp_path_factory.mktemp("streaming")
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 200.0, max_batch=16)
    put_fake(repository, "slow", 300_000.0, queue="early_drop = false")
    for name in ("repeat", "left", "cut", "late", "counted"):
        put_repeat(repository, name)
    for name in ("unread", "forgotten"):
        put_repeat(repository, name, width=20_000)
    server = Serving(
        repository, home, data_plane=plane, max_stream_requests=50, max_stream_bytes=2_000_000, max_message_bytes=100_000
    )
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def stub(streaming: Serving) -> Iterator[GRPCInferenceServiceStub]:
    with streaming.stub() as stub:
        yield stub


def test_ordinary_requests_are_answered_in_order(stub: GRPCInferenceServiceStub) -> None:
    names = [f"{number}" for number in range(300)]
    messages = [echo(name, "slow" if name == "0" else "echo") for name in names]
    assert whole(stub, *messages) == names


def test_decoupled_requests_are_not_held_up_by_ordinary_ones(stub: GRPCInferenceServiceStub) -> None:
    got = whole(stub, asked(3, id="p"), echo("a", "slow"), asked(0, id="none"), asked(2, id="q", empty_final=True), echo("b"))
    assert [each for each in got if each[0] == "p"] == ["p+"] * 3
    assert [each for each in got if each[0] == "q"] == ["q+", "q+", "q."]
    assert [each for each in got if each[0] in "ab"] == ["a", "b"]
    assert got[:3] == ["p+"] * 3
    assert len(got) == 8


def test_nothing_and_much(stub: GRPCInferenceServiceStub) -> None:
    assert whole(stub) == []
    assert whole(stub, asked(0)) == []
    assert whole(stub, asked(0, empty_final=True, id="a")) == ["a."]
    assert whole(stub, asked(5000, empty_final=True, id="a")) == ["a+"] * 5000 + ["a."]


def test_errors_are_answers_and_the_stream_goes_on(stub: GRPCInferenceServiceStub) -> None:
    bad = infer_message("echo", {"x": ("FP32", [1, 4], b"short")}, id="bad")
    messages = [echo("a"), echo("b", "nobody"), bad, asked(-1, id="c"), pb.ModelInferRequest(), echo("d")]
    got = [(said(each), each.error_message) for each in stub.ModelStreamInfer(iter(messages), timeout=60)]
    ordinary = [name for name, _ in got if name != "c!"]
    assert ordinary == ["a", "b!", "bad!", "!", "d"]
    texts = dict(got)
    assert texts["b!"] == "Request for unknown model: 'nobody' is not found"
    assert "byte size mismatch" in texts["bad!"]
    assert "must say one number of answers" in texts["c!"]


def test_bytes_that_are_no_message_are_one_bad_request(streaming: Serving) -> None:
    bodies = [echo("a").SerializeToString(), b"\xff" * 20, b"", b"\x0a\x7f", echo("b").SerializeToString()]
    with streaming.channel() as channel:
        method: Any = channel.stream_stream(METHOD)
        raw = method(iter(bodies), timeout=60)
        got = [pb.ModelStreamInferResponse.FromString(each) for each in raw]
    assert [said(each) for each in got] == ["a", "!", "!", "!", "b"]
    unreadable = "the body of the call cannot be parsed as its request message"
    assert [each.error_message for each in got[1:4]] == [unreadable, "Request for unknown model: '' is not found", unreadable]


def test_an_error_is_the_end_where_the_caller_asked_for_it(stub: GRPCInferenceServiceStub) -> None:
    stream = Open(stub, metadata=(("triton_grpc_error", "true"),))
    stream.send(echo("a"), echo("b", "nobody"), echo("c"))
    assert said(next(stream.call)) == "a"
    with pytest.raises(grpc.RpcError) as told:
        next(stream.call)
    assert (told.value.code().name, told.value.details()) == ("NOT_FOUND", "Request for unknown model: 'nobody' is not found")
    stream.half_close()


def test_a_message_that_is_too_large_is_the_end(stub: GRPCInferenceServiceStub) -> None:
    """gRPC itself ends the call then: what was sent before is taken back."""
    before = counts(stub, "slow")
    large = infer_message("echo", {"x": ("FP32", [1, 4], bytes(200_000))})
    with pytest.raises(grpc.RpcError) as told:
        whole(stub, echo("a", "slow"), large)
    assert told.value.code().name == "RESOURCE_EXHAUSTED"
    until(lambda: sum(counts(stub, "slow")[:2]) == sum(before[:2]) + 1, "the one before it is counted")


def test_unary_calls_to_a_decoupled_model_are_refused(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError, match="ModelInfer RPC doesn't support models with decoupled transaction policy"):
        stub.ModelInfer(asked(1))
    policy = stub.ModelConfig(pb.ModelConfigRequest(name="repeat")).config.model_transaction_policy
    assert policy.decoupled


def answers_of(stub: GRPCInferenceServiceStub, model: str) -> dict[int, Any]:
    (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    return {int(place): stats for place, stats in row.response_stats.items()}


def test_statistics_tell_answers_apart(stub: GRPCInferenceServiceStub) -> None:
    whole(stub, asked(2, "counted"), asked(1, "counted"), asked(-1, "counted"), asked(2, "counted"))
    assert until(lambda: counts(stub, "counted") == (3, 1, 3, 4), "everything is counted")
    stats = answers_of(stub, "counted")
    fields = ("success", "compute_infer", "compute_output", "fail", "empty_response", "cancel")
    assert {place: tuple(getattr(each, field).count for field in fields) for place, each in stats.items()} == {
        0: (3, 3, 3, 1, 0, 0),
        1: (2, 2, 2, 0, 1, 0),
        2: (0, 0, 0, 0, 2, 0),
    }


@pytest.mark.parametrize(("model", "how"), [("left", "cancelled"), ("cut", "connection lost"), ("late", "deadline")])
def test_whoever_leaves_stops_what_was_made_for_him(streaming: Serving, model: str, how: str) -> None:
    with streaming.channel() as other, streaming.stub() as watching:
        neighbour = Open(watching)
        stub = GRPCInferenceServiceStub(other)
        requests = iter([asked(MANY, model, id="p"), asked(MANY, model, id="q")])
        call = stub.ModelStreamInfer(requests, timeout=3.0 if how == "deadline" else 60.0)
        assert said(next(call)) == "p+"
        until(lambda: waiting(streaming) == 1, "the other one waits")
        if how == "cancelled":
            call.cancel()
        elif how == "connection lost":
            other.close()
        else:
            with pytest.raises(grpc.RpcError) as told:
                list(call)
            assert told.value.code().name == "DEADLINE_EXCEEDED"
        # one was being executed, one waited and never was
        until(lambda: counts(watching, model)[1] == 2, "both are counted as given up")
        assert counts(watching, model)[3] == 1
        neighbour.send(echo("n"))
        assert said(next(neighbour.call)) == "n"
        neighbour.half_close()


@pytest.mark.parametrize("model", ["unread", "forgotten"])
def test_answers_nobody_reads_end_their_request_and_nothing_else(streaming: Serving, model: str) -> None:
    """The window of HTTP/2 is full, then the server's own room: the request fails, the server and its other callers do not."""
    with streaming.channel() as channel, streaming.stub() as watching:
        stream = Open(GRPCInferenceServiceStub(channel))
        stream.send(asked(MANY, model, id="p", empty_final=True), echo("a"))
        until(lambda: counts(watching, model)[1] == 1, "it has failed")
        assert sorted(whole(watching, echo("n"), asked(1, id="r"))) == ["n", "r+"]
        if model == "forgotten":  # nor does anybody ever read them
            stream.call.cancel()
            stream.half_close()
            return
        stream.half_close()
        got = list(stream.call)
    assert {said(each) for each in got} == {"p+", "p!", "a"}
    (error,) = [each.error_message for each in got if each.error_message]
    assert "are read too slowly" in error
    assert len(got) < MANY


def stream_of(channel: grpc.aio.Channel) -> Any:
    """An open stream; the stubs' types know the blocking kind only."""
    stub: Any = GRPCInferenceServiceStub(channel)
    return stub.ModelStreamInfer(timeout=60)


def test_a_caller_that_sends_without_reading_waits_and_loses_nothing(streaming: Serving) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(streaming.grpc_address) as channel:
            call = stream_of(channel)

            async def send() -> None:
                for number in range(10_000):
                    await call.write(echo(str(number)))
                await call.done_writing()

            sending = asyncio.create_task(send())
            assert [said(each) async for each in call] == [str(number) for number in range(10_000)]
            await sending

    asyncio.run(main())


def test_streams_do_not_disturb_each_other(streaming: Serving) -> None:
    async def one(channel: grpc.aio.Channel, number: int) -> None:
        call = stream_of(channel)
        for each in range(20):
            await call.write(asked(3, id=f"{number}-{each}") if number % 2 else echo(f"{number}-{each}"))
        if number % 5 == 4:
            await call.read()
            call.cancel()
            return
        await call.done_writing()
        got = [said(each) async for each in call]
        if number % 2:
            assert got == [f"{number}-{each}+" for each in range(20) for _ in range(3)]
        else:
            assert got == [f"{number}-{each}" for each in range(20)]

    async def main() -> None:
        async with grpc.aio.insecure_channel(streaming.grpc_address) as channel:
            await asyncio.gather(*(one(channel, number) for number in range(20)))

    asyncio.run(main())


Results = queue.SimpleQueue[tuple[Any, Any]]


def triton_input(number: int) -> Any:
    value = client.InferInput("IN", [1], "INT32")
    value.set_data_from_numpy(np.array([number], np.int32))
    return value


def test_tritons_client_streams(streaming: Serving) -> None:
    results: Results = queue.SimpleQueue()

    def take(result: Any, error: Any) -> None:
        results.put((result, error))

    with client.InferenceServerClient(streaming.grpc_address) as triton:
        triton.start_stream(callback=take)
        triton.async_stream_infer("repeat", [triton_input(3)], request_id="p", enable_empty_final_response=True)
        got = [results.get(timeout=30) for _ in range(4)]
        assert [error for _, error in got] == [None] * 4
        assert [result.as_numpy("OUT_IN").tolist() for result, _ in got[:3]] == [[3]] * 3
        finals = [result.get_response().parameters["triton_final_response"].bool_param for result, _ in got]
        assert finals == [False, False, False, True]
        triton.async_stream_infer("nobody", [triton_input(3)], request_id="q")
        result, error = results.get(timeout=30)
        assert isinstance(error, InferenceServerException)
        assert error.message() == "Request for unknown model: 'nobody' is not found"
        triton.async_stream_infer("repeat", [triton_input(1)], request_id="r")
        result, error = results.get(timeout=30)
        assert (error, result.get_response().id) == (None, "r")
        triton.stop_stream()
        # a deadline is a deadline
        triton.start_stream(callback=take, stream_timeout=0.5)
        triton.async_stream_infer("repeat", [triton_input(MANY)])
        while (told := results.get(timeout=30))[1] is None:
            pass
        assert told[1].status() == "StatusCode.DEADLINE_EXCEEDED" or "Deadline" in told[1].message()
        triton.stop_stream(cancel_requests=True)


def test_tritons_asyncio_client_streams(streaming: Serving) -> None:
    async def requests() -> Any:
        for number in (2, 0, 3):
            yield {"model_name": "repeat", "inputs": [triton_input(number)]}
        yield {"model_name": "nobody", "inputs": [triton_input(1)], "request_id": "x"}

    async def main() -> None:
        async with aio_client.InferenceServerClient(streaming.grpc_address) as triton:
            got = [(result, error) async for result, error in triton.stream_infer(requests())]
            assert [result.as_numpy("OUT_IN").tolist() for result, error in got if error is None] == [[2]] * 2 + [[3]] * 3
            (error,) = [error for _, error in got if error is not None]
            assert error.message() == "Request for unknown model: 'nobody' is not found"

    asyncio.run(main())
