"""Tracing from outside: tritonclient asks, files and a collector are looked at."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from protos import grpc_service_pb2 as pb
from tests.collector import Collector, attributes, collecting
from tests.server.models import put_fake, put_simple
from tests.server.serving import Serving, infer_message, refusal, until

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ORDER = [
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_END",
]
Start = Callable[..., Serving]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("traced") / "repository"
    repository.mkdir()
    put_simple(repository)
    put_fake(repository, "echo", 1000.0, max_batch=16)
    return repository


@pytest.fixture
def start(models: Path, tmp_path: Path, plane: str) -> Iterator[Start]:
    """Servers with a `[trace]` table, drained in the end."""
    started: list[Serving] = []

    def make(**trace: Any) -> Serving:
        started.append(Serving(models, tmp_path, data_plane=plane, trace=trace))
        return started[-1]

    yield make
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def echo(rows: int = 1, **fields: Any) -> pb.ModelInferRequest:
    return infer_message("echo", {"x": ("FP32", [rows, 4], bytes(16 * rows))}, **fields)


def simple(**fields: Any) -> pb.ModelInferRequest:
    raw = np.arange(16, dtype=np.int32).tobytes()
    return infer_message("simple", {"INPUT0": ("INT32", [1, 16], raw), "INPUT1": ("INT32", [1, 16], raw)}, **fields)


def settings(response: pb.TraceSettingResponse) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in response.settings.items()}


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def heads(path: Path) -> list[dict[str, Any]]:
    return [found for found in read(path) if "model_name" in found]


def test_settings_go_back_and_forth(start: Start, tmp_path: Path) -> None:
    file = str(tmp_path / "traces.json")
    server = start(file=file, level=["TIMESTAMPS"], rate=1)
    with InferenceServerClient(server.grpc_address) as client:
        plain = {
            "trace_file": [file],
            "trace_level": ["TIMESTAMPS"],
            "trace_rate": ["1"],
            "trace_count": ["-1"],
            "log_frequency": ["0"],
            "trace_mode": ["triton"],
        }
        assert settings(client.get_trace_settings()) == settings(client.get_trace_settings("simple")) == plain
        assert {"trace", "logging"} <= set(client.get_server_metadata().extensions)
        client.update_trace_settings("simple", {"trace_rate": "12", "log_frequency": "34"})
        client.update_trace_settings(settings={"trace_rate": "56", "trace_count": "78", "trace_level": ["OFF"]})
        cleared = client.update_trace_settings(settings={"trace_rate": None, "trace_count": []})
        assert settings(cleared) == {**plain, "trace_level": ["OFF"]}
        own = {**plain, "trace_level": ["OFF"], "trace_rate": ["12"], "log_frequency": ["34"]}
        assert settings(client.get_trace_settings("simple")) == own
        both = client.update_trace_settings("simple", {"trace_rate": None, "trace_level": ["TIMESTAMPS", "TENSORS"]})
        assert settings(both) == {**own, "trace_rate": ["1"], "trace_level": ["TIMESTAMPS", "TENSORS"]}
        for model, values, code, text in (
            ("does-not-exist", {}, "INVALID_ARGUMENT", "Request for unknown model : does-not-exist"),
            ("", {"trace_file": "x"}, "UNIMPLEMENTED", "trace file location can not be updated through network protocol"),
            ("", {"trace_rate": "x"}, "INVALID_ARGUMENT", "Unable to parse 'trace_rate', got: x"),
            ("", {"trace_level": "OFF", "trace_rate": ["1", "2"]}, "INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'"),
        ):
            with pytest.raises(InferenceServerException) as refused:
                client.update_trace_settings(model, values)
            assert (refused.value.status(), refused.value.message()) == (f"StatusCode.{code}", text)
        with pytest.raises(TypeError):
            client.update_trace_settings(settings={"trace_rate": 5})  # the client's own: values are text
        assert settings(client.get_trace_settings()) == {**plain, "trace_level": ["OFF"]}


def test_one_in_rate_is_written_exactly_and_the_file_is_always_whole(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "traces.json"
    server = start(file=str(file), level=["TIMESTAMPS"], rate=7)
    with server.stub() as stub:
        for _ in range(7):
            stub.ModelInfer(echo(id="early"))
        until(lambda: file.exists() and heads(file), "the first trace")
        assert len(heads(file)) == 1
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: stub.ModelInfer(echo(2, id=str(number))), range(7 * 40)))
    server.stop()
    found = read(file)
    ids = [head["id"] for head in heads(file)]
    assert ids == list(range(1, 42))
    assert all((head["model_name"], head["model_version"]) == ("echo", 1) for head in heads(file))
    stamped = [each for each in found if "timestamps" in each]
    assert [each["id"] for each in stamped] == ids
    for each in stamped:
        assert [stamp["name"] for stamp in each["timestamps"]] == ORDER
        times = [stamp["ns"] for stamp in each["timestamps"]]
        assert times == sorted(times)
        assert times[4] - times[3] >= 1_000_000, "the model takes a millisecond"


def test_the_count_runs_out_and_a_model_has_rules_of_its_own(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "traces.json"
    server = start(file=str(file))
    with server.stub() as stub, InferenceServerClient(server.grpc_address) as client:
        stub.ModelInfer(echo())
        # as perf_analyzer does before it begins
        client.update_trace_settings("", {"trace_level": ["TIMESTAMPS"], "trace_rate": ["2"], "trace_count": ["3"]})
        client.update_trace_settings("simple", {"trace_rate": "1", "trace_level": ["TENSORS"], "log_frequency": "2"})
        for _ in range(20):
            stub.ModelInfer(echo())
        assert settings(client.get_trace_settings())["trace_count"] == ["0"]
        assert settings(client.get_trace_settings("simple"))["trace_count"] == ["3"]
        for number in range(5):
            stub.ModelInfer(simple(id=f"s{number}"))
        until(lambda: "podium_traces_total 6.0" in server.http("/metrics")[1], "six traces")
        assert "podium_traces_dropped_total 0.0" in server.http("/metrics")[1]
    server.stop()
    assert Counter(head["model_name"] for head in heads(file)) == {"echo": 3}
    numbered = [Path(f"{file}.{index}") for index in range(2)]
    assert [[head["request_id"] for head in heads(path)] for path in numbered] == [["s0", "s1"], ["s2"]]
    assert not Path(f"{file}.2").exists()
    tensors = [each for each in read(numbered[0]) if "tensor" in each and each["id"] == heads(numbered[0])[0]["id"]]
    values = ",".join(map(str, range(16)))
    assert [(each["activity"], each["tensor"]["name"], each["tensor"]["data"]) for each in tensors] == [
        ("TENSOR_QUEUE_INPUT", "INPUT0", values),
        ("TENSOR_QUEUE_INPUT", "INPUT1", values),
        ("TENSOR_BACKEND_OUTPUT", "OUTPUT0", ",".join(map(str, range(0, 32, 2)))),
        ("TENSOR_BACKEND_OUTPUT", "OUTPUT1", ",".join(["0"] * 16)),
    ]
    assert not any("timestamps" in each for each in read(numbered[0]))


def test_settings_change_under_load_and_nothing_is_lost(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "traces.json"
    server = start(file=str(file), level=["TIMESTAMPS"], rate=1)
    with server.stub() as stub, InferenceServerClient(server.grpc_address) as client, ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(stub.ModelInfer, echo(id=str(number))) for number in range(400)]
        for turn in range(20):
            client.update_trace_settings("echo", {"trace_rate": "1", "log_frequency": None if turn % 2 else "0"})
        for call in calls:
            call.result(60)
    server.stop()
    assert sorted(int(head["request_id"]) for head in heads(file)) == list(range(400))


def test_without_a_file_nobody_can_trace(start: Start) -> None:
    server = start()
    with InferenceServerClient(server.grpc_address) as client:
        assert settings(client.get_trace_settings())["trace_file"] == [""]
        with pytest.raises(
            InferenceServerException, match="Attempting to set invalid trace setting :trace file name is not given"
        ):
            client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})


def test_spans_continue_the_callers_trace(start: Start, collector: Collector) -> None:
    server = start(mode="opentelemetry", level=["TIMESTAMPS"], rate=0, otlp_endpoint=collector.address, service_name="scoring")
    with InferenceServerClient(server.grpc_address) as client, server.stub() as stub:
        x = InferInput("x", [3, 4], "FP32")
        x.set_data_from_numpy(np.zeros((3, 4), np.float32))
        client.infer("echo", [x], request_id="alone")
        headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=opaque"}
        client.infer("echo", [x], request_id="sampled", headers=headers)
        client.infer("echo", [x], request_id="unsampled", headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
        client.infer("echo", [x], request_id="odd", headers={"traceparent": "nonsense"})
        sampled = (("traceparent", headers["traceparent"]),)
        wrong = echo(id="refused")
        wrong.inputs[0].name = "nobody"
        assert refusal(lambda: stub.ModelInfer(wrong, metadata=sampled))[0] == "INVALID_ARGUMENT"
        values = settings(client.get_trace_settings())
        assert values == {
            "trace_level": ["TIMESTAMPS"],
            "trace_rate": ["0"],
            "trace_count": ["-1"],
            "trace_mode": ["opentelemetry"],
        }
    server.stop()
    assert collector.resource["service.name"] == "scoring"
    answered, refused = collector.servers()
    facts = attributes(answered)
    assert (facts["podium.request_id"], facts["podium.rows"], facts["podium.batch_rows"]) == ("sampled", 3, 3)
    assert (facts["podium.model"], facts["podium.version"], facts["rpc.grpc.status_code"]) == ("echo", 1, 0)
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert answered.trace_state == "vendor=opaque"
    children = collector.children(answered)
    queue, execute = children["queue"], children["execute"]
    instants = [
        answered.start_time_unix_nano,
        queue.start_time_unix_nano,
        queue.end_time_unix_nano,
        execute.start_time_unix_nano,
        execute.events[0].time_unix_nano,
        execute.end_time_unix_nano,
        answered.end_time_unix_nano,
    ]
    assert instants == sorted(instants)
    assert instants[5] - instants[4] >= 1_000_000
    assert attributes(refused)["rpc.grpc.status_code"] == 3
    assert collector.children(refused) == {}
    assert len(collector.spans) == 4


def test_spans_by_rate_and_until_the_count(start: Start, collector: Collector) -> None:
    server = start(mode="opentelemetry", level=["TIMESTAMPS"], rate=5, count=4, otlp_endpoint=collector.address)
    with server.stub() as stub, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: stub.ModelInfer(echo(id=str(number))), range(5 * 10)))
    server.stop()
    spans = collector.servers()
    assert len(spans) == 4
    assert len({span.trace_id for span in spans}) == 4
    assert all(span.parent_span_id == b"" for span in spans)
    assert all(set(collector.children(span)) == {"queue", "execute"} for span in spans)


def test_a_collector_that_is_not_there_disturbs_nobody(start: Start) -> None:
    server = start(mode="opentelemetry", level=["TIMESTAMPS"], rate=1, otlp_endpoint="http://127.0.0.1:1")
    with server.stub() as stub:
        for _ in range(200):
            stub.ModelInfer(echo())
        until(lambda: "podium_traces_dropped_total 0.0" not in server.http("/metrics")[1], "the loss")
        stub.ModelInfer(echo())
    server.stop()
    lines = [line for line in server.lines() if line["level"] != "info"]
    assert {line["event"] for line in lines} <= {"traces are lost", "traces were given up at the end"}
    assert sum(line["event"] == "traces are lost" for line in lines) == 1
