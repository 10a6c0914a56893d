"""NVIDIA's perf_analyzer against a real server, unchanged: it measures, finds the model's statistics, and ends well.

Not collected where the tool is not there: see conftest.py.
"""

import csv
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.perf_analyzer import command
from tests.server.models import put_simple
from tests.server.serving import Serving

_LIMIT_S = 90.0


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("perf")
    repository = home / "models"
    repository.mkdir()
    put_simple(repository)
    server = Serving(repository, home, allow_client_shm=True)
    yield server
    server.stop()


@pytest.mark.parametrize(
    "flags",
    [
        ["--sync", "--concurrency-range", "2"],
        ["--async", "--concurrency-range", "4"],
        ["--streaming", "--async", "--concurrency-range", "4"],
        ["-b", "4", "--concurrency-range", "2"],
        ["--request-rate-range", "100"],
        ["--shared-memory", "system", "--concurrency-range", "2"],
        ["--shared-memory", "system", "--async", "-b", "4", "--concurrency-range", "2"],
        ["-x", "1", "--concurrency-range", "1"],
        ["--collect-metrics", "--metrics-interval", "200", "--concurrency-range", "1"],
    ],
    ids=" ".join,
)
def test_it_measures(serving: Serving, tmp_path: Path, flags: list[str]) -> None:
    found = command()
    assert found is not None
    start, environment = found
    report = tmp_path / "report.csv"
    arguments = ["-m", "simple", "-u", serving.grpc_address, "-i", "grpc", "--measurement-mode", "count_windows"]
    arguments += ["--measurement-request-count", "40", "--max-trials", "3", "--stability-percentage", "999", "-f", str(report)]
    if "--collect-metrics" in flags:
        arguments += ["--metrics-url", f"{serving.http_address}/metrics"]
    done = subprocess.run(
        [*start, *arguments, *flags], env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    # measured by the server, not only by the client: it has found the statistics of the version that answered
    assert float(row["Server Compute Infer"]) > 0
