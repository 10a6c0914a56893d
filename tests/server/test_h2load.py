"""nghttp2's load generator, which counts every stream: all are answered. Not collected where there is no h2load."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.server.frames import INFER, message
from tests.server.serving import Serving
from tests.server.targets import question

CALLS = 2000


@pytest.mark.parametrize(("connections", "streams"), [(1, 1), (1, 100), (20, 10)])
def test_no_call_is_lost(serving: Serving, tmp_path: Path, connections: int, streams: int) -> None:
    body = tmp_path / "body"
    body.write_bytes(message(question(1).SerializeToString()))
    command = ["h2load", "-n", str(CALLS), "-c", str(connections), "-m", str(streams), "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{serving.grpc_address}{INFER}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r"requests: (\d+) total.* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    assert found is not None, done.stdout
    assert found.groups() == (str(CALLS), str(CALLS), str(CALLS), "0", "0")
    assert f"status codes: {CALLS} 2xx" in done.stdout
