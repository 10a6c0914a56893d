"""One version on two devices that work by themselves, through real servers: both work, and one goes on without the other."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import put
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, counts, infer_message, refusal, until

FAKE = {
    "inputs": [
        {"name": "x", "datatype": "INT64", "shape": [1]},
        {"name": "kill", "datatype": "BOOL", "shape": [1], "optional": True},
    ],
    "outputs": [{"name": "echo_x", "datatype": "INT64", "shape": [1]}],
}
DEVICES = ("fake:0", "fake:1")
CALLERS = 12


def settings(t0_us: float, *, top: str = "", queue: str = "") -> str:
    return (
        f"max_batch = 1\ndevices = [0, 1]\n{top}[warmup]\nruns = 1\n[queue]\n{queue}\n[fake]\nt0_us = {t0_us}\nrow_us = 0.0\n"
        'device = "accelerator"\nweights_bytes = 1000\nkills_input = "kill"\n'
    )


def put_pair(repository: Path, name: str, text: str) -> None:
    put(repository, name, 1, {"fake.json": json.dumps(FAKE).encode()}, text)


def message(model: str, tag: int, *, kill: bool = False) -> pb.ModelInferRequest:
    inputs = {"x": ("INT64", [1, 1], np.int64(tag).tobytes())}
    return infer_message(model, inputs | ({"kill": ("BOOL", [1, 1], b"\1")} if kill else {}), id=str(tag))


def answered(stub: GRPCInferenceServiceStub, model: str, tag: int) -> bool:
    response = stub.ModelInfer(message(model, tag), timeout=60)
    return (response.id, response.raw_output_contents[0]) == (str(tag), np.int64(tag).tobytes())


@pytest.fixture
def serve(tmp_path: Path, plane: str) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(models: dict[str, str], **options: Any) -> Serving:
        repository = tmp_path / "models"
        repository.mkdir()
        for name, text in models.items():
            put_pair(repository, name, text)
        started.append(Serving(repository, tmp_path, data_plane=plane, **options))
        return started[0]

    yield start
    for serving in started:
        serving.kill()


def test_two_batches_are_in_flight_at_once_and_a_drain_finishes_both(serve: Callable[..., Serving]) -> None:
    serving = serve({"pair": settings(300_000.0, queue="early_drop = false")}, device_slots=1)
    labels = {"model": "pair", "version": "1"}
    with serving.stub() as stub, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(answered, stub, "pair", tag) for tag in range(4)]

        def both_execute() -> bool:
            page = scrape(serving)
            # batches of one row each: whatever is open and does not wait is being executed
            opened, waiting = (value(page, f"podium_{name}_requests", **labels) for name in ("inflight", "queue"))
            return opened - waiting == 2

        until(both_execute, "two batches at once")
        assert all(call.result() for call in calls)
        page = scrape(serving)
        assert [value(page, "podium_device_batches_total", **labels, device=device) for device in DEVICES] == [2, 2]
        assert [value(page, "podium_device_serves", **labels, device=device) for device in DEVICES] == [1, 1]
        assert value(page, "podium_model_memory_bytes", **labels) == 2000
        assert counts(stub, "pair") == (4, 0, 4, 4)
        (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="pair")).model_stats
        assert [(each.type, each.id, each.byte_size) for each in row.memory_usage] == [("GPU", 0, 1000), ("GPU", 1, 1000)]
        (group,) = stub.ModelConfig(pb.ModelConfigRequest(name="pair")).config.instance_group
        assert (group.kind, list(group.gpus), group.count) == (group.KIND_GPU, [0, 1], 1)
        # who leaves finishes what it took, wherever that waits
        calls = [pool.submit(answered, stub, "pair", tag) for tag in range(4)]
        until(lambda: value(scrape(serving), "podium_inflight_requests", **labels) == 4, "four requests admitted")
        serving.terminate()
        assert all(call.result() for call in calls)
    assert serving.wait() == 0
    serving.stop()


def test_instances_on_every_device_run_at_once(serve: Callable[..., Serving]) -> None:
    serving = serve({"many": settings(2_000.0, top="instances = 2\n")}, device_slots=2)
    with serving.stub() as stub, ThreadPoolExecutor(CALLERS) as pool:
        assert all(pool.map(lambda tag: answered(stub, "many", tag), range(300)))
        assert counts(stub, "many") == (300, 0, 300, 300)
        page = scrape(serving)
        done = [value(page, "podium_device_batches_total", model="many", version="1", device=device) for device in DEVICES]
        assert sum(done) == 300
        assert min(done) > 50
    serving.stop()


def test_loads_and_unloads_lose_nothing(serve: Callable[..., Serving]) -> None:
    serving = serve({"pair": settings(1_000.0)}, control_mode="explicit", load_models=["pair"])
    going = threading.Event()
    outcomes: list[str] = []

    async def traffic() -> None:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)

            async def caller(number: int) -> None:
                tag = number
                while going.is_set():
                    tag += CALLERS
                    try:
                        response = await stub.ModelInfer(message("pair", tag), timeout=60)
                    except grpc.aio.AioRpcError as error:
                        outcomes.append(error.code().name)
                        await asyncio.sleep(0.005)
                    else:
                        assert response.raw_output_contents[0] == np.int64(tag).tobytes()
                        outcomes.append("answered")

            await asyncio.gather(*(caller(number) for number in range(CALLERS)))

    going.set()
    with ThreadPoolExecutor(1) as pool, serving.stub() as stub:
        calls = pool.submit(asyncio.run, traffic())
        try:
            for count in (2, 1, 2):
                config = json.dumps({"instance_group": [{"kind": "KIND_GPU", "gpus": [0, 1], "count": count}]})
                load = pb.RepositoryModelLoadRequest(model_name="pair")
                load.parameters["config"].string_param = config
                stub.RepositoryModelLoad(load, timeout=60)
                outcomes.append("reloaded")
                until(lambda: "reloaded" not in outcomes[-100:], "traffic after a reload")
            assert set(outcomes) == {"answered", "reloaded"}  # swaps on two devices are seen by nobody
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="pair"), timeout=60)
            until(lambda: outcomes[-1] != "answered", "refusals after the unload")
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="pair"), timeout=60)
            until(lambda: outcomes[-1] == "answered", "answers after the load")
        finally:
            going.clear()
        calls.result(60)
    assert set(outcomes) <= {"answered", "reloaded", "NOT_FOUND", "UNAVAILABLE"}
    serving.stop()


def test_a_device_that_breaks_leaves_the_other_one_serving(serve: Callable[..., Serving]) -> None:
    serving = serve({"pair": settings(1_000.0)}, restart_on_device_loss=False)
    labels = {"model": "pair", "version": "1"}

    def serves() -> list[int]:
        page = scrape(serving)
        return [value(page, "podium_device_serves", **labels, device=device) for device in DEVICES]

    with serving.stub() as stub:
        assert answered(stub, "pair", 1)
        code, text = refusal(lambda: stub.ModelInfer(message("pair", 2, kill=True), timeout=60))
        assert (code, "is broken" in text) == ("UNAVAILABLE", True)
        until(lambda: sorted(serves()) == [0, 1], "one device is out of service")
        lost = DEVICES[serves().index(0)]
        before = scrape(serving)
        assert all(answered(stub, "pair", tag) for tag in range(10, 40))
        page = scrape(serving)
        for device in DEVICES:
            sample = "podium_device_batches_total", frozenset({**labels, "device": device}.items())
            assert page.get(sample, 0) - before.get(sample, 0) == (0 if device == lost else 30)
        (row,) = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert row.state == "READY"
        assert row.reason.startswith(f"does not serve on {lost} any more: ")
        assert stub.ModelReady(pb.ModelReadyRequest(name="pair")).ready
        # the process cannot use that device again, and says so
        assert f"device '{lost}' is lost" in serving.http("/healthz")[1]
    serving.stop(errors=("backend is dead", "is lost"))


def test_what_waits_on_a_device_that_breaks_is_answered_by_the_other(serve: Callable[..., Serving]) -> None:
    slow = settings(200_000.0, queue="early_drop = false")
    serving = serve({"pair": slow}, device_slots=1, restart_on_device_loss=False)
    with serving.stub() as stub, ThreadPoolExecutor(CALLERS) as pool:

        def admitted(count: int) -> bool:
            return value(scrape(serving), "podium_inflight_requests", model="pair", version="1") == count

        calls = [pool.submit(answered, stub, "pair", tag) for tag in range(2)]
        until(lambda: admitted(2), "both devices are busy")
        killing = pool.submit(refusal, lambda: stub.ModelInfer(message("pair", 2, kill=True), timeout=60))
        calls += [pool.submit(answered, stub, "pair", tag) for tag in range(10, 18)]
        assert killing.result()[0] == "UNAVAILABLE"
        assert all(call.result() for call in calls)
        assert counts(stub, "pair")[:2] == (10, 1)
    serving.stop(errors=("backend is dead", "is lost"))
