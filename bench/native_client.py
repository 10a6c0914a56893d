"""`podium_client`, the load client that verifies every answer: built where it is not yet, run pinned, read back.

It is C++ beside the native data plane, and knows any server of the Open Inference Protocol. Unlike h2load it compares what
comes back with what must come back; unlike a Python client it is faster than what it measures.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench.processes import CLIENT_CORE

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "server" / "dataplane" / "native" / "client"
BUILD = ROOT / "build" / "client"
TOLERANCE = 1e-5
"""Absolute. A batch of another size multiplies in another order; seen are differences up to 1e-6."""
ROWS = 1024


def executable() -> Path:
    """The client, brought up to date. Raises: subprocess.CalledProcessError without CMake, a C++17 compiler or nghttp2."""
    release = ["-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    for command in (["cmake", "-S", str(SOURCE), "-B", str(BUILD), *release], ["cmake", "--build", str(BUILD), "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"podium_client could not be built: {done.stdout}{done.stderr}")
    return BUILD / "podium_client"


def load(target: str, model: str, *options: str | float | Path, patience_s: float = 60.0) -> dict[str, Any]:
    """One run on the client's core. `patience_s`: how long it may take beyond its own --seconds before it counts as hanging.

    Raises: RuntimeError when the run did not take place.
    """
    command = [str(BUILD / "podium_client"), "--target", target, "--model", model, *map(str, options)]
    seconds = float(str(options[options.index("--seconds") + 1])) if "--seconds" in options else 0.0
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + patience_s,
        preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


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
