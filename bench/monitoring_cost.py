"""What monitoring costs those who are served: the sample of one batch; rate and p99 with it and without; and a sink that hangs.

    python -m bench monitoring_cost [--only PART ...] [--stall-s S]

Three servers of the same model and baseline on one core, idle but for the one whose turn it is, differ in `[monitoring]` alone:
off, 1 % of the requests, all of them. Every answer is verified.
"""

import argparse
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.features_read import valkey
from bench.models import TRIVIAL, write_mlp
from bench.native_client import executable, load, write_expected
from bench.native_plane import gate
from bench.native_plane_servers import Serving, turn
from bench.processes import podium
from bench.record import machine, write
from server.__main__ import main as command
from server.core.hashing import id_hash
from server.core.monitoring_settings import ModelMonitoring
from server.core.versions import VersionKey
from server.monitoring.lane import Lane
from server.monitoring.picked import Served
from server.monitoring.sampler import Plan, Sampler

BATCH, FEATURES, BATCHES = 256, 100, 12_800
_BLOCK = 64
SAMPLE_US = 10.0
PAIRS, SECONDS, BASELINE_ROWS = 7, 4, 40_000
OFF, ONE, ALL = "off", "one_percent", "everything"
RATES = {OFF: 0.0, ONE: 0.01, ALL: 1.0}
LEAST = {ONE: 0.99, ALL: 0.95}
STALL_RATE, STALL_S = 5_000, 60.0
_TOLERANCE = 1e-5


class _Nowhere:
    """A sink that costs nothing: what is measured is the way to it."""

    name = "nowhere"

    def write(self, samples: Any) -> None:
        """Taken."""

    def lost(self, key: VersionKey, arm: str, rows: int, time_us: int) -> None:
        """Heard."""

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to close."""


def sample(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Sampling and enqueueing one batch of 256, on the thread that executes, beside the plain numpy way to choose and copy."""
    rng = np.random.default_rng(1)
    packed = {"x": rng.normal(size=(BATCH, FEATURES)).astype(np.float32)}
    apart = {f"x{index}": rng.normal(size=(BATCH, 1)).astype(np.float32) for index in range(20)}
    rows = []
    for name, inputs, rate in (("packed", packed, 0.01), ("20 inputs", apart, 0.01), ("packed", packed, 1.0)):
        took_us, plain_us = _sampled(rng, inputs, rate)
        row: dict[str, Any] = {"part": "sample", "inputs": name, "rate": rate, "batch": BATCH}
        row |= {"us_per_batch": took_us, "numpy_us_per_batch": plain_us, "ratio": took_us / plain_us}
        if (name, rate) == ("packed", 0.01):
            row["gates"] = [gate("sampling a batch of 256, us", took_us, most=SAMPLE_US)]
        rows.append(row)
    return rows


def _sampled(rng: np.random.Generator, inputs: dict[str, Any], rate: float) -> tuple[float, float]:
    """In turns: ours, and a random mask with a copy of what it chooses."""
    lane = Lane(_Nowhere(), 10**9, 10**12)
    sampler, key = Sampler(5, [lane]), VersionKey("m", 1)
    settings = ModelMonitoring(rate=rate, floor_rows=0, max_rows_per_s=10**9)
    row_bytes = sum(array[0].nbytes for array in inputs.values()) + 4
    sampler.follow({key: Plan("champion", 0, 1.0, settings, row_bytes=row_bytes)})
    ids = np.array([id_hash(f"request-{index}") for index in range(BATCH * 64)], np.uint64).reshape(64, BATCH)
    outputs: dict[str, Any] = {"y": rng.normal(size=(BATCH, 1)).astype(np.float32)}
    spans, arrival_ns, answered = np.arange(BATCH + 1), np.arange(BATCH) + 10**15, np.ones(BATCH, np.bool_)
    ours, plain = [], []
    for index in range(BATCHES):
        begun = time.perf_counter_ns()
        sampler.offer(
            key, Served(spans, ids[index % 64], arrival_ns, answered, inputs, {}, outputs, None, 10**15 + 10**6, 10**6, BATCH)
        )
        between = time.perf_counter_ns()
        chosen = rng.random(BATCH) < rate
        kept = [array[chosen] for array in (*inputs.values(), *outputs.values())]
        plain.append(time.perf_counter_ns() - between)
        ours.append(between - begun)
        del kept
    sampler.close()
    return _typical_us(ours), _typical_us(plain)


