"""The response cache, timings and consumers, as clients and operators see them."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from protos import grpc_service_pb2 as pb
from server.__main__ import main
from server.telemetry.usage import read_usage
from tests.server.models import put_fake, put_scaling, put_simple
from tests.server.serving import Serving, counts, infer_message, refusal, until

CACHE = "[cache]\nmax_bytes = {}\n[warmup]\nruns = 1\n"
FLUSH_S = 0.2


def put_cached_fake(repository: Path, name: str, t0_us: float, max_bytes: int) -> None:
    put_fake(repository, name, t0_us, max_batch=4, queue=f"early_drop = false\n[cache]\nmax_bytes = {max_bytes}")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("usage")
    repository = home / "repository"
    repository.mkdir()
    put_scaling(repository, "scaling", 1, CACHE.format(2**20))
    put_scaling(repository, "small", 1, CACHE.format(3000))
    put_scaling(repository, "plain", 1)
    put_simple(repository)
    put_cached_fake(repository, "slow", 300_000.0, 2**20)
    put_cached_fake(repository, "timed", 50_000.0, 0)
    put_scaling(repository, "used", 1)
    models = [path.name for path in repository.iterdir()]
    server = Serving(repository, home, data_plane=plane, control_mode="explicit", load_models=models)
    try:
        yield server
    finally:
        server.stop()


def scaled(value: float, **fields: Any) -> pb.ModelInferRequest:
    model = fields.pop("model", "scaling")
    return infer_message(model, {"x": ("FP32", [1, 1], np.float32(value).tobytes())}, **fields)


def cache_counts(stub: Any, model: str) -> tuple[int, int]:
    (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    return row.inference_stats.cache_hit.count, row.inference_stats.cache_miss.count


def sample(server: Serving, name: str, **labels: str) -> float:
    text = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    found = re.findall(rf"^{name}\{{{re.escape(text)}\}} (\S+)$", server.http("/metrics")[1], re.MULTILINE)
    return float(found[0]) if found else -1.0


def test_a_hit_is_the_missed_answer_again_and_executes_nothing(kept: Serving) -> None:
    with kept.stub() as stub:
        before = counts(stub, "scaling")
        hits, misses = cache_counts(stub, "scaling")
        missed = stub.ModelInfer(scaled(5.0, id="first"))
        hit = stub.ModelInfer(scaled(5.0, id="second"))
        assert (hit.id, missed.id) == ("second", "first")
        hit.id = missed.id
        assert hit.SerializeToString(deterministic=True) == missed.SerializeToString(deterministic=True)
        other = stub.ModelInfer(scaled(6.0))
        assert other.raw_output_contents[0] != missed.raw_output_contents[0]
        one = scaled(5.0)
        one.outputs.add(name="made_by")
        for _ in range(2):
            assert list(stub.ModelInfer(one).raw_output_contents) == [missed.raw_output_contents[1]]
        typed = pb.ModelInferRequest(model_name="scaling")
        typed.inputs.add(name="x", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(5.0)
        assert list(stub.ModelInfer(typed).raw_output_contents) == list(missed.raw_output_contents)
        assert cache_counts(stub, "scaling") == (hits + 3, misses + 3)
        success, fail, inferences, executions = (a - b for a, b in zip(counts(stub, "scaling"), before, strict=True))
        assert (success, fail, inferences, executions) == (6, 0, 3, 3)
        (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="scaling")).model_stats
        assert row.inference_stats.queue.count == row.inference_stats.success.count
        assert row.inference_stats.cache_hit.ns > 0
        version = {"model": "scaling", "version": "1"}
        for name in ("podium_cache_hits_total", "nv_cache_num_hits_per_model"):
            assert sample(kept, name, **version) == hits + 3
        assert sample(kept, "nv_cache_num_misses_per_model", **version) == misses + 3
        assert sample(kept, "podium_cache_bytes", **version) > 0
        assert sample(kept, "podium_cache_entries", **version) == misses + 3
        assert sample(kept, "podium_cache_bytes", model="plain", version="1") == -1.0
        assert cache_counts(stub, "plain") == (0, 0)


def test_what_could_change_the_answer_is_asked_anew(kept: Serving) -> None:
    with kept.stub() as stub:
        stub.ModelInfer(scaled(7.0))
        seen = cache_counts(stub, "scaling")
        message = scaled(7.0)
        message.parameters["mine"].int64_param = 1
        stub.ModelInfer(message)
        assert cache_counts(stub, "scaling") == seen
        for name, value in (("priority", 1), ("timeout", 10**9)):
            message = scaled(7.0)
            message.parameters[name].int64_param = value
            stub.ModelInfer(message)
        assert cache_counts(stub, "scaling") == (seen[0] + 2, seen[1])


def test_a_reload_remembers_nothing_and_an_unload_keeps_nothing(kept: Serving) -> None:
    version = {"model": "scaling", "version": "1"}
    with kept.stub() as stub:
        first = stub.ModelInfer(scaled(8.0))
        assert stub.ModelConfig(pb.ModelConfigRequest(name="scaling")).config.response_cache.enable
        load = pb.RepositoryModelLoadRequest(model_name="scaling")
        load.parameters["config"].string_param = '{"dynamic_batching": {"max_queue_delay_microseconds": 1}}'
        stub.RepositoryModelLoad(load)
        assert sample(kept, "podium_cache_entries", **version) == 0
        misses = cache_counts(stub, "scaling")[1]
        assert list(stub.ModelInfer(scaled(8.0)).raw_output_contents) == list(first.raw_output_contents)
        assert cache_counts(stub, "scaling")[1] == misses + 1
        load.parameters["config"].string_param = '{"response_cache": {"enable": false}}'
        stub.RepositoryModelLoad(load)
        assert not stub.ModelConfig(pb.ModelConfigRequest(name="scaling")).config.HasField("response_cache")
        seen = cache_counts(stub, "scaling")
        stub.ModelInfer(scaled(8.0))
        stub.ModelInfer(scaled(8.0))
        assert cache_counts(stub, "scaling") == seen
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="scaling"))
        assert sample(kept, "podium_cache_bytes", **version) == -1.0
        assert refusal(lambda: stub.ModelInfer(scaled(8.0)))[0] in ("NOT_FOUND", "UNAVAILABLE")
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="scaling"))
        load = pb.RepositoryModelLoadRequest(model_name="plain")
        load.parameters["config"].string_param = '{"response_cache": {"enable": true}}'
        stub.RepositoryModelLoad(load)
        stub.ModelInfer(scaled(8.0, model="plain"))
        stub.ModelInfer(scaled(8.0, model="plain"))
        assert cache_counts(stub, "plain") == (1, 1)
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="plain"))


def test_its_memory_is_bounded(kept: Serving) -> None:
    version = {"model": "small", "version": "1"}
    with kept.stub() as stub:
        for number in range(30):
            stub.ModelInfer(scaled(float(number), model="small"))
            assert 0 < sample(kept, "podium_cache_bytes", **version) <= 3000
        evicted = sample(kept, "podium_cache_evictions_total", **version)
        assert sample(kept, "podium_cache_entries", **version) + evicted == 30
        assert evicted > 0
        assert cache_counts(stub, "small") == (0, 30)
        stub.ModelInfer(scaled(29.0, model="small"))
        assert cache_counts(stub, "small") == (1, 30)


def test_equal_requests_at_once_are_all_answered_and_errors_are_not_kept(kept: Serving) -> None:
    rows = np.arange(4, dtype=np.float32).reshape(1, 4)
    message = infer_message("slow", {"x": ("FP32", [1, 4], rows.tobytes())})
    with kept.stub() as stub, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: stub.ModelInfer(message), range(4)))
        assert {bytes(answer.raw_output_contents[0]) for answer in answers} == {rows.tobytes()}
        hits, misses = cache_counts(stub, "slow")
        assert hits + misses == 4
        assert sample(kept, "podium_cache_entries", model="slow", version="1") == 1
        late = infer_message("slow", {"x": ("FP32", [1, 4], (rows + 1).tobytes())})
        late.parameters["timeout"].int64_param = 1
        for _ in range(2):
            assert refusal(lambda: stub.ModelInfer(late)) == ("UNAVAILABLE", "Request timeout expired")
        assert sample(kept, "podium_cache_entries", model="slow", version="1") == 1
        wrong = infer_message("slow", {"x": ("FP32", [1, 3], bytes(12))})
        seen = cache_counts(stub, "slow")
        assert refusal(lambda: stub.ModelInfer(wrong))[0] == "INVALID_ARGUMENT"
        assert cache_counts(stub, "slow") == seen


def timed(response: Any) -> dict[str, int]:
    found = {}
    for name, parameter in response.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        assert choice == ("bool_param" if name == "podium_cache_hit" else "int64_param")
        found[name.removeprefix("podium_").removesuffix("_us")] = getattr(parameter, choice)
    return found


def waited(stub: Any, model: str) -> tuple[int, int]:
    (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    return row.inference_stats.queue.count, row.inference_stats.queue.ns


def asking(model: str, value: float) -> pb.ModelInferRequest:
    message = infer_message(model, {"x": ("FP32", [1, 4], np.full(4, value, np.float32).tobytes())})
    message.parameters["podium_timing"].bool_param = True
    return message


def test_times_add_up_and_show_who_waited(kept: Serving) -> None:
    with kept.stub() as stub:
        first = timed(stub.ModelInfer(asking("timed", 0.0)))
        assert set(first) == {"queue", "execute", "total", "batch_rows"}
        futures = [stub.ModelInfer.future(asking("timed", float(number))) for number in range(12)]
        times = [timed(future.result()) for future in futures]
        # the engine counts a batch after its answers have left
        until(lambda: waited(stub, "timed")[0] == 13, "all counted")
        count, ns = waited(stub, "timed")
    for each in (first, *times):
        assert 0 <= each["queue"] <= each["total"]
        assert 50_000 <= each["execute"] <= each["queue"] + each["execute"] <= each["total"]
        assert 1 <= each["batch_rows"] <= 4
    waits_us = sum(each["queue"] for each in (first, *times))
    assert waits_us <= ns / 1000 <= waits_us + count, "what callers are told is what is counted"


def test_timing_is_no_part_of_the_question(kept: Serving) -> None:
    plain = asking("slow", 77.0)
    del plain.parameters["podium_timing"]
    with kept.stub() as stub:
        assert not stub.ModelInfer(plain).parameters
        hit = timed(stub.ModelInfer(asking("slow", 77.0)))
        assert set(hit) == {"cache_hit", "total"}
        unknown = asking("slow", 77.0)
        unknown.parameters["podium_tomorrow"].bool_param = True
        code, text = refusal(lambda: stub.ModelInfer(unknown))
        assert code == "INVALID_ARGUMENT"
        assert "podium_timing" in text


def consumers(server: Serving, model: str) -> dict[tuple[int, str], int]:
    status, body = server.http(f"/consumers?model={model}")
    assert status == 200
    return {(row["version"], row["consumer"]): row["requests"] for row in json.loads(body)["uses"]}


def test_consumers_are_counted_by_what_they_declare(kept: Serving) -> None:
    client = triton.InferenceServerClient(kept.grpc_address)
    try:
        tensor = triton.InferInput("x", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
        for headers in ({"podium-consumer": "checkout"}, {"podium-consumer": "checkout"}, None, {"podium-consumer": "x" * 200}):
            client.infer("used", [tensor], headers=headers)
    finally:
        client.close()
    with kept.stub() as stub:
        wrong = infer_message("used", {"x": ("FP32", [1, 2], bytes(8))})
        refusal(lambda: stub.ModelInfer(wrong, metadata=(("podium-consumer", "careless"),)))
        refusal(lambda: stub.ModelInfer(scaled(1.0, model="nobody"), metadata=(("podium-consumer", "lost"),)))
    assert consumers(kept, "used") == {(1, "checkout"): 2, (1, "careless"): 1, (1, "invalid"): 1, (1, ""): 1}
    assert consumers(kept, "nobody") == {}
    assert sample(kept, "podium_consumer_requests_total", model="used", version="1", consumer="checkout") == 2
    assert sample(kept, "podium_consumer_requests_total", model="used", version="1", consumer="") == 1


def in_file(path: Path) -> int:
    """Requests that a server's file knows of, as whole as any reader finds it."""
    return sum(use.requests for use in read_usage(path.read_bytes(), str(path)).values()) if path.exists() else 0


