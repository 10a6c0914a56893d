"""Closed-loop load by h2load (Debian package `nghttp2-client`): a C client that is far faster than what it measures.

A closed loop says what a server can do, not what latency users see at a given rate: that needs an open loop (see overload.py).
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.processes import CLIENT_CORE
from protos import grpc_service_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Run:
    """Units: requests per second; milliseconds over the run's requests."""

    rate: float
    p50_ms: float
    p99_ms: float


def request(model: str, width: int) -> bytes:
    """One serialized ModelInfer of one row."""
    message = pb.ModelInferRequest(model_name=model, id="1")
    message.inputs.add(name="IN", datatype="FP32", shape=[1, width])
    message.raw_input_contents.append(np.linspace(-1, 1, width, dtype=np.float32).tobytes())
    return message.SerializeToString()


def drive(address: str, body: bytes, in_flight: int, seconds: int, folder: Path) -> Run:
    """Keep `in_flight` requests open for `seconds`. Raises: RuntimeError without h2load, or when an answer was not good."""
    if shutil.which("h2load") is None:
        raise RuntimeError("this benchmark needs h2load (Debian package nghttp2-client)")
    framed, log = folder / "body", folder / "h2load.log"
    framed.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    log.unlink(missing_ok=True)
    connections = 4 if in_flight >= 4 else 1
    command = ["h2load", "-c", str(connections), "-m", str(in_flight // connections), "-D", str(seconds), "--warm-up-time", "1"]
    command += ["-d", str(framed), "-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}"]
    done = subprocess.run(
        [*command, f"http://{address}{METHOD}"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {CLIENT_CORE}),
    )
    rate = re.search(r"finished in [\d.]+s, ([\d.]+) req/s", done.stdout)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
    data = re.search(r"\((\d+)\) data", done.stdout)
    if rate is None or counts is None or data is None:
        raise RuntimeError(f"h2load said something unexpected: {done.stdout}")
    succeeded, *bad = map(int, counts.groups())
    if not succeeded or any(bad):
        raise RuntimeError(f"{sum(bad)} of the requests failed: {done.stdout}")
    # a gRPC error is HTTP 200 with an empty body: answers without data would count as fast successes
    if int(data.group(1)) < succeeded * 20:
        raise RuntimeError("answers came without data: the server refused them")
    took_us = np.array([int(line.split("\t")[2]) for line in log.read_text().splitlines()], dtype=np.int64)
    p50, p99 = np.percentile(took_us, [50, 99])
    return Run(float(rate.group(1)), float(p50) / 1000, float(p99) / 1000)