def _typical_us(took_ns: list[int]) -> float:
    """The mean of a batch, where it is typical: some batches are held, and the next pays for them."""
    blocks = [took_ns[first : first + _BLOCK] for first in range(0, len(took_ns) - _BLOCK + 1, _BLOCK)]
    return statistics.median(statistics.mean(block) for block in blocks) / 1000


def _repository(folder: Path, rate: float) -> Path:
    """The network with a baseline of rows like those that the client sends, sampled at a rate; 0: not at all."""
    repository, model = folder / "models", folder / "model.onnx"
    write_mlp(model, TRIVIAL, seed=7)
    rows = np.random.default_rng(5).uniform(-1, 1, (BASELINE_ROWS, TRIVIAL[0])).astype(np.float32)
    np.savez(folder / "rows.npz", IN=rows)
    settings = f"rate = {rate}\nfloor_rows = 0\nmax_rows_per_s = 10000000\nwindow_s = 60" if rate else "enabled = false"
    (folder / "model.toml").write_text(f"[monitoring]\n{settings}\n")
    repository.mkdir()
    words = ["register", "--repository", str(repository), "--name", "mlp", "--model", str(model)]
    words += ["--settings", str(folder / "model.toml"), "--baseline-rows", str(folder / "rows.npz")]
    if command(words):
        raise RuntimeError("the model could not be registered")
    return repository


@contextmanager
def _server(folder: Path, rate: float, monitoring: str) -> Iterator[tuple[Serving, str]]:
    """A server of the network, with its HTTP address."""
    folder.mkdir()
    repository = _repository(folder, rate)
    (folder / "server.toml").write_text(f"[monitoring]\n{monitoring}\n")
    write_expected(folder / "expected", folder / "model.onnx", TRIVIAL[0])
    payload = {"mlp": ("--expected", folder / "expected", "--tolerance", _TOLERANCE)}
    with podium(repository, folder, "--config", str(folder / "server.toml")) as (address, http, process):
        yield Serving(address, process, payload), http


def serving(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A closed loop of 64, then Poisson arrivals at half of what the server without monitoring does."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        found = {
            each: stack.enter_context(_server(Path(name) / each, rate, 'sink = "process"'))[0] for each, rate in RATES.items()
        }
        closed = ("--connections", 4, "--streams", 16, "--seconds", SECONDS)
        rates = {each: [] for each in RATES}  # type: dict[str, list[Any]]
        for _ in range(PAIRS):
            for each in RATES:
                rates[each].append(turn(found[each], "mlp", *closed))
        half = statistics.median(run.rate for run in rates[OFF]) / 2
        opened = ("--connections", 4, "--streams", 1000, "--seconds", SECONDS, "--rate", half)
        late = {each: [] for each in RATES}  # type: dict[str, list[Any]]
        for _ in range(PAIRS):
            for each in RATES:
                late[each].append(turn(found[each], "mlp", *opened))
    row: dict[str, Any] = {"part": "serving", "open_loop_rate": half, "servers": {}, "compared": {}, "gates": []}
    for each in RATES:
        row["servers"][each] = {
            "rate": statistics.median(run.rate for run in rates[each]),
            "cpu_us": statistics.median(run.cpu_us for run in rates[each]),
            "p50_us": statistics.median(run.p50_us for run in late[each]),
            "p99_us": statistics.median(run.p99_us for run in late[each]),
        }
    for each, least in LEAST.items():
        rate_ratios = [one.rate / off.rate for one, off in zip(rates[each], rates[OFF], strict=True)]
        p99_ratios = [one.p99_us / off.p99_us for one, off in zip(late[each], late[OFF], strict=True)]
        row["compared"][each] = {
            "rate_ratio": statistics.median(rate_ratios),
            "rate_ratio_min_max": [min(rate_ratios), max(rate_ratios)],
            "p99_ratio": statistics.median(p99_ratios),
            "p99_ratio_min_max": [min(p99_ratios), max(p99_ratios)],
        }
        row["gates"] += [
            gate(f"rate, {each} over off", row["compared"][each]["rate_ratio"], least=least),
            gate(f"p99, {each} over off", row["compared"][each]["p99_ratio"], most=2 - least),
        ]
    return [row]