def test_usage_outlives_drain_and_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str], plane: str) -> None:
    repository, usage = tmp_path / "repository", tmp_path / "usage"
    repository.mkdir()
    put_scaling(repository, "m", 1)
    settings: dict[str, Any] = {"usage_dir": str(usage), "server_name": "one", "usage_flush_s": FLUSH_S}
    path = usage / "one.json"

    def ask(server: Serving, times: int) -> None:
        with server.stub() as stub:
            for _ in range(times):
                stub.ModelInfer(scaled(1.0, model="m"), metadata=(("podium-consumer", "checkout"),))

    server = Serving(repository, tmp_path, data_plane=plane, **{**settings, "usage_flush_s": 3600.0})
    try:
        ask(server, 3)
        assert not path.exists()
    finally:
        server.stop()
    assert in_file(path) == 3, "a drain writes what no interval has"

    server = Serving(repository, tmp_path, data_plane=plane, **settings)
    try:
        ask(server, 4)
        assert consumers(server, "m") == {(1, "checkout"): 7}
        until(lambda: in_file(path) == 7, "an interval")
        ask(server, 5)
    finally:
        server.kill()
    assert 7 <= in_file(path) <= 12, "what the last interval saw may be lost, nothing else"

    found = in_file(path)
    server = Serving(repository, tmp_path, data_plane=plane, **settings)
    try:
        ask(server, 1)
        assert main(["consumers", "m", "--server", server.http_address]) == 0
        assert re.search(rf"checkout +{found + 1} +{found + 1} +{found + 1} ", capsys.readouterr().out)
    finally:
        server.stop()
    assert in_file(path) == found + 1
    assert main(["consumers", "m", "--usage", str(usage), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["requests"] == found + 1
    assert [each.name for each in usage.iterdir() if not each.name.startswith(".")] == ["one.json"]


def test_a_disk_that_refuses_disturbs_nobody(tmp_path: Path, plane: str) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    put_scaling(repository, "m", 1)
    (tmp_path / "occupied").write_bytes(b"")
    server = Serving(repository, tmp_path, data_plane=plane, usage_dir=str(tmp_path / "occupied"), usage_flush_s=0.01)
    try:
        with server.stub() as stub:
            for number in range(50):
                stub.ModelInfer(scaled(float(number), model="m"))
        assert consumers(server, "m") == {(1, ""): 50}
    finally:
        server.stop(errors=("what consumers use cannot be kept",))
    said = [line for line in server.lines() if line["event"] == "what consumers use cannot be kept"]
    assert len(said) == 1
