"""NVIDIA's perf_analyzer against a real server, unchanged: it measures, finds the model's statistics, and ends well.

Not collected where the tool is not there: see conftest.py.
"""

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.programs import small
from tests.perf_analyzer import command
from tests.server.certificates import Authority
from tests.server.models import QUICK, put, put_identity, put_simple
from tests.server.serving import Serving, until
from tests.server.streaming import put_repeat
from tests.server.test_tracing import heads

_LIMIT_S = 90.0


def put_models(repository: Path) -> None:
    repository.mkdir()
    put_simple(repository)
    put_identity(repository, "BYTES")
    put_repeat(repository, "repeat")
    put(repository, "program", 1, {"program.pt2": small()}, "max_batch = 8\n" + QUICK)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Path:
    return tmp_path_factory.mktemp(f"traces-{plane}") / "traces.json"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, traces: Path, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("perf")
    put_models(home / "models")
    server = Serving(home / "models", home, data_plane=plane, allow_client_shm=True, trace={"file": str(traces)})
    try:
        yield server
    finally:
        server.stop()


def measure(server: Serving, folder: Path, *flags: str, model: str = "simple", address: str = "") -> dict[str, str]:
    """One row of its report, after a run that ended well."""
    found = command()
    assert found is not None
    start, environment = found
    report = folder / "report.csv"
    arguments = ["-m", model, "-u", address or server.grpc_address, "-i", "grpc", "--measurement-mode", "count_windows"]
    arguments += ["--measurement-request-count", "40", "--max-trials", "3", "--stability-percentage", "999", "-f", str(report)]
    done = subprocess.run(
        [*start, *arguments, *flags], env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    # measured by the server, not only by the client: it has found the statistics of the version that answered
    assert float(row["Server Compute Infer"]) > 0
    return row


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
        ["--input-data", "random", "--concurrency-range", "2"],
    ],
    ids=" ".join,
)
def test_it_measures(serving: Serving, tmp_path: Path, flags: list[str]) -> None:
    measure(serving, tmp_path, *flags)


def test_it_reads_the_metrics(serving: Serving, tmp_path: Path) -> None:
    url = f"{serving.http_address}/metrics"
    measure(serving, tmp_path, "--collect-metrics", "--metrics-interval", "200", "--metrics-url", url)


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("program", ["-b", "2", "--shape", "codes:1", "--input-data", "zero"]),
        ("identity_bytes", ["--shape", "IN:2", "--string-data", "zwölf"]),
        ("identity_bytes", ["--shape", "IN:3", "--string-length", "300", "--shared-memory", "system"]),
    ],
    ids=["torch program", "strings", "long strings in shared memory"],
)
def test_other_models(serving: Serving, tmp_path: Path, model: str, flags: list[str]) -> None:
    if "--shared-memory" in flags:
        flags = [*flags, "--output-shared-memory-size", "4096"]
    measure(serving, tmp_path, *flags, model=model)


@pytest.mark.parametrize("answers", [1, 3])
def test_answers_of_a_decoupled_model(serving: Serving, tmp_path: Path, answers: int) -> None:
    """Each request has several: it waits for the one that is marked as the last."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"IN": [answers]}]}))
    row = measure(serving, tmp_path, "--streaming", "--async", "--input-data", str(data), model="repeat")
    assert float(row["Response Throughput"]) == pytest.approx(answers * float(row["Inferences/Second"]), rel=0.01)


def test_it_has_its_requests_traced(serving: Serving, tmp_path: Path, traces: Path) -> None:
    flags = ["--trace-level", "TIMESTAMPS", "--trace-rate", "10", "--trace-count", "3", "--log-frequency", "1"]
    measure(serving, tmp_path, *flags)
    # with a frequency it is several files
    written = until(lambda: [head for file in traces.parent.iterdir() for head in heads(file)], "traces are written")
    # its count is for each of its windows
    assert len(written) >= 3
    assert {head["model_name"] for head in written} == {"simple"}


def test_through_a_unix_socket(tmp_path: Path, plane: str) -> None:
    put_models(tmp_path / "models")
    server = Serving(tmp_path / "models", tmp_path, data_plane=plane, grpc_address=f"unix:{tmp_path}/podium.sock")
    try:
        measure(server, tmp_path, "--concurrency-range", "2")
    finally:
        server.stop()


def test_encrypted(tmp_path: Path, plane: str) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "localhost", "127.0.0.1")
    put_models(tmp_path / "models")
    server = Serving(tmp_path / "models", tmp_path, data_plane=plane, tls={"cert_file": str(cert), "key_file": str(key)})
    try:
        flags = ["--ssl-grpc-use-ssl", "--ssl-grpc-root-certifications-file", str(authority.root)]
        measure(server, tmp_path, *flags)
    finally:
        server.stop()
