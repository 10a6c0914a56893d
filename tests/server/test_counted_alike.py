"""The same traffic is counted alike on every data plane, whoever answers it: on the native one it takes the fast lane."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from tests.server.models import put_fake, put_others
from tests.server.scrape import scrape
from tests.server.serving import Serving, infer_message, refusal, until

PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
Counts = dict[str, int]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    """A server whose batches last long enough for whatever must happen while they run."""
    home = tmp_path_factory.mktemp("alike")
    repository = home / "repository"
    repository.mkdir()
    put_others(repository)
    put_fake(repository, "echo", 1000.0, max_batch=16)
    put_fake(repository, "choosy", 600_000.0)
    put_fake(repository, "narrow", 1_000_000.0, queue="max_requests = 2")
    put_fake(repository, "slow", 1_000_000.0, queue="early_drop = false")
    # rows are sampled a moment after their answers
    server = Serving(repository, home, data_plane=plane, monitoring={"sink": "none"})
    try:
        yield server
    finally:
        server.stop()


def request(model: str, rows: int = 1, timeout_us: int = 0) -> pb.ModelInferRequest:
    message = infer_message(model, {"x": ("FP32", [rows, 4], bytes(16 * rows))})
    if timeout_us:
        message.parameters["timeout"].int64_param = timeout_us
    return message


def find(index: int) -> pb.ModelInferRequest:
    return infer_message("lookup", {"index": ("INT64", [1, 1], np.int64(index).tobytes())})


def counted(serving: Serving, stub: Any, model: str) -> Counts:
    """What is not 0, by the names of ModelStatistics, and by those of the metrics page where it counts."""
    (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
    found = {f"statistics {part}": getattr(row.inference_stats, part).count for part in PARTS}
    found |= {"statistics inferences": row.inference_count, "statistics executions": row.execution_count}
    for (name, labels), value in scrape(serving).items():
        told = dict(labels)
        if (
            told.pop("model", None) != model
            or told.pop("consumer", "")
            or name.endswith(("_bucket", "_sum", "_us", "loads_total"))
        ):
            continue
        if name.endswith(("_total", "_count")) or name.startswith("nv_inference_request"):
            said = [each for key, each in sorted(told.items()) if key != "version"]
            found[" ".join([name.removeprefix("podium_").removesuffix("_total"), *said])] = int(value)
    return {name: count for name, count in found.items() if count}


def lanes(serving: Serving) -> Counts:
    page = scrape(serving)
    return {
        dict(labels)["lane"]: int(value) for (name, labels), value in page.items() if name == "podium_door_infer_calls_total"
    }


def levels(serving: Serving, model: str) -> tuple[int, int]:
    """(waiting, admitted) requests."""
    page = scrape(serving)
    version = frozenset({("model", model), ("version", "1")})
    return int(page["podium_queue_requests", version]), int(page["podium_inflight_requests", version])


def running(serving: Serving, stub: Any, model: str, **settings: int) -> Any:
    """A call whose batch runs."""
    call = stub.ModelInfer.future(request(model, **settings), timeout=60)
    until(lambda: levels(serving, model) == (0, 1), "the batch runs")
    return call


def play(serving: Serving, stub: Any) -> None:
    """19 calls: answered, failed, refused in every way that a queue refuses, cancelled before and while they run, late."""
    for rows in (1, 1, 1, 1, 1, 3):
        stub.ModelInfer(request("echo", rows))
    stub.ModelInfer(find(1))
    stub.ModelInfer(find(2))
    assert refusal(lambda: stub.ModelInfer(find(99)))[0] == "INTERNAL"
    assert "predicted" in refusal(lambda: stub.ModelInfer(request("choosy", timeout_us=200_000)))[1]

    first = running(serving, stub, "narrow")
    queued = [stub.ModelInfer.future(request("narrow")) for _ in range(2)]
    until(lambda: levels(serving, "narrow") == (2, 3), "the queue is full")
    assert "Exceeds maximum queue size" in refusal(lambda: stub.ModelInfer(request("narrow")))[1]
    queued[0].cancel()
    first.result(), queued[1].result()
    until(lambda: levels(serving, "narrow") == (0, 0), "all have ended")

    busy = running(serving, stub, "slow")
    assert refusal(lambda: stub.ModelInfer(request("slow", timeout_us=50_000))) == ("UNAVAILABLE", "Request timeout expired")
    busy.result()
    running(serving, stub, "slow", timeout_us=700_000).result()
    executions = counted(serving, stub, "slow")["statistics executions"]
    assert refusal(lambda: stub.ModelInfer(request("slow"), timeout=0.7))[0] == "DEADLINE_EXCEEDED"
    # nobody waits for it any more, but it is executed to its end, and what comes behind it would wait
    until(lambda: counted(serving, stub, "slow")["statistics executions"] > executions, "the batch has ended")
    running(serving, stub, "slow").cancel()


def executed(requests: int, rows: int, released: str, *, batches: int, rows_in_all: int) -> Counts:
    """The counters of a version that answered so many requests; `batches` and their rows are all that ran."""
    return {
        **{f"statistics {part}": requests for part in PARTS if part != "fail"},
        "statistics inferences": rows,
        "statistics executions": batches,
        **{f"request_seconds_count {phase}": requests for phase in ("queue", "execute", "total")},
        "requests ok": requests,
        "batch_rows_count": batches,
        f"batches_released {released}": batches,
        "device_batches cpu": batches,
        "rows": rows_in_all,
        "nv_inference_request_success": requests,
        "nv_inference_count": rows,
        "nv_inference_exec_count": batches,
    }


EXPECTED: dict[str, Counts] = {
    "echo": {**executed(6, 8, "drained", batches=6, rows_in_all=8), "padding_rows": 1, "consumer_requests": 6},
    "lookup": {
        **executed(2, 2, "drained", batches=3, rows_in_all=3),
        "statistics fail": 1,
        "requests failed": 1,
        "nv_inference_request_failure BACKEND": 1,
        "consumer_requests": 3,
    },
    "choosy": {
        "statistics fail": 1,
        "requests refused": 1,
        "refused expired": 1,
        "nv_inference_request_failure REJECTED": 1,
        "consumer_requests": 1,
    },
    "narrow": {
        **executed(2, 2, "full", batches=2, rows_in_all=2),
        "statistics fail": 2,
        "requests refused": 2,
        "refused queue_full": 1,
        "refused cancelled": 1,
        "nv_inference_request_failure REJECTED": 1,
        "nv_inference_request_failure CANCELED": 1,
        "consumer_requests": 4,
    },
    "slow": {
        **executed(2, 2, "full", batches=4, rows_in_all=4),
        "statistics fail": 3,
        "requests refused": 1,
        "refused expired": 1,
        "requests abandoned": 2,
        "late": 1,
        "nv_inference_request_failure REJECTED": 1,
        "nv_inference_request_failure CANCELED": 2,
        "consumer_requests": 5,
    },
}


def test_the_same_traffic_is_counted_alike(serving: Serving, plane: str) -> None:
    with serving.stub() as stub:
        play(serving, stub)
        until(lambda: counted(serving, stub, "slow").get("requests abandoned") == 2, "the last batch is counted")
        for model, expected in EXPECTED.items():
            assert counted(serving, stub, model) == expected, model
    assert lanes(serving) == ({"fast": 19, "handlers": 0} if plane == "native" else {})
