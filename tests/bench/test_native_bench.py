"""What `bench.native_plane` calls a measurement: only turns whose every answer was right, and gates that are met or missed."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import psutil
import pytest

from bench.models import TRIVIAL, write_identity, write_mlp
from bench.native_client import ROWS, TOLERANCE, executable, write_expected
from bench.native_plane import gate, in_turns
from bench.native_plane_crowd import churn, memory_of, verified
from bench.native_plane_servers import Serving, asked, turn
from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

Answering = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return executable()


class Model(GRPCInferenceServiceServicer):
    """Answers with what a function makes of the rows."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(request.inputs[0].shape))
        result = self._answering(rows)
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        response.outputs.add(name="OUT", datatype="FP32", shape=result.shape)
        response.raw_output_contents.append(result.tobytes())
        return response


@contextmanager
def serving(answering: Answering, expected: Path | None = None) -> Iterator[Serving]:
    kind: Any = Model  # the stubs call the generated methods abstract; at run time none is
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(kind(answering), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    payload: dict[str, tuple[str | float | Path, ...]] = {"identity": ("--bytes", 64)}
    if expected:
        payload["mlp"] = ("--expected", expected, "--tolerance", TOLERANCE)
    try:
        yield Serving(f"127.0.0.1:{port}", psutil.Process(), payload)
    finally:
        server.stop(None).wait()


def network(path: Path) -> Answering:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda rows: np.asarray(session.run(["OUT"], {"IN": rows})[0])


def test_a_turn_measures_the_rate_of_right_answers() -> None:
    with serving(lambda rows: rows) as server:
        (one,) = in_turns({"a": server}, "identity", ["a"], 1, "--streams", 2, "--requests", 300)["a"]
    assert one.rate > 0
    assert 0 < one.p50_us <= one.p99_us
    assert one.client_cpu_us > 0


def test_a_turn_with_one_wrong_answer_is_no_measurement() -> None:
    answered = iter(range(10**9))

    def mostly(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return rows if next(answered) != 60 else rows + np.float32(1)

    with serving(mostly) as server, pytest.raises(RuntimeError, match="not every answer was right"):
        turn(server, "identity", "--requests", 50)


def test_answers_of_the_network_are_known_and_its_rows_told_apart(tmp_path: Path) -> None:
    model, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    write_mlp(model, TRIVIAL, seed=7)
    write_mlp(other, TRIVIAL, seed=8)
    write_expected(tmp_path / "expected", model, TRIVIAL[0])
    content = (tmp_path / "expected").read_bytes()
    answers = np.sort(np.frombuffer(content, np.float32)[4 + ROWS * TRIVIAL[0] :])
    assert len(answers) == ROWS
    assert np.diff(answers).min() > 9 * TOLERANCE
    with serving(network(model), tmp_path / "expected") as server:
        report = verified(server, 2 * ROWS)
    assert (report["right"], report["wrong"], report["failed"]) == (2 * ROWS, 0, 0)
    with serving(network(other), tmp_path / "expected") as server:
        report = asked(server, "mlp", "--requests", ROWS)
    assert report["wrong_by"] == {"values": report["wrong"]}
    assert report["wrong"] > ROWS * 0.99


def test_the_identity_model_is_one(tmp_path: Path) -> None:
    write_identity(tmp_path / "model.onnx", 16)
    with serving(network(tmp_path / "model.onnx")) as server:
        assert asked(server, "identity", "--requests", 100)["right"] == 100


def test_connections_come_and_go() -> None:
    with serving(lambda rows: rows) as server:
        report = churn(server, 0.03)
    assert report["right"] == report["requests"] > 0
    assert report["connects"] >= report["requests"]
    assert report["rss_first_mb"] > 0


def test_memory_is_sampled_while_a_block_runs() -> None:
    with memory_of(psutil.Process()) as samples:
        while len(samples) < 3:
            threading.Event().wait(0.1)
    kept = len(samples)
    threading.Event().wait(0.7)
    assert len(samples) == kept
    assert all(each > 1 for each in samples)


@pytest.mark.parametrize(
    ("value", "bounds", "met"),
    [
        (15.0, {"least": 15.0}, True),
        (14.9, {"least": 15.0}, False),
        (120.0, {"most": 120.0}, True),
        (121.0, {"most": 120.0}, False),
        (float("nan"), {"most": 120.0}, False),
    ],
)
def test_gates(value: float, bounds: dict[str, float], met: bool) -> None:
    assert gate("x", value, **bounds)["met"] is met
