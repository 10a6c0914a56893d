"""The lines of Dockerfile.gpu, run without Docker (`dockerfile.py`): a server from a read-only tree, that drains."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.dockerfile import ROOT, Scratch, stages, words_of
from tests.server.models import put_fake, put_simple
from tests.server.serving import UNLIMITED, infer_message, until

BUILD, FINAL = stages((ROOT / "Dockerfile.gpu").read_text("utf-8"))
pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]


def health() -> list[str]:
    (check,) = FINAL.all("HEALTHCHECK")
    return words_of(check.partition(" CMD ")[2])


@pytest.fixture(scope="module")
def scratch() -> Iterator[Scratch]:
    """Both stages, without what only a GPU needs. In a folder that others may enter: the server is somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="podium-image-"))
    folder.chmod(0o755)
    made = Scratch(folder, {"EXTRAS": "cpu"})
    try:
        for stage in (BUILD, FINAL):
            made.run(stage)
        print(*made.took_s, sep="\n")
        yield made
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
        shutil.rmtree(folder)


def somebody_else() -> tuple[list[str], dict[str, Any]]:
    """Who a read-only tree is read-only for: the image's user where the interpreter may be reached by others, else root
    without its capabilities, or whoever runs the tests.
    """
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if os.geteuid() != 0:
        return [], {}
    if all(folder.stat().st_mode & 0o001 for folder in python.parents):
        user, group = map(int, FINAL.all("USER")[0].split(":"))
        return [], {"user": user, "group": group, "extra_groups": []}
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"], {}


def of_image(scratch: Scratch, command: list[str], **options: Any) -> "subprocess.Popen[str]":
    """A command of the image, as it would be started there."""
    before, who = somebody_else()
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **scratch.environment}
    return subprocess.Popen([*before, *command], env=environment, cwd=scratch.root / "srv", text=True, **who, **options)


def asked(scratch: Scratch, address: str) -> int:
    """HEALTHCHECK's own command, asked of the port that this server has."""
    command = [*map(scratch.mapped, health()), f"http://{address}/readyz"]
    with of_image(scratch, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as check:
        return check.wait(60)


def files_of(folder: Path, but: Path) -> list[tuple[str, int]]:
    """All files of a tree with the times of their last change, without those of one folder in it."""
    there = (path for path in folder.rglob("*") if path != but and but not in path.parents)
    return sorted((str(path), path.lstat().st_mtime_ns) for path in there)


def log_of(path: Path) -> list[dict[str, Any]]:
    """Its lines so far; what is no JSON is an error of its own."""
    found: list[dict[str, Any]] = []
    for line in path.read_text("utf-8").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
            continue
        found.append({"level": "error", "event": line})
    return found


def test_what_the_stages_make_serves_from_a_read_only_tree_and_drains(scratch: Scratch, tmp_path: Path) -> None:
    models = scratch.root / "srv" / "models"
    models.mkdir()
    put_fake(models, "echo", 1000.0, max_batch=4)
    put_simple(models)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(scratch.root)], check=True)
    cache = Path(scratch.environment["XDG_CACHE_HOME"])
    cache.chmod(0o777)
    before = files_of(scratch.root, cache)
    (entry,), (arguments,) = FINAL.all("ENTRYPOINT"), FINAL.all("CMD")
    # as the image is started, but for ports that may be taken here
    local = [re.sub(r"^0\.0\.0\.0:\d+$", "127.0.0.1:0", word) for word in words_of(arguments)]
    command = [*map(scratch.mapped, words_of(entry)), *local, "--drain-delay-s", "0"]
    log = tmp_path / "log"
    with log.open("w") as out, of_image(scratch, command, stdout=out, stderr=out) as server:
        try:

            def said(event: str) -> dict[str, Any] | None:
                assert server.poll() is None, log.read_text()
                return next((line for line in log_of(log) if line["event"] == event), None)

            http = until(lambda: said("http side port is listening"), "the side port")
            address = f"127.0.0.1:{http['port']}"
            until(lambda: asked(scratch, address) == 0, f"the check is content: {log.read_text()}")
            assert said("data plane") == said("data plane") | {"plane": "native"}  # type: ignore[operator]
            with grpc.insecure_channel(str(until(lambda: said("serving"), "the door")["grpc"]), UNLIMITED) as channel:
                stub = GRPCInferenceServiceStub(channel)
                row = np.arange(4, dtype=np.float32)
                answer = stub.ModelInfer(infer_message("echo", {"x": ("FP32", [1, 4], row.tobytes())}), timeout=60)
                assert answer.raw_output_contents[0] == row.tobytes()
                one = np.full((1, 16), 2, np.int32)
                inputs = {name: ("INT32", [1, 16], one.tobytes()) for name in ("INPUT0", "INPUT1")}
                answer = stub.ModelInfer(infer_message("simple", inputs), timeout=60)
                assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == [4] * 16
                assert stub.ServerReady(pb.ServerReadyRequest()).ready
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as response:
                assert b"podium_" in response.read()
            server.send_signal(getattr(signal, FINAL.all("STOPSIGNAL")[0]))
            assert server.wait(60) == 0, log.read_text()
        finally:
            if server.poll() is None:
                server.kill()
    assert [line for line in log_of(log) if line["level"] in ("warning", "error")] == []
    assert asked(scratch, address) == 1
    # nothing was written, and nothing could have been
    assert files_of(scratch.root, cache) == before
    write = ["/bin/sh", "-c", f"! touch {scratch.root}/srv/podium/x 2>/dev/null && touch {cache}/x"]
    with of_image(scratch, write) as wrote:
        assert wrote.wait(60) == 0


def test_every_package_that_is_asked_for_is_there(scratch: Scratch) -> None:
    asked_for = scratch.packages()
    assert {"python3-venv", "python3", "g++", "libnghttp2-14"} <= asked_for
    known = subprocess.run(["apt-cache", "policy", *sorted(asked_for)], capture_output=True, text=True, check=True).stdout
    candidates = dict(re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (.*)$", known, re.MULTILINE))
    # names of Ubuntu's that Debian has too; one that is provided by another has no candidate of its own
    assert {name for name in asked_for if candidates.get(name, "(none)") == "(none)"} == set()
