"""The load client counts what it is told: right, wrong, late, failed and lost answers, each for what it is.

A verifier that cannot fail is worth nothing: here every kind of bad answer is given on purpose,
and must be counted as that kind.
"""

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bench.native_client import executable, load, write_bodies
from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return executable()


def response_to(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """The right one."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name="OUT", datatype="FP32", shape=request.inputs[0].shape)
    if request.raw_input_contents:
        response.raw_output_contents.append(request.raw_input_contents[0])
    else:
        response.outputs[0].contents.fp32_contents.extend(request.inputs[0].contents.fp32_contents)
    return response


def other_values(response: pb.ModelInferResponse) -> None:
    flipped = bytearray(response.raw_output_contents[0])
    flipped[-1] ^= 1
    response.raw_output_contents[0] = bytes(flipped)


def other_id(response: pb.ModelInferResponse) -> None:
    response.id = f"{int(response.id, 16) + 1:016x}"


def other_model(response: pb.ModelInferResponse) -> None:
    response.model_name = "another"


def other_name(response: pb.ModelInferResponse) -> None:
    response.outputs[0].name = "OUTPUT"


def other_datatype(response: pb.ModelInferResponse) -> None:
    response.outputs[0].datatype = "INT32"


def other_shape(response: pb.ModelInferResponse) -> None:
    response.outputs[0].shape[:] = [16, 1]


def short_values(response: pb.ModelInferResponse) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]


def two_tensors(response: pb.ModelInferResponse) -> None:
    response.raw_output_contents.append(response.raw_output_contents[0])


def no_tensor(response: pb.ModelInferResponse) -> None:
    del response.raw_output_contents[:]


SPOILT: dict[Callable[[pb.ModelInferResponse], None], str] = {
    other_values: "values",
    other_id: "id",
    other_model: "model",
    other_name: "name",
    other_datatype: "name",
    other_shape: "shape",
    short_values: "shape",
    two_tensors: "malformed",
    no_tensor: "malformed",
}


class Echoing(GRPCInferenceServiceServicer):
    """The identity model; every third answer is spoilt, every fifth is an error."""

    def __init__(self, spoil: Callable[[pb.ModelInferResponse], None] | None, answer: Callable[..., Any] = response_to) -> None:
        self.spoil, self.answer = spoil, answer
        self.seen: list[tuple[str, bytes]] = []

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        number = int(request.id, 16)
        self.seen.append((request.id, b"".join(request.raw_input_contents)))
        if self.spoil and number % 5 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        response: pb.ModelInferResponse = self.answer(request)
        if self.spoil and number % 3 == 0:
            self.spoil(response)
        return response


# the stubs call the generated methods abstract; at run time none is
Echo: Any = Echoing


@contextmanager
def serving(servicer: Echoing, address: str = "127.0.0.1:0") -> Iterator[tuple[str, grpc.Server]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield (address if address.startswith("unix:") else f"127.0.0.1:{port}"), server
    finally:
        server.stop(None).wait()


def test_right_answers_are_right_and_every_request_differs() -> None:
    echo = Echo(None)
    with serving(echo) as (address, _):
        report = load(address, "identity", "--requests", 300, "--connections", 2, "--streams", 8)
    assert (report["requests"], report["right"], report["wrong"], report["failed"]) == (300, 300, 0, 0)
    assert report["latency_us"]["count"] == 300
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["p99"] <= report["latency_us"]["max"]
    assert report["connects"] == 2
    assert report["cpu_s"] > 0
    assert {int(number, 16) for number, _ in echo.seen} == set(range(300))
    assert len({payload for _, payload in echo.seen}) == 300
    assert {len(payload) for _, payload in echo.seen} == {64}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_answer_is_counted_as_what_it_is(spoil: Callable[[pb.ModelInferResponse], None]) -> None:
    with serving(Echo(spoil)) as (address, _):
        report = load(address, "identity", "--requests", 150, "--streams", 8)
    failed = sum(number % 5 == 0 for number in range(150))
    wrong = sum(number % 3 == 0 and number % 5 != 0 for number in range(150))
    assert report["errors"] == {"14": failed}
    assert report["first_error"] == "not now"
    assert report["wrong_by"] == {SPOILT[spoil]: wrong}
    assert (report["wrong"], report["right"], report["late"]) == (wrong, 150 - wrong - failed, 0)


@pytest.mark.parametrize("size", [8, 4096, 150_000, 600_000])
@pytest.mark.parametrize("contents", ["raw", "typed"])
def test_payloads_of_every_size_in_both_places(size: int, contents: str) -> None:
    with serving(Echo(None)) as (address, _):
        report = load(address, "identity", "--requests", 12, "--streams", 3, "--bytes", size, "--contents", contents)
    assert (report["right"], report["wrong"], report["failed"]) == (12, 0, 0)


def test_a_large_payload_with_one_wrong_bit() -> None:
    with serving(Echo(other_values)) as (address, _):
        report = load(address, "identity", "--requests", 6, "--bytes", 600_000)
    assert report["wrong_by"] == {"values": 1}


def test_unix_sockets(tmp_path: Path) -> None:
    with serving(Echo(None), f"unix:{tmp_path}/socket") as (address, _):
        report = load(address, "identity", "--requests", 50, "--streams", 5)
    assert report["right"] == 50


def expected_file(path: Path, rows: np.ndarray[Any, Any], answers: np.ndarray[Any, Any]) -> Path:
    sizes = struct.pack("<III", len(rows), rows.shape[1], answers.shape[1])
    path.write_bytes(b"PDEX" + sizes + rows.tobytes() + answers.tobytes())
    return path


@pytest.mark.parametrize(
    ("error", "right", "inexact"), [(0.0, 64, 0), (1e-6, 64, 64), (1e-3, 0, 0), (float("nan"), 0, 0)], ids=str
)
def test_known_answers_within_a_tolerance(tmp_path: Path, error: float, right: int, inexact: int) -> None:
    rows = np.arange(16 * 4, dtype=np.float32).reshape(16, 4)

    def summed(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        row = np.frombuffer(request.raw_input_contents[0], np.float32)
        response = response_to(request)
        response.outputs[0].shape[:] = [1, 1]
        response.raw_output_contents[0] = np.array([row.sum() / 1000 + error], np.float32).tobytes()
        return response

    answers = (rows.sum(axis=1, keepdims=True) / 1000).astype(np.float32)
    with serving(Echo(None, summed)) as (address, _):
        report = load(address, "sum", "--requests", 64, "--expected", expected_file(tmp_path / "expected", rows, answers))
    assert (report["right"], report["wrong"], report["inexact"]) == (right, 64 - right, inexact)
    assert report["wrong_by"] == ({} if right else {"values": 64})
    assert 0 <= report["largest_error"] < 1e-5
    assert (report["largest_error"] > 0) == (inexact > 0)


def test_an_answer_to_another_row_is_wrong(tmp_path: Path) -> None:
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    with serving(Echo(None)) as (address, _):
        path = expected_file(tmp_path / "expected", rows, np.roll(rows, 1, axis=0))
        report = load(address, "identity", "--requests", 8, "--expected", path)
    assert report["wrong_by"] == {"values": 8}


def test_an_open_loop_keeps_its_rate_and_says_how_late_it_was() -> None:
    with serving(Echo(None)) as (address, _):
        report = load(address, "identity", "--requests", 200, "--rate", 400, "--streams", 100)
    assert report["right"] == 200
    # 200 exponential gaps: the sum is within 5 standard deviations of its mean of 0.5 s, or later on a machine that stood still
    assert report["seconds"] > 0.5 * (1 - 5 / 200**0.5)
    assert report["lateness_us"]["count"] == 200


def test_bursts_are_arrivals_too_and_a_late_client_says_so() -> None:
    def slowly(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        threading.Event().wait(0.02)
        return response_to(request)

    with serving(Echo(None, slowly)) as (address, _):
        # one call at a time, each of 20 ms, and 500 due every second: nearly all wait for the client, which is its fault
        late = load(address, "identity", "--requests", 40, "--rate", 500, "--cv", 2)
        in_time = load(address, "identity", "--requests", 40, "--rate", 20, "--cv", 2, "--streams", 50)
    assert (late["right"], late["void"]) == (40, True)
    assert in_time["right"] == 40
    assert in_time["void"] is (in_time["lateness_us"]["p99"] > 0.05 * in_time["latency_us"]["p99"])


def test_a_client_that_cannot_send_what_is_due_is_void() -> None:
    with serving(Echo(None)) as (address, _):
        report = load(address, "identity", "--rate", 1e6, "--settle-s", 0.4, "--seconds", 0.1)
    # it did not even get as far as what would have been counted
    assert (report["void"], report["latency_us"]["count"], report["right"]) == (True, 0, 0)
    assert 0.1 < report["behind_us"] / 1e6 < 0.5


def test_nothing_is_counted_before_the_load_has_settled() -> None:
    echo = Echo(None)
    with serving(echo) as (address, _):
        report = load(address, "identity", "--rate", 300, "--settle-s", 0.5, "--seconds", 0.5, "--streams", 100)
    assert report["settling"] > 0
    assert report["requests"] == report["settling"] + report["right"] == len(echo.seen)
    assert report["latency_us"]["count"] == report["lateness_us"]["count"] == report["right"] > 0
    # what was due in half a second; the rate counts until the last answer
    assert report["goodput"] == pytest.approx(report["right"] / 0.5)
    assert report["rate"] == pytest.approx(report["right"] / report["seconds"])


def test_a_closed_loop_counts_what_is_answered_after_it_has_settled() -> None:
    def slowly(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        threading.Event().wait(0.4)
        return response_to(request)

    with serving(Echo(None, slowly)) as (address, _):
        report = load(address, "identity", "--settle-s", 0.2, "--seconds", 0.1, "--streams", 4)
    # sent at once, and answered after the load had settled
    assert (report["settling"], report["right"], report["requests"]) == (0, 4, 4)
    assert report["goodput"] == report["rate"]


@pytest.mark.parametrize("word", ["grpc-timeout", "parameter"])
def test_a_deadline_is_told_in_either_way_and_what_comes_after_it_is_late(word: str) -> None:
    told: list[tuple[int, bool]] = []

    class Timed(Echoing):
        def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
            threading.Event().wait(0.15)
            told.append((request.parameters["timeout"].int64_param, context.time_remaining() < 3600))
            return response_to(request)

    timed: Any = Timed
    with serving(timed(None)) as (address, _):
        report = load(address, "identity", "--requests", 3, "--deadline-ms", 50, "--deadline-as", word)
    if word == "parameter":
        assert told == [(50_000, False)] * 3
        assert (report["late"], report["right"], report["rate"]) == (3, 0, 0)
    else:
        assert report["errors"] == {"4": 3}
        assert all(one == (0, True) for one in told)


def bodies_file(path: Path, answered: bool = True) -> Path:
    """Three requests of two tensors of different datatypes and sizes, and what `swapped` answers."""
    bodies = []
    for size in (1, 1000, 150_000):
        ids, mask = np.arange(size, dtype=np.int64), np.full((size, 2), 0.5 * size, np.float32)
        message = pb.ModelInferRequest(raw_input_contents=[ids.tobytes(), mask.tobytes()])
        message.inputs.add(name="ids", datatype="INT64", shape=[1, size])
        message.inputs.add(name="mask", datatype="FP32", shape=[1, size, 2])
        bodies.append((message, mask.tobytes() + ids.tobytes() if answered else b""))
    write_bodies(path, bodies)
    return path


def swapped(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    for tensor, raw in reversed(list(zip(request.inputs, request.raw_input_contents, strict=True))):
        response.outputs.add(name=f"{tensor.name}_again", datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw)
    return response


def test_bodies_of_any_model_in_turn(tmp_path: Path) -> None:
    echo = Echo(None, swapped)
    options = ("--requests", 12, "--streams", 4, "--deadline-ms", 10_000, "--deadline-as", "parameter")
    with serving(echo) as (address, _):
        report = load(address, "two", "--bodies", bodies_file(tmp_path / "bodies"), *options)
        unknown = load(address, "two", "--bodies", bodies_file(tmp_path / "bodies", answered=False), *options)
    assert (report["right"], report["wrong"], report["uncompared"]) == (12, 0, 0)
    assert (unknown["right"], unknown["wrong"], unknown["uncompared"]) == (12, 0, 12)
    sizes = {int(number, 16): len(payload) // 16 for number, payload in echo.seen}
    assert [sizes[number] for number in range(6)] == [1, 1000, 150_000] * 2


@pytest.mark.parametrize("spoil", [other_values, other_id, other_model, short_values, two_tensors], ids=lambda f: f.__name__)
def test_a_spoilt_answer_to_a_body(tmp_path: Path, spoil: Callable[[pb.ModelInferResponse], None]) -> None:
    with serving(Echo(spoil, swapped)) as (address, _):
        report = load(address, "two", "--bodies", bodies_file(tmp_path / "bodies"), "--requests", 15)
    assert report["wrong_by"] == {SPOILT[spoil]: 4}
    assert (report["failed"], report["right"]) == (3, 8)


@pytest.mark.parametrize(("error", "right"), [(1e-6, 6), (1e-3, 0)])
def test_bodies_of_floats_are_compared_within_a_tolerance(tmp_path: Path, error: float, right: int) -> None:
    row = np.linspace(0, 1, 8, dtype=np.float32)

    def noisy(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = response_to(request)
        response.raw_output_contents[0] = (row + np.float32(error)).tobytes()
        return response

    message = pb.ModelInferRequest(raw_input_contents=[row.tobytes()])
    message.inputs.add(name="IN", datatype="FP32", shape=[1, 8])
    write_bodies(tmp_path / "bodies", [(message, row.tobytes())])
    with serving(Echo(None, noisy)) as (address, _):
        report = load(address, "m", "--bodies", tmp_path / "bodies", "--requests", 6, "--tolerance", 1e-5)
    assert (report["right"], report["inexact"], report["wrong"]) == (right, right, 6 - right)


def test_connections_are_changed_after_so_many_requests() -> None:
    with serving(Echo(None)) as (address, _):
        report = load(address, "identity", "--requests", 40, "--connections", 2, "--streams", 2, "--requests-per-connection", 4)
    assert (report["right"], report["failed"], report["lost_connections"]) == (40, 0, 0)
    assert report["connects"] >= 10


def test_a_server_that_leaves_and_another_that_comes(tmp_path: Path) -> None:
    """GOAWAY: what is open is answered, and the rest goes to the next connection."""
    address = f"unix:{tmp_path}/socket"
    with futures.ThreadPoolExecutor(1) as pool:
        with serving(Echo(None), address) as (_, server):
            running = pool.submit(load, address, "identity", "--requests", 3000, "--seconds", 60, "--streams", 4)
            threading.Event().wait(0.5)
            server.stop(10).wait()
        with serving(Echo(None), address):
            report = running.result()
    assert report["requests"] == report["right"] + report["failed"] == 3000
    # what a call gets that comes while a server ends is that server's affair; none may be lost from the count
    assert set(report["errors"]) <= {"refused", "lost", "reset:8", "1", "14"}
    assert report["unanswered"] == 0
    assert report["wrong"] == 0


def test_nobody_listens() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match="cannot connect"):
            load(f"127.0.0.1:{unheard.getsockname()[1]}", "identity", "--requests", 1, "--stall-s", 0.3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--requests", "none"], "no whole number"),
        (["--requests", "-1"], "no whole number"),
        (["--requests", "1", "--rate", "nan"], "not above zero"),
        (["--requests", "1", "--speed", "9"], "not an option"),
        (["--requests", "1", "--rate"], "needs a value"),
        (["--bytes", "64"], "must end the run"),
        (["--requests", "1", "--bytes", "7"], "whole floats"),
        (["--requests", "1", "--connections", "0"], "--connections"),
        (["--requests", "1", "--expected", "absent"], "cannot read"),
        (["--requests", "1", "--contents", "both"], "not an option"),
        (["--requests", "1", "--deadline-as", "wish"], "not an option"),
        (["--requests", "1", "--cv", "1000"], "--cv"),
        (["--requests", "1", "--settle-s", "-1"], "not above zero"),
        (["--requests", "1", "--bodies", "absent"], "cannot read"),
        (["--requests", "1", "--bodies", "absent", "--expected", "absent"], "not both"),
    ],
)
def test_unfit_options_are_refused(options: list[str], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        load("127.0.0.1:1", "identity", *options)


@pytest.mark.parametrize("spoilt", [b"PDEY", b"PDEX" + bytes(12), b"PDEX" + struct.pack("<III", 2, 4, 1) + bytes(39)], ids=len)
def test_a_file_of_answers_that_is_none(tmp_path: Path, spoilt: bytes) -> None:
    path = tmp_path / "expected"
    path.write_bytes(spoilt)
    with pytest.raises(RuntimeError, match=r"expected rows|not as long"):
        load("127.0.0.1:1", "identity", "--requests", "1", "--expected", path)


def test_percentiles_arrivals_and_changed_answers(built: Path) -> None:
    done = subprocess.run([built.parent / "podium_client_check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
