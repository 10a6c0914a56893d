"""Versions coming and going, seen from outside: explicit Load and Unload, a polled repository, swaps under load."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.registry.aliases import set_alias
from tests.server.models import QUICK, put, put_fake, put_scaling, put_simple, remove
from tests.server.serving import Serving, infer_message, refusal, until

SWAPS = 20
CALLERS = 8
ALL = QUICK + '[versions]\npolicy = "all"\n'


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("polling")
    repository = home / "repository"
    repository.mkdir()
    put_scaling(repository, "growing", 1)
    put_scaling(repository, "aliased", 1, ALL)
    put_scaling(repository, "aliased", 2, ALL)
    put_scaling(repository, "leaving", 1)
    server = Serving(repository, home, data_plane=plane)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("explicit")
    repository = home / "repository"
    repository.mkdir()
    put_scaling(repository, "first", 1)
    put_scaling(repository, "other", 1)
    put_simple(repository)
    put(repository, "broken", 1, {"model.onnx": b"no model"})
    put_scaling(repository, "swapped", 1)
    for number in range(16):
        put_fake(repository, f"late_{number}", 100_000.0)
    server = Serving(repository, home, data_plane=plane, control_mode="explicit", load_models=["first"])
    try:
        yield server
    finally:
        server.stop()


def made_by(stub: Any, model: str, version: str = "") -> int:
    """Which version answers, by its own word; the answer must agree in everything."""
    sent = np.array([[3.0], [5.0]], dtype=np.float32)
    response = stub.ModelInfer(infer_message(model, {"x": ("FP32", [2, 1], sent.tobytes())}, model_version=version))
    return consistent(response, sent)


def consistent(response: pb.ModelInferResponse, sent: Any) -> int:
    number = int(response.model_version)
    y, factor = (np.frombuffer(raw, np.float32).reshape(-1, 1) for raw in response.raw_output_contents)
    assert (factor == number).all()
    assert (y == sent * number).all()
    return number


def rows(stub: Any, model: str) -> list[tuple[str, str, str]]:
    index = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    return [(row.version, row.state, row.reason) for row in index if row.name == model]


def load(stub: Any, model: str, config: dict[str, Any] | None = None) -> None:
    message = pb.RepositoryModelLoadRequest(model_name=model)
    if config is not None:
        message.parameters["config"].string_param = json.dumps(config)
    stub.RepositoryModelLoad(message, timeout=60)


def ready(stub: Any, model: str, version: str = "") -> bool:
    return bool(stub.ModelReady(pb.ModelReadyRequest(name=model, version=version)).ready)


def test_only_what_was_asked_for_is_loaded(explicit: Serving) -> None:
    with explicit.stub() as stub:
        assert rows(stub, "first") == [("1", "READY", "")]
        assert rows(stub, "other") == [("1", "", "")]
        only_ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        assert {row.state for row in only_ready} == {"READY"}
        assert refusal(lambda: made_by(stub, "other")) == ("NOT_FOUND", "Request for unknown model: 'other' is not found")


def test_load_and_unload(explicit: Serving) -> None:
    with explicit.stub() as stub:
        load(stub, "other")
        assert made_by(stub, "other") == 1
        assert ready(stub, "other", "1")
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other"))
        assert not ready(stub, "other")
        assert rows(stub, "other") == [("1", "UNAVAILABLE", "unloaded")]
        code, text = refusal(lambda: made_by(stub, "other"))
        assert code in ("NOT_FOUND", "UNAVAILABLE")
        assert text.startswith("Request for unknown model: 'other'")
        load(stub, "other")
        assert made_by(stub, "other", "1") == 1
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="nobody"))


def test_what_cannot_be_loaded_says_why(explicit: Serving) -> None:
    with explicit.stub() as stub:
        code, text = refusal(lambda: load(stub, "nobody"))
        assert (code, text) == ("INTERNAL", "failed to load 'nobody', failed to poll from model repository")
        code, text = refusal(lambda: load(stub, "broken"))
        assert code == "INTERNAL"
        assert text.startswith("load failed for model 'broken': version 1 is at UNAVAILABLE state: open: model.onnx: ")
        ((version, state, reason),) = rows(stub, "broken")
        assert (version, state) == ("1", "UNAVAILABLE")
        assert reason in text
        assert explicit.http("/readyz")[0] == 200


def test_who_asks_for_what_does_not_serve_is_told_why(explicit: Serving) -> None:
    repository = explicit.repository
    put_scaling(repository, "halves", 1, ALL)
    put(repository, "halves", 2, {"model.onnx": b"no model"}, ALL)

    def asked(model: str, version: str = "") -> tuple[str, str]:
        return refusal(lambda: stub.ModelInfer(infer_message(model, {}, model_version=version)))

    with explicit.stub() as stub:
        code, text = refusal(lambda: load(stub, "halves"))
        assert (code, text.split(":")[0]) == ("INTERNAL", "load failed for model 'halves'")
        assert made_by(stub, "halves") == 1
        assert asked("halves", "2") == ("UNAVAILABLE", "Request for unknown model: 'halves' version 2 is not at ready state")
        assert asked("halves", "9") == ("NOT_FOUND", "Request for unknown model: 'halves' version 9 is not found")
        refusal(lambda: load(stub, "broken"))
        assert asked("broken") == ("NOT_FOUND", "Request for unknown model: 'broken' has no available versions")
        put_scaling(repository, "empty", 1)
        remove(repository / "empty", "1")
        assert refusal(lambda: load(stub, "empty")) == ("INTERNAL", "failed to load 'empty', no version is available")


def test_a_configuration_lasts_until_the_next_load(explicit: Serving) -> None:
    nine: Any = {name: ("INT32", [9, 16], bytes(9 * 64)) for name in ("INPUT0", "INPUT1")}
    with explicit.stub() as stub:
        load(stub, "simple", {"max_batch_size": 16})
        assert list(stub.ModelInfer(infer_message("simple", nine)).outputs[0].shape) == [9, 16]
        assert stub.ModelConfig(pb.ModelConfigRequest(name="simple")).config.max_batch_size == 16
        load(stub, "simple")
        text = "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'simple'"
        assert refusal(lambda: stub.ModelInfer(infer_message("simple", nine))) == ("INVALID_ARGUMENT", text)
        code, text = refusal(lambda: load(stub, "simple", {"max_batch_siez": 16}))
        assert code == "INVALID_ARGUMENT"
        assert "max_batch_siez" in text
        assert stub.ModelConfig(pb.ModelConfigRequest(name="simple")).config.max_batch_size == 8


def test_loads_that_wait_hold_up_nothing_else(explicit: Serving) -> None:
    with explicit.stub() as stub, ThreadPoolExecutor(16) as pool:
        loads = [pool.submit(load, stub, f"late_{number}") for number in range(16)]
        until(lambda: any(future.done() for future in loads), "the first is loaded")
        status, _ = explicit.http("/metrics")
        assert status == 200
        assert not all(future.done() for future in loads[:8])
        for future in loads:
            future.result()


def test_swaps_under_load_lose_nothing(explicit: Serving) -> None:
    """Versions 2 to 21 replace each other while callers never pause."""

    async def main() -> tuple[int, set[int]]:
        async with grpc.aio.insecure_channel(explicit.grpc_address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            over = asyncio.Event()
            seen: set[int] = set()

            async def caller(number: int) -> int:
                calls = 0
                while not over.is_set():
                    sent = np.full((1 + calls % 5, 1), number, dtype=np.float32)
                    message = infer_message("swapped", {"x": ("FP32", list(sent.shape), sent.tobytes())})
                    seen.add(consistent(await stub.ModelInfer(message, timeout=60), sent))
                    calls += 1
                return calls

            async def swap() -> None:
                try:
                    for version in range(2, SWAPS + 2):
                        await asyncio.to_thread(put_scaling, explicit.repository, "swapped", version, None)
                        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="swapped"), timeout=60)
                        assert version in seen or len(seen) > version - 3
                finally:
                    over.set()

            *calls, _ = await asyncio.gather(*map(caller, range(CALLERS)), swap())
            return sum(filter(None, calls)), seen

    with explicit.stub() as stub:
        load(stub, "swapped")
        calls, seen = asyncio.run(main())
        assert made_by(stub, "swapped") == SWAPS + 1
        assert [row for row in rows(stub, "swapped") if row[1] == "READY"] == [(str(SWAPS + 1), "READY", "")]
    assert len(seen) > SWAPS / 2
    assert calls > CALLERS * SWAPS


def test_a_new_version_takes_over_and_a_bad_one_does_not(polling: Serving) -> None:
    with polling.stub() as stub:
        assert made_by(stub, "growing") == 1
        put_scaling(polling.repository, "growing", 2)
        until(lambda: made_by(stub, "growing") == 2, "version 2 answers")
        until(lambda: not ready(stub, "growing", "1"), "version 1 has left")
        put(polling.repository, "growing", 3, {"model.onnx": b"no model"}, None)
        reason = until(lambda: next((row[2] for row in rows(stub, "growing") if row[0] == "3"), ""), "version 3 is refused")
        assert reason.startswith("open: model.onnx: ")
        assert made_by(stub, "growing") == 2
        assert ready(stub, "growing")
        assert polling.http("/readyz")[0] == 200


def test_an_alias_moves_the_default(polling: Serving) -> None:
    folder = polling.repository / "aliased"
    with polling.stub() as stub:
        assert made_by(stub, "aliased") == 2
        for version in (1, 2, 1):
            set_alias(folder, "champion", version)
            until(lambda version=version: made_by(stub, "aliased") == version, f"{version} is the default")  # type: ignore[misc]
            assert made_by(stub, "aliased", "champion") == version
            # both still answer by number
            assert [made_by(stub, "aliased", str(number)) for number in (1, 2)] == [1, 2]
        names = stub.ModelMetadata(pb.ModelMetadataRequest(name="aliased")).versions
        assert list(names) == ["1", "2"]
        assert refusal(lambda: made_by(stub, "aliased", "nobody"))[0] == "INVALID_ARGUMENT"


def test_a_model_that_is_taken_away_leaves(polling: Serving, tmp_path: Path) -> None:
    with polling.stub() as stub:
        assert made_by(stub, "leaving") == 1
        remove(polling.repository, "leaving")
        until(lambda: not ready(stub, "leaving"), "it has left")
        until(lambda: refusal(lambda: made_by(stub, "leaving"))[0] == "NOT_FOUND", "it is unknown")
        put_scaling(polling.repository, "leaving", 1)
        until(lambda: ready(stub, "leaving"), "it is back")
        assert made_by(stub, "leaving") == 1
