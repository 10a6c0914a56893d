"""Constraints end to end, on both planes: who sends what may not be is told so, and changes nobody else's answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from tests.server.models import put_fake, put_scaling
from tests.server.serving import Serving, executing, infer_message, refusal, until
from tests.server.streaming import REPEAT, Open, asked, put_repeat

CONSTRAINED = "[validation]\ninputs = [{ name = 'x', at_least = 0, complete = true }]\n"


def put(repository: Path) -> None:
    put_fake(repository, "guarded", 200_000.0, max_batch=16, queue=f"early_drop = false\n{CONSTRAINED}")
    put_scaling(repository, "counting", 1, f"max_batch = 8\n[warmup]\nruns = 1\n{CONSTRAINED}action = 'count'\n")
    put_scaling(repository, "misread", 1, "max_batch = 8\n[validation]\ninputs = [{ name = 'age', complete = true }]\n")
    put_repeat(repository, "repeat")
    settings = repository / "repeat" / "model.toml"
    bound = "[validation]\ninputs = [{ name = 'IN', at_most = 3 }]\n"
    settings.write_text(settings.read_text() + bound)
    assert REPEAT["inputs"][0]["name"] == "IN"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("validation")
    repository = home / "repository"
    repository.mkdir()
    put(repository)
    server = Serving(repository, home, data_plane=plane, ready=False)
    try:
        with server.stub() as stub:
            for model in ("guarded", "counting", "repeat"):
                until(lambda: stub.ModelReady(pb.ModelReadyRequest(name=model)).ready, f"{model} is ready")  # noqa: B023
        yield server
    finally:
        server.stop(errors=("misread",))


def rows_of(tag: int, rows: int, bad: float | None) -> Any:
    made = np.full((rows, 4), tag, np.float32)
    if bad is not None:
        made[-1, 2] = bad
    return made


def message(tag: int, rows: int, bad: float | None, model: str = "guarded") -> pb.ModelInferRequest:
    return infer_message(model, {"x": ("FP32", [rows, 4], rows_of(tag, rows, bad).tobytes())}, id=str(tag))


def test_one_bad_row_in_a_mixed_batch_changes_no_neighbours_answer(serving: Serving) -> None:
    def bad_of(tag: int) -> float | None:
        return {3: -1.0, 7: float("nan")}.get(tag % 10)

    with serving.stub() as stub, ThreadPoolExecutor(40) as callers:
        first = executing(serving, stub, message(100, 1, None))

        def ask(tag: int) -> Any:
            try:
                return stub.ModelInfer(message(tag, 1 + tag % 2, bad_of(tag)), timeout=60)
            except grpc.RpcError as error:
                return error

        answers = list(callers.map(ask, range(40)))
        first.result()
        (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="guarded")).model_stats
    mixed = [each.batch_size for each in row.batch_stats if each.batch_size > 2]
    assert mixed, "no batch held several requests: nothing was shown"
    for tag, answer in enumerate(answers):
        rows, bad = 1 + tag % 2, bad_of(tag)
        if bad is None:
            assert answer.id == str(tag)
            assert answer.raw_output_contents[0] == rows_of(tag, rows, None).tobytes()
        else:
            kind = "at_least = 0" if bad < 0 else "complete"
            where = f" in 1 of {rows} rows" if rows > 1 else ""
            assert answer.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert answer.details() == f"invalid values for model 'guarded': 'x' breaks {kind}{where}"
    assert row.inference_stats.fail.count == 8


def test_a_request_that_is_alone_and_one_that_python_decodes_are_refused_alike(serving: Serving) -> None:
    """Classification is nothing that the native plane answers by itself."""
    plain, classified = message(1, 2, -5.0), message(1, 2, -5.0)
    classified.outputs.add(name="echo_x").parameters["classification"].int64_param = 2
    with serving.stub() as stub:
        said = [refusal(lambda: stub.ModelInfer(each)) for each in (plain, classified)]  # noqa: B023
    text = "invalid values for model 'guarded': 'x' breaks at_least = 0 in 1 of 2 rows"
    assert said == [("INVALID_ARGUMENT", text)] * 2


def test_what_is_only_counted_is_answered(serving: Serving) -> None:
    sent = np.array([[-1.0], [2.0]], np.float32)
    with serving.stub() as stub:
        response = stub.ModelInfer(infer_message("counting", {"x": ("FP32", [2, 1], sent.tobytes())}))
    outputs = dict(zip((each.name for each in response.outputs), response.raw_output_contents, strict=True))
    assert outputs["y"] == sent.tobytes()
    labels = 'action="count",constraint="at_least",input="x",model="counting",version="1"'
    assert f"podium_invalid_inputs_total{{{labels}}} 1.0" in serving.http("/metrics")[1]


def test_a_decoupled_request_is_refused_before_its_first_answer(serving: Serving) -> None:
    with serving.stub() as stub:
        stream = Open(stub)
        stream.send(asked(2, id="few"), asked(4, id="many"), asked(3, id="three"))
        stream.half_close()
        said = list(stream.call)
    by_id: dict[str, list[str]] = {}
    for each in said:
        by_id.setdefault(each.infer_response.id, []).append(each.error_message)
    assert by_id["few"] == [""] * len(by_id["few"])
    assert len(by_id["few"]) >= 2
    assert len(by_id["three"]) >= 3
    (refused,) = by_id["many"]
    assert "invalid values for model 'repeat': 'IN' breaks at_most = 3" in refused


def test_a_version_whose_constraints_do_not_fit_is_not_served(serving: Serving) -> None:
    with serving.stub() as stub:

        def reason() -> str:
            (each,) = [each for each in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models if each.name == "misread"]
            return str(each.reason)

        assert "validation: 'age' is neither an input nor a feature; inputs are x" in until(reason, "a reason")
