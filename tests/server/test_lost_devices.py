"""A device breaks under a real server: everybody is answered, nothing looks ready that is not, and the server comes back."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.lost_devices import (
    SOON,
    ask,
    back_again,
    begun,
    break_device,
    insistent,
    put_breakable,
    row,
    serving,
    two_devices,
    unavailable,
)
from tests.server.models import put_fake, put_loop
from tests.server.scrape import scrape, value
from tests.server.serving import infer_message, refusal, until


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return two_devices(tmp_path)


def test_everybody_in_flight_gets_one_answer_and_who_tries_again_loses_nothing(
    repository: Path, tmp_path: Path, plane: str
) -> None:
    with serving(repository, tmp_path, data_plane=plane) as server:
        pid = server.process.pid

        async def main() -> tuple[list[Any], list[list[bytes]]]:
            async with grpc.aio.insecure_channel(server.grpc_address, SOON) as channel:
                stub = GRPCInferenceServiceStub(channel)

                async def caller(model: str, first: int) -> list[bytes]:
                    # until it has been answered by the server that came back, as well
                    answers: list[bytes] = []
                    while begun(server) < 2 or len(answers) < 30:
                        answers.append(await insistent(stub, ask(model, first + len(answers))))
                    return answers

                patient = [
                    asyncio.ensure_future(caller(model, 1000 * at)) for at, model in enumerate(("cpu", "gpu", "gpu2"), 1)
                ]
                await asyncio.sleep(0)
                once = [stub.ModelInfer(ask("gpu", tag), timeout=60) for tag in range(60)]
                once.append(stub.ModelInfer(ask("gpu", 60, breaks=True), timeout=60))
                once += [stub.ModelInfer(ask("gpu2", tag), timeout=60) for tag in range(61, 100)]
                ended = await asyncio.gather(*once, return_exceptions=True)
                return ended, await asyncio.gather(*patient)

        ended, answers = asyncio.run(main())
        # the fate of each: its own rows, or an error that says try again
        assert len(ended) == 100
        for tag, answer in enumerate(ended):
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is grpc.StatusCode.UNAVAILABLE, answer
            else:
                assert not isinstance(answer, BaseException), answer
                assert (answer.id, list(answer.raw_output_contents)) == (str(tag), [row(tag)])
        assert isinstance(ended[60], grpc.aio.AioRpcError)
        assert "is lost" in str(ended[60].details()) or "is broken" in str(ended[60].details())
        for at, own in enumerate(answers, 1):
            assert own == [row(1000 * at + place) for place in range(len(own))]
        back_again(server, 2)
        assert server.process.pid == pid
        assert value(scrape(server), "podium_device_restarts_total") == 1
        events = [line["event"] for line in server.lines()]
        assert events.count("stopped") == 1, "it drained, then began anew"
        assert "begun anew after a lost device" in events
        assert all(line["level"] != "error" or "lost" in line["event"] or "dead" in line["event"] for line in server.lines())


def test_without_restarts_the_rest_goes_on_and_every_face_says_so(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, restart_on_device_loss=False) as server:

        async def main() -> None:
            async with grpc.aio.insecure_channel(server.grpc_address) as channel:
                stub, health = GRPCInferenceServiceStub(channel), health_pb2_grpc.HealthStub(channel)
                ready = [stub.ModelReady(pb.ModelReadyRequest(name=name)) for name in ("gpu", "gpu2", "cpu")]
                assert [(await call).ready for call in ready] == [True] * 3
                done = asyncio.Event()

                async def elsewhere() -> int:
                    calls = 0
                    while not done.is_set():
                        answer = await stub.ModelInfer(ask("cpu", calls), timeout=60)
                        assert list(answer.raw_output_contents) == [row(calls)]
                        calls += 1
                    return calls

                others = [asyncio.ensure_future(elsewhere()) for _ in range(4)]
                waiting = [stub.ModelInfer(ask("gpu2", tag), timeout=60) for tag in range(50)]
                with pytest.raises(grpc.aio.AioRpcError) as told:
                    await stub.ModelInfer(ask("gpu", breaks=True), timeout=60)
                assert told.value.code() is grpc.StatusCode.UNAVAILABLE
                # from here on, at no instant
                for _ in range(30):
                    calls: list[Any] = [
                        *(stub.ModelReady(pb.ModelReadyRequest(name=name)) for name in ("gpu", "gpu2")),
                        stub.ModelReady(pb.ModelReadyRequest(name="gpu", version="1")),
                        stub.ServerReady(pb.ServerReadyRequest()),
                    ]
                    assert [(await call).ready for call in calls] == [False] * 4
                    status = (await health.Check(health_pb2.HealthCheckRequest())).status
                    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
                for call in waiting:
                    try:
                        await call
                    except grpc.aio.AioRpcError as error:
                        unavailable(error)
                assert not (await stub.ServerLive(pb.ServerLiveRequest())).live
                assert (await stub.ModelReady(pb.ModelReadyRequest(name="cpu"))).ready
                before = [other.done() for other in others]
                done.set()
                assert min(await asyncio.gather(*others)) > 0
                assert before == [False] * 4, "no caller of another device saw an error"

        asyncio.run(main())
        for page, word in (("/readyz", "reasons"), ("/healthz", '"alive": false')):
            status, text = server.http(page)
            assert (status, "device 'fake:0' is lost" in text, word in text) == (503, True, True), text
        assert begun(server) == 1
        with server.stub() as stub:
            code, text = refusal(lambda: stub.ModelInfer(ask("gpu")))
            assert (code, "device 'fake:0' is lost" in text) == ("UNAVAILABLE", True), text
            # nothing comes back to it; to others it does
            put_breakable(repository, "gpu3")
            put_breakable(repository, "gpu4", device_id=1)
            put_fake(repository, "cpu2", 500.0)
            for name in ("cpu2", "gpu4"):
                until(lambda name=name: stub.ModelReady(pb.ModelReadyRequest(name=name)).ready, name)  # type: ignore[misc]

            def rows() -> dict[str, Any]:
                return {each.name: each for each in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}

            until(lambda: rows()["gpu3"].state == "UNAVAILABLE", "gpu3 was refused")
            assert rows()["gpu3"].reason.startswith("choose backend: device 'fake:0' is lost: fake:0 is broken")
        assert value(scrape(server), "podium_device_restarts_total") == 0


def test_it_is_never_ready_between_the_loss_and_its_new_beginning(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane) as server:
        seen: Counter[bool] = Counter()
        with server.stub() as stub:
            channel = server.channel()
            break_device(server, channel)
            try:
                while True:
                    seen[stub.ModelReady(pb.ModelReadyRequest(name="gpu2"), timeout=10).ready] += 1
            except grpc.RpcError as error:
                unavailable(error)
        assert not seen[True]
        back_again(server, 2)


def test_a_device_that_is_lost_again_and_again_ends_the_process(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, max_device_restarts=2) as server:
        pid = server.process.pid
        for times in (1, 2, 3):
            back_again(server, times)
            assert value(scrape(server), "podium_device_restarts_total") == times - 1
            break_device(server)
        assert server.wait() == 3
        assert server.process.pid == pid
        assert server.lines()[-1]["event"] == "a device is lost again and again: this process ends"
        assert {line["restarts"] for line in server.lines() if line["event"] == "begun anew after a lost device"} == {1, 2}


def test_restarts_of_long_ago_do_not_count(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, max_device_restarts=1, device_restarts_window_s=0.001) as server:
        for times in (1, 2, 3):
            back_again(server, times)
            break_device(server)
        back_again(server, 4)


def test_a_thread_that_never_returns_is_left_behind(repository: Path, tmp_path: Path, plane: str) -> None:
    put_loop(repository, "stuck")
    inputs = {"x": ("FP32", [8, 8], bytes(256)), "n": ("INT64", [1], (2**60).to_bytes(8, "little"))}
    with serving(repository, tmp_path, data_plane=plane, drain_grace_s=0.2) as server, server.stub() as stub:
        call = stub.ModelInfer.future(infer_message("stuck", inputs))
        stub.ModelReady(pb.ModelReadyRequest(name="stuck"))
        break_device(server)
        failed: Any = call.exception(60)
        assert failed.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        back_again(server, 2)
        assert any(line["event"] == "stopped" and not line["everything_closed"] for line in server.lines())


def test_one_that_is_lost_while_a_version_is_warmed_on_it(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, restart_on_device_loss=False) as server, server.stub() as stub:
        put_breakable(repository, "gpu5", 2_000_000.0)
        until(lambda: any(line["event"] == "gpu5:1: loading" for line in server.lines()), "it is being loaded")
        with server.channel() as channel:
            breaking = GRPCInferenceServiceStub(channel).ModelInfer.future(ask("gpu", breaks=True), timeout=60)

            def failed() -> str:
                assert not stub.ModelReady(pb.ModelReadyRequest(name="gpu5")).ready
                rows = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
                return next((str(each.reason) for each in rows if each.name == "gpu5"), "")

            reason = until(failed, "its load has failed")
            assert "fake:0 is broken" in reason
            unavailable(breaking.exception(60))
        assert server.http("/readyz")[0] == 503
        assert not stub.ModelReady(pb.ModelReadyRequest(name="gpu2")).ready


def test_who_is_told_to_leave_meanwhile_does_not_come_back(repository: Path, tmp_path: Path, plane: str) -> None:
    put_fake(repository, "slow", 2_000_000.0)
    with serving(repository, tmp_path, data_plane=plane) as server, server.stub() as stub:
        call = stub.ModelInfer.future(infer_message("slow", {"x": ("FP32", [1, 4], row(1))}))
        stub.ModelReady(pb.ModelReadyRequest(name="slow"))
        break_device(server)
        until(lambda: any(line["event"] == "draining" for line in server.lines()), "it drains")
        server.terminate()
        assert list(call.result(60).raw_output_contents) == [row(1)], "what runs elsewhere may end"
        assert server.wait() == 0
        assert begun(server) == 1


def test_every_request_that_was_admitted_is_counted_once(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, restart_on_device_loss=False) as server:

        async def main() -> Counter[str]:
            ends: Counter[str] = Counter()
            async with grpc.aio.insecure_channel(server.grpc_address) as channel:
                stub = GRPCInferenceServiceStub(channel)
                calls = [stub.ModelInfer(ask("gpu", tag, breaks=tag == 30), timeout=60) for tag in range(90)]
                for answer in await asyncio.gather(*calls, return_exceptions=True):
                    if not isinstance(answer, grpc.aio.AioRpcError):
                        ends["ok"] += 1
                        continue
                    text = unavailable(answer)
                    if text.startswith("Request for unknown model"):
                        ends["came too late"] += 1
                    else:
                        ends["failed" if text.startswith("fake:0 is broken") else "refused"] += 1
            return ends

        ends = asyncio.run(main())
        assert ends.total() == 90
        assert ends["failed"] > 0
        assert ends["refused"] > 0

        def counted() -> dict[str, int]:
            page = scrape(server)
            kinds = ("ok", "failed", "refused", "abandoned")
            return {end: value(page, "podium_requests_total", model="gpu", version="1", outcome=end) for end in kinds}

        # what was staged behind the one that broke it is told as what waited is, and counted with its batch once that ends
        asked = 90 - ends["came too late"]
        until(lambda: sum(counted().values()) == asked, "everybody is counted")
        found = counted()
        assert (found["ok"], found["abandoned"]) == (ends["ok"], 0)
        assert found["failed"] >= ends["failed"]
        assert (
            value(scrape(server), "podium_refused_total", model="gpu", version="1", reason="not_ready") == found["refused"] > 0
        )


def test_messages_of_a_stream_are_answered_each(repository: Path, tmp_path: Path, plane: str) -> None:
    with serving(repository, tmp_path, data_plane=plane, restart_on_device_loss=False) as server, server.stub() as stub:
        messages = [ask("gpu", tag, breaks=tag == 5) for tag in range(40)]
        answers = list(stub.ModelStreamInfer(iter(messages), timeout=60))
        assert [answer.infer_response.id for answer in answers] == [str(tag) for tag in range(40)]
        failed = [bool(answer.error_message) for answer in answers]
        assert any(failed)
        for tag, answer in enumerate(answers):
            if not failed[tag]:
                assert list(answer.infer_response.raw_output_contents) == [row(tag)]
