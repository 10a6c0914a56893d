"""`podium_client`, the load client that verifies every answer: built where it is not yet, run pinned, read back.

It is C++ beside the native data plane, and knows any server of the Open Inference Protocol. Unlike h2load it compares what
comes back with what must come back; unlike a Python client it is faster than what it measures.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench.processes import CLIENT_CORE
from protos import grpc_service_pb2 as pb

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "server" / "dataplane" / "native" / "client"
BUILD = ROOT / "build" / "client"
TOLERANCE = 1e-5
"""Absolute. A batch of another size multiplies in another order; seen are differences up to 1e-6."""
ROWS = 1024


def executable() -> Path:
    """The client, brought up to date with its sources; its check lies beside it. It takes a compiler, but no build system.

    Raises: RuntimeError without a C++17 compiler or nghttp2's headers.
    """
    client, check = BUILD / "podium_client", BUILD / "podium_client_check"
    sources = [*SOURCE.rglob("*.cc"), *SOURCE.rglob("*.h"), SOURCE.parent / "src" / "clock.h"]
    newest = max(path.stat().st_mtime_ns for path in sources)
    if check.exists() and client.exists() and min(check.stat().st_mtime_ns, client.stat().st_mtime_ns) > newest:
        return client
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    common = sorted(path.stem for path in SOURCE.glob("*.cc") if path.stem != "main")
    flags = ["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", f"-I{SOURCE}", f"-I{SOURCE.parent / 'src'}"]
    _run([*compiler, *flags, "-c", *(str(path) for path in sorted(SOURCE.rglob("*.cc")))])
    for made, own in ((client, "main"), (check, "check")):
        _run([*compiler, "-o", str(made), *(f"{name}.o" for name in [own, *common]), "-lnghttp2"])
    return client


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BUILD)
    if done.returncode:
        raise RuntimeError(f"podium_client could not be built: {done.stderr}")


def command(target: str, model: str, *options: str | float | Path) -> list[str]:
    """One run, to be started by whoever asks."""
    return [str(BUILD / "podium_client"), "--target", target, "--model", model, *map(str, options)]


def limit_s(options: Sequence[str | float | Path], patience_s: float) -> float:
    """How long a run may take: `patience_s` beyond its own time."""
    own = [float(str(options[options.index(name) + 1])) for name in ("--seconds", "--settle-s") if name in options]
    return sum(own) + patience_s


def load(target: str, model: str, *options: str | float | Path, patience_s: float = 60.0) -> dict[str, Any]:
    """One run on the client's core. `patience_s`: how long it may take beyond its own time before it counts as hanging.

    Raises: RuntimeError when the run did not take place.
    """
    done = subprocess.run(
        command(target, model, *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s(options, patience_s),
        preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def write_bodies(path: Path, bodies: Sequence[tuple[pb.ModelInferRequest, bytes]]) -> None:
    """Messages and the raw contents of their answers, in the form that `--bodies` reads: for any model, of any inputs.

    A message brings no name, version, id or parameters: the client writes these. An empty answer is not known.
    """
    parts = [b"PDBY", np.array([len(bodies)], "<u4").tobytes()]
    for message, answer in bodies:
        body = message.SerializeToString()
        parts += [np.array([len(body), len(answer)], "<u4").tobytes(), body, answer]
    path.write_bytes(b"".join(parts))


def write_expected(path: Path, model: Path, width: int) -> None:
    """Rows and what ONNX Runtime alone answers to each, one at a time, in the form that `--expected` reads.

    Rows are chosen so that any two answers differ by ten tolerances: an answer to another row is never within the tolerance.
    """
    rng = np.random.default_rng(11)
    inputs = rng.uniform(-1, 1, (8 * ROWS, width)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(["OUT"], {"IN": row[None]})[0] for row in inputs])
    order = np.argsort(outputs[:, 0])
    kept = [int(order[0])]
    for index in order[1:].tolist():
        if outputs[index, 0] - outputs[kept[-1], 0] > 10 * TOLERANCE:
            kept.append(index)
    if len(kept) < ROWS:
        raise RuntimeError(f"only {len(kept)} answers are far enough apart")
    chosen = rng.permutation(np.array(kept))[:ROWS]
    head = b"PDEX" + np.array([ROWS, width, outputs.shape[1]], "<u4").tobytes()
    path.write_bytes(head + inputs[chosen].tobytes() + outputs[chosen].tobytes())