def stalled(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All requests sampled into a Redis stream; its server is frozen, and goes on. Latency before, meanwhile and afterwards,
    and every row accounted for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with valkey(folder) as (address, client):
            pid = int(client.info("server")["process_id"])
            monitoring = f'sink = "redis"\nredis = "redis://{address}"\nbuffer_rows = 50000'
            with _server(folder / "server", 1.0, monitoring) as (server, http):
                before = _offered(server, arguments.stall_s / 3)
                os.kill(pid, signal.SIGSTOP)
                try:
                    during = _offered(server, arguments.stall_s)
                finally:
                    os.kill(pid, signal.SIGCONT)
                after = _offered(server, arguments.stall_s / 3)
                counted = _settled(http)
    ratio = during["p99_us"] / min(before["p99_us"], after["p99_us"])
    asked = before["requests"] + during["requests"] + after["requests"]
    unaccounted = counted["offered"] - counted["written"] - counted["dropped"]
    row: dict[str, Any] = {"part": "stalled", "stall_s": arguments.stall_s, "rate": STALL_RATE, "requests": asked}
    row |= {"before": before, "during": during, "after": after, **counted, "p99_ratio": ratio}
    row["gates"] = [
        gate("p99 while the sink hangs, over without", ratio, most=1.05),
        gate("rows that are neither written nor counted as dropped", abs(unaccounted), most=0),
        gate("answers that no sample was chosen from", abs(counted["offered"] - asked), most=0),
        gate("dropped rows", counted["dropped"], least=1),
    ]
    return [row]


def _offered(server: Serving, seconds: float) -> dict[str, float]:
    """An open loop; every request answered."""
    options = ("--connections", 4, "--streams", 1000, "--seconds", seconds, "--rate", STALL_RATE)
    report = load(server.address, "mlp", *server.payload["mlp"], *options)
    if report["right"] != report["requests"]:
        raise RuntimeError(f"not every answer was right: {report}")
    return {"requests": report["requests"], "p50_us": report["latency_us"]["p50"], "p99_us": report["latency_us"]["p99"]}


def _settled(http: str) -> dict[str, int]:
    """The counters, once nothing waits any more and nothing has changed for two seconds: a few rows are held for a moment."""
    end, before = time.monotonic() + 60, {"offered": -1}
    while True:
        with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as page:
            text = page.read().decode()
        counted = {
            "offered": _total(text, "podium_sampled_rows_total"),
            "written": _total(text, "podium_sample_written_total"),
            "dropped": _total(text, "podium_sample_dropped_total"),
        }
        if (counted == before and not _total(text, "podium_sample_waiting_rows")) or time.monotonic() > end:
            return counted
        before = counted
        time.sleep(2)


def _total(text: str, family: str) -> int:
    return int(sum(float(value) for value in re.findall(rf"^{family}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)))


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "sample": sample,
    "serving": serving,
    "stalled": stalled,
}


def main(words: list[str] | None = None) -> int:
    """Run and print; 1 if a required number was missed. Everything at once is written to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.monitoring_cost")
    parser.add_argument("--only", nargs="+", default=[], choices=PARTS, help="these parts; the result is not written")
    parser.add_argument("--stall-s", type=float, default=STALL_S, help="how long the sink hangs")
    arguments = parser.parse_args([] if words is None else words)
    facts = machine()
    executable()
    rows = []
    for part in arguments.only or PARTS:
        for row in PARTS[part](arguments):
            rows.append(row)
            print({key: value for key, value in row.items() if key != "gates"})
            for each in row.get("gates", []):
                bound = f">= {each['least']:g}" if each["least"] is not None else f"<= {each['most']:g}"
                print(f"    {each['name']}: {each['value']:,.3f} (required {bound}) {'ok' if each['met'] else 'MISSED'}")
    if not arguments.only:
        print(write("monitoring_cost", {"machine": facts, "rows": rows}))
    return int(any(not each["met"] for row in rows for each in row.get("gates", [])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
