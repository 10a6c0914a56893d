import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import grpc_js, perf_analyzer
from tests.onnx_types import ONNX_TYPES
from tests.server.models import put_fake, put_identity, put_others, put_simple
from tests.server.serving import Serving

# tools that cannot be had everywhere; `make test` tries to fetch those that it can, and says so where it could not
tools = {
    "test_perf_analyzer.py": perf_analyzer.command(),
    "test_grpc_js.py": grpc_js.command(),
    "test_curl.py": shutil.which("curl"),
    "test_h2load.py": shutil.which("h2load"),
}
collect_ignore = [file for file, tool in tools.items() if not tool]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model that the shared servers have. Nobody changes it."""
    repository = tmp_path_factory.mktemp("models") / "repository"
    repository.mkdir()
    for datatype in ONNX_TYPES:
        put_identity(repository, datatype)
    put_simple(repository)
    put_simple(repository, "counted")
    put_others(repository)
    put_fake(repository, "echo", 1000.0, max_batch=16)
    put_fake(repository, "slow", 1_000_000.0, queue="early_drop = false")
    put_fake(repository, "choosy", 600_000.0)
    put_fake(repository, "narrow", 300_000.0, queue="max_requests = 2")
    put_fake(repository, "ranked", 50_000.0, queue="priority_levels = 3\ndefault_priority = 2\nearly_drop = false")
    put_fake(repository, "hasty", 300_000.0, queue="default_timeout_us = 100000\nearly_drop = false")
    strict = "default_timeout_us = 100000\nallow_timeout_override = false\nearly_drop = false"
    put_fake(repository, "strict", 300_000.0, queue=strict)
    return repository


@pytest.fixture(scope="session")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    """The server that most tests talk to, over TCP."""
    server = Serving(repository, tmp_path_factory.mktemp("serving"), data_plane=plane, max_message_bytes=4_000_000)
    try:
        yield server
    finally:
        # gRPC's own words about a header that a test sends on purpose
        server.stop(errors=("Error parsing 'grpc-encoding' metadata",))


@pytest.fixture(scope="session")
def unix_serving(repository: Path, tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    """The same on a unix socket."""
    home = tmp_path_factory.mktemp("unix")
    server = Serving(repository, home, data_plane=plane, grpc_address=f"unix:{home}/podium.sock")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["tcp", "unix"])
def door(request: pytest.FixtureRequest, plane: str) -> Serving:
    """Each way in, one after the other. `plane` is here because pytest must know of it before it asks for either."""
    chosen: Serving = request.getfixturevalue("serving" if request.param == "tcp" else "unix_serving")
    return chosen
