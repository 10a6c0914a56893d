"""The client of Node.js, which has an HTTP/2 of its own. Not collected where it is not there: see conftest.py."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.grpc_js import ROOT, command
from tests.server.models import QUICK, graph, put, put_fake
from tests.server.serving import Serving


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[dict[str, Any]]:
    """What one run of tests/clients/client.js saw."""
    home = tmp_path_factory.mktemp("node")
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 500.0, max_batch=16)
    put_fake(repository, "slow", 500_000.0, queue="early_drop = false")
    same = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": ("FP32", ["N", "A"])}, {"y": ("FP32", ["N", "A"])})
    put(repository, "wide", 1, {"model.onnx": same}, "max_batch = 16\n" + QUICK)
    server = Serving(repository, home, data_plane=plane)
    found = command()
    assert found is not None
    start, environment = found
    try:
        arguments = [*start, server.grpc_address, str(ROOT)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        yield {**json.loads(done.stdout), "consumers": server.http("/metrics")[1]}
    finally:
        server.stop()


def test_calls_are_answered_each_with_its_own(seen: dict[str, Any]) -> None:
    assert seen["ready"] is True
    assert seen["many"] == [{"id": f"m{number}", "values": [number, 1, 2, 3]} for number in range(200)]
    assert seen["large"] == (np.arange(16 * 20_000) % 1000).tolist()
    assert seen["after"] == {"id": "after", "values": [9, 9, 9, 9]}


def test_metadata_arrives(seen: dict[str, Any]) -> None:
    assert seen["declared"]["id"] == "declared"
    assert 'podium_consumer_requests_total{consumer="node",model="echo",version="1"} 1.0' in seen["consumers"]


def test_errors_have_their_code_and_text(seen: dict[str, Any]) -> None:
    assert seen["unknown"] == {"code": "NOT_FOUND", "text": "Request for unknown model: 'nobody' is not found"}
    assert seen["wrong"]["code"] == "INVALID_ARGUMENT"
    assert "batch-size must be <= 16" in seen["wrong"]["text"]
    assert seen["late"]["code"] == "DEADLINE_EXCEEDED"
    assert seen["cancelled"]["code"] == "CANCELLED"


def test_a_stream_tells_of_an_error_and_goes_on(seen: dict[str, Any]) -> None:
    answers = seen["stream"]["seen"]
    assert seen["stream"]["ended"] == {"code": "OK"}
    assert sorted(each["id"] for each in answers if "id" in each) == ["a", "c"]
    assert [each["error"] for each in answers if "error" in each] == ["Request for unknown model: 'nobody' is not found"]
