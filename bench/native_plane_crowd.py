"""Long and wide loads on one server: millions of verified answers, 10,000 connections at once, connections that come and go."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil

from bench.native_plane_servers import Serving, asked

CROWD, CROWD_RATE_PER_S, CROWD_S = 10_000, 1_000, 20
COUNTS = ("requests", "right", "wrong", "wrong_by", "failed", "errors", "unanswered", "inexact", "largest_error")
_SAMPLE_S = 0.5


@contextmanager
def memory_of(process: psutil.Process) -> Iterator[list[float]]:
    """Samples of the process's resident memory, in MB, while the block runs: twice a second."""
    samples: list[float] = [process.memory_info().rss / 2**20]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            samples.append(process.memory_info().rss / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        done.set()
        watcher.join()


def verified(server: Serving, requests: int) -> dict[str, Any]:
    """`requests` calls of the small network, each answer compared with what ONNX Runtime alone says."""
    options = ("--connections", 8, "--streams", 32, "--requests", requests, "--seconds", 36_000)
    report = asked(server, "mlp", *options)
    return {"part": "verify", "rate": report["rate"], "seconds": report["seconds"], **{key: report[key] for key in COUNTS}}


def crowd(server: Serving) -> dict[str, Any]:
    """Connections that are all held, each with a request now and then."""
    options = ("--connections", CROWD, "--streams", 1, "--rate", CROWD_RATE_PER_S, "--seconds", CROWD_S)
    with memory_of(server.process) as samples:
        # connecting so many takes a slow server a while
        report = asked(server, "identity", *options, "--stall-s", 60, patience_s=300)
    largest = max(samples)
    return {
        "part": "connections",
        "held": CROWD,
        "connects": report["connects"],
        "lost_connections": report["lost_connections"],
        "p50_us": report["latency_us"]["p50"],
        "p99_us": report["latency_us"]["p99"],
        "rss_before_mb": samples[0],
        "rss_largest_mb": largest,
        "kb_per_connection": (largest - samples[0]) * 1024 / CROWD,
        **{key: report[key] for key in COUNTS},
    }


def churn(server: Serving, minutes: float) -> dict[str, Any]:
    """Connect, ask once, disconnect, on eight connections at a time. Memory of the last quarter is compared with the second."""
    options = ("--connections", 8, "--requests-per-connection", 1)
    asked(server, "identity", *options, "--seconds", 2)
    began = time.monotonic()
    with memory_of(server.process) as samples:
        report = asked(server, "identity", *options, "--seconds", minutes * 60)
    took_min = (time.monotonic() - began) / 60
    half = np.array(samples[len(samples) // 2 :])
    at_min = np.linspace(took_min / 2, took_min, len(half))
    quarter = len(samples) // 4
    second, last = (float(np.median(part)) for part in (samples[quarter : 2 * quarter + 1], samples[-quarter - 1 :]))
    return {
        "part": "connections",
        "minutes": took_min,
        "connects": report["connects"],
        "connects_per_s": report["connects"] / report["seconds"],
        "rss_first_mb": samples[0],
        "rss_last_mb": samples[-1],
        "rss_slope_mb_per_min": float(np.polyfit(at_min, half, 1)[0]) if len(half) > 1 else 0.0,
        "rss_growth_ratio": last / second - 1,
        **{key: report[key] for key in COUNTS},
    }
