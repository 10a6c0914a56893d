"""One measure of one model on a server that runs already, as a process of its own: what fails costs one row of the matrix.

    python -m bench.gpu.measures --job FILE

The job is written by `bench.gpu.matrix`. Prints one JSON line: the ratio, and every report that it was made of.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bench.gpu.catalogue import ModelPlan
from bench.gpu.ideal_queue import Tau, ideal_p99_s
from bench.gpu.ratios import OVERLOAD, TAIL_LOAD, Probe, highest_load, merged, passes, ratio
from bench.native_client import command, limit_s

_SETTLE, _PATIENCE_S = 0.2, 30.0
"""A part of every run that is not counted; how long a client may take beyond its time."""
_LONG_ENOUGH = 50
"""Targets that a try of R1 should last: at 2 % too much load the last request then waits a whole target."""
_LEAST_TRIES, _TRIES, _REPEATS = 3, 6, 3


class Job(BaseModel):
    """What is measured, with what, and for how long in all. `engine`: what `bench.gpu.engine` printed."""

    model_config = ConfigDict(frozen=True)

    measure: str
    plan: ModelPlan
    address: str
    bodies: Path
    engine: dict[str, Any]
    seconds: float
    client_cores: tuple[int, ...]

    @property
    def rate_per_s(self) -> float:
        """The raw engine rate."""
        return float(self.engine["rate"])


_ANY_NUMBER = 10_000
"""Requests in flight on one connection of an open loop: one that waits for answers before it goes on is none."""


def run(job: Job, seconds: float, seed: int, *options: str | float, alone: bool = False, open_: bool = False) -> dict[str, Any]:
    """The clients side by side, each on a core of its own where there are enough; what they saw, as one.

    `alone`: one client with one request in flight. `open_`: as many in flight as are due.
    Raises: RuntimeError, subprocess.TimeoutExpired.
    """
    plan = job.plan
    clients = 1 if alone else plan.clients
    connections = 1 if alone else max(1, plan.connections // clients)
    streams = 1 if alone else _ANY_NUMBER if open_ else max(1, plan.in_flight // clients // connections)
    settle_s = seconds * _SETTLE
    own: list[str | float | Path] = [
        "--connections",
        connections,
        "--streams",
        streams,
        "--bodies",
        job.bodies,
        "--tolerance",
        plan.tolerance,
    ]
    own += ["--settle-s", settle_s, "--seconds", seconds - settle_s]
    started: list[subprocess.Popen[str]] = []
    try:
        for place in range(clients):
            words = command(job.address, plan.name, *own, *options, "--seed", seed * 100 + place)
            started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            os.sched_setaffinity(started[-1].pid, {job.client_cores[place % len(job.client_cores)]})
        reports = []
        for client in started:
            said, complaint = client.communicate(timeout=limit_s(own, _PATIENCE_S))
            if client.returncode:
                raise RuntimeError(complaint.strip())
            reports.append(json.loads(said))
    finally:
        for client in started:
            client.kill()
            client.wait()
    return merged(reports)


def open_loop(job: Job, load: float, seconds: float, seed: int, *options: str | float) -> dict[str, Any]:
    """Poisson arrivals at a part of the raw engine rate, over all clients."""
    report = run(job, seconds, seed, "--rate", job.rate_per_s * load / job.plan.clients, *options, open_=True)
    return {"load": load, "offered_per_s": job.rate_per_s * load} | report


def r1(job: Job) -> dict[str, Any]:
    """The highest rate within the target, by bisection."""
    target_us = job.plan.target_p99_ms * 1e3
    # fewer tries, where time is short, before shorter ones; one is kept for a void try that is made again
    enough_s = target_us / 1e6 * _LONG_ENOUGH
    tries = min(_TRIES, max(_LEAST_TRIES, int(job.seconds / enough_s) - 1))
    seconds = job.seconds / (tries + 1)

    end_s = time.monotonic() + job.seconds

    def attempt(load: float) -> Probe:
        report = open_loop(job, load, seconds, round(load * 1e4))
        return Probe(load, passes(report, target_us), bool(report["void"]), report)

    found = highest_load(attempt, lambda: time.monotonic() + seconds < end_s, tries=tries)
    rate = None if found.load is None else found.load * job.rate_per_s
    return ratio("r1", found.load, job.plan.required) | {
        "rate_per_s": rate,
        "target_p99_ms": job.plan.target_p99_ms,
        "targets_in_a_try": seconds * (1 - _SETTLE) / (target_us / 1e6),
        "void": found.void,
        "runs": [asdict(probe) for probe in found.probes],
    }


def r2(job: Job) -> dict[str, Any]:
    """As many in flight as the plan says, a new one for every answer."""
    report = run(job, job.seconds, 1)
    if report["right"] + report["settling"] != report["requests"]:
        raise RuntimeError(f"not every answer was right: {report}")
    row = ratio("r2", report["rate"] / job.rate_per_s, job.plan.required)
    least = (job.plan.required or {}).get("rate_per_s")
    if least is not None:
        row |= {"rate_least_per_s": least, "rate_met": report["rate"] >= least}
    return row | {"rate_per_s": report["rate"], "void": False, "runs": [report]}


def r3(job: Job) -> dict[str, Any]:
    """p99 at 80 % load against the ideal queue; the median of some repeats, with their spread."""
    seconds = job.seconds / _REPEATS
    rows = job.engine["tau"]
    tau = Tau(
        tuple(row["rows"] for row in rows),
        tuple(row["busy_us"] / 1e6 for row in rows),
        tuple(row["serial_us"] / 1e6 for row in rows),
    )
    reports = [open_loop(job, TAIL_LOAD, seconds, 1 + repeat) for repeat in range(_REPEATS)]
    for report in reports:
        if report["right"] + report["settling"] != report["requests"]:
            raise RuntimeError(f"not every answer was right: {report}")
    ideal_us = ideal_p99_s(job.rate_per_s * TAIL_LOAD, tau, job.engine["max_batch"], max(seconds, 10.0)) * 1e6
    p99s = sorted(report["latency_us"]["p99"] for report in reports)
    return ratio("r3", p99s[_REPEATS // 2] / ideal_us, job.plan.required) | {
        "p99_us": p99s,
        "ideal_p99_us": ideal_us,
        "void": any(report["void"] for report in reports),
        "runs": reports,
    }


def r5(job: Job) -> dict[str, Any]:
    """What the server adds to the engine's time when nobody else calls."""
    report = run(job, job.seconds, 1, alone=True)
    engine_us = next(row["serial_us"] for row in job.engine["tau"] if row["rows"] == 1)
    added_us = report["latency_us"]["p50"] - engine_us
    extra = {"engine_us": engine_us, "p50_us": report["latency_us"]["p50"], "void": False, "runs": [report]}
    return ratio("r5", added_us, job.plan.required) | extra


def r6(job: Job) -> dict[str, Any]:
    """Answers in time at 120 % load, each request with its deadline."""
    deadline = ("--deadline-ms", job.plan.deadline_ms, "--deadline-as", "parameter")
    report = open_loop(job, OVERLOAD, job.seconds, 1, *deadline)
    extra = {"rate_per_s": report["goodput"], "deadline_ms": job.plan.deadline_ms, "runs": [report]}
    # refusals come at once, so the p99 of what was answered stays the measure of the client's own lateness
    return ratio("r6", report["goodput"] / job.rate_per_s, job.plan.required) | extra | {"void": report["void"]}


MEASURES: Mapping[str, Callable[[Job], dict[str, Any]]] = {"r2": r2, "r1": r1, "r3": r3, "r5": r5, "r6": r6}
"""In the order in which they are made: what matters most comes first, should the time run out."""
WEIGHTS: Mapping[str, float] = {"r1": 0.45, "r2": 0.1, "r3": 0.25, "r5": 0.05, "r6": 0.15}
"""Parts of a model's time."""


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """A void row meets nothing, whatever its value.

    >>> judged({"value": 0.0, "most": 1.25, "met": True, "void": True})["met"]
    False
    """
    return row | {name: row[name] and not row["void"] for name in ("met", "rate_met") if name in row}


def main(arguments: list[str]) -> int:
    """Exit status 0, or an exception's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    job = Job.model_validate_json(parser.parse_args(arguments).job.read_text("utf-8"))
    print(json.dumps(judged(MEASURES[job.measure](job))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
