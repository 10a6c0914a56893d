"""The native data plane, a bare grpc.aio servicer and the Python plane: one run, one core, in turns, every answer verified.

    python -m bench.native_plane [--plane native] [--verify N] [--minutes M] [--only PART ...]

Every client here is `podium_client`: a turn with one wrong or missing answer is no measurement, and stops the run. Without
`--only` the result is written to bench/results/native_plane.json.
"""

import argparse
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.native_client import executable
from bench.native_plane_crowd import churn, crowd, verified
from bench.native_plane_servers import MODELS, Servers, Turn, models, servers, turn
from bench.record import machine, write

PAIRS, SECONDS = 5, 4
CONNECTIONS = 4
OPEN_LOOP_SHARE, OPEN_LOOP_S = 0.5, 10
VOID_LATENESS_US = 500.0
"""An open loop whose client sent its slowest hundredth later than this says nothing about the server's p99 of 2 ms."""
RATIO, RATE_PER_S, P50_US, P99_US, BODY_RATIO = 15.0, 100_000.0, 120.0, 2_000.0, 3.0

Part = Callable[[Servers, argparse.Namespace], list[dict[str, Any]]]


def gate(name: str, value: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """One required number, and whether it was met."""
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"name": name, "value": value, "least": least, "most": most, "met": met}


def in_turns(found: Servers, model: str, names: list[str], pairs: int, *options: str | float | Path) -> dict[str, list[Turn]]:
    """`pairs` turns of each server, one after the other: the machine's speed drifts, a pair's does not."""
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for _ in range(pairs):
        for name in names:
            turns[name].append(turn(found[name], model, *options))
    return turns


def _medians(turns: list[Turn]) -> dict[str, float]:
    return {key: statistics.median(getattr(each, key) for each in turns) for key in Turn.__dataclass_fields__}


def _compared(turns: dict[str, list[Turn]], ours: str, other: str) -> dict[str, Any]:
    """Ratio of the rates, pair by pair."""
    ratios = [one.rate / two.rate for one, two in zip(turns[ours], turns[other], strict=True)]
    return {"over": other, "rate_ratio": statistics.median(ratios), "rate_ratio_min_max": [min(ratios), max(ratios)]}


def rates(found: Servers, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """64-byte calls of the small network at 64 in flight, and of the identity model at more: closed loops."""
    rows = []
    for model, in_flight, pairs in (("mlp", 64, PAIRS), ("identity", 64, 3), ("identity", 128, 3), ("identity", 256, 3)):
        bare = f"bare_{model}"
        names = list(dict.fromkeys([arguments.plane, bare, "python"]))
        load = ("--connections", CONNECTIONS, "--streams", in_flight // CONNECTIONS, "--seconds", SECONDS)
        turns = in_turns(found, model, names, pairs, *load)
        row: dict[str, Any] = {
            "part": "rates",
            "model": model,
            "in_flight": in_flight,
            "servers": {name.removesuffix(f"_{model}"): _medians(each) for name, each in turns.items()},
            "compared": [_compared(turns, arguments.plane, name) for name in names if name != arguments.plane],
        }
        if (model, in_flight) == ("mlp", 64):
            row["gates"] = [
                gate("rate over bare grpc.aio", row["compared"][0]["rate_ratio"], least=RATIO),
                gate("requests per second", row["servers"][arguments.plane]["rate"], least=RATE_PER_S),
            ]
        rows.append(row)
    return rows


def latency(found: Servers, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One call at a time; then Poisson arrivals at half of what this server can do, counted from when each was due."""
    names = list(dict.fromkeys([arguments.plane, "python"]))
    alone = in_turns(found, "mlp", names, 3, "--seconds", SECONDS)
    first: dict[str, Any] = {
        "part": "latency",
        "model": "mlp",
        "in_flight": 1,
        "servers": {name: _medians(each) for name, each in alone.items()},
    }
    first["gates"] = [gate("p50 at 1 in flight, us", first["servers"][arguments.plane]["p50_us"], most=P50_US)]
    second: dict[str, Any] = {"part": "latency", "model": "mlp", "open_loop_share": OPEN_LOOP_SHARE, "servers": {}}
    for name in names:
        most = turn(found[name], "mlp", "--connections", CONNECTIONS, "--streams", 16, "--seconds", SECONDS)
        options = ("--connections", CONNECTIONS, "--streams", 1000, "--seconds", OPEN_LOOP_S)
        runs = in_turns(found, "mlp", [name], 3, *options, "--rate", most.rate * OPEN_LOOP_SHARE)
        second["servers"][name] = {"own_maximum": most.rate, **_medians(runs[name])}
    own = second["servers"][arguments.plane]
    second["gates"] = [
        gate("p99 at half of its maximum, us", own["p99_us"], most=P99_US),
        gate("lateness of the client p99, us", own["lateness_p99_us"], most=VOID_LATENESS_US),
    ]
    return [first, second]


def bodies(found: Servers, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Large tensors there and back."""
    rows = []
    for model, size in (("body_150k", 150_000), ("body_600k", 600_000)):
        names = list(dict.fromkeys([arguments.plane, "python"]))
        turns = in_turns(found, model, names, PAIRS, "--connections", 2, "--streams", 4, "--seconds", SECONDS)
        row: dict[str, Any] = {
            "part": "bodies",
            "model": model,
            "bytes": size,
            "in_flight": 8,
            "servers": {name: _medians(each) for name, each in turns.items()},
            "compared": [_compared(turns, arguments.plane, name) for name in names if name != arguments.plane],
        }
        row["gates"] = [
            gate(f"rate over the Python plane, {size} bytes", each["rate_ratio"], least=BODY_RATIO) for each in row["compared"]
        ]
        rows.append(row)
    return rows


def verify(found: Servers, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Many requests, none wrong."""
    row = verified(found[arguments.plane], arguments.verify)
    return [row | {"gates": [gate("wrong or missing answers", row["wrong"] + row["failed"] + row["unanswered"], most=0)]}]


def connections(found: Servers, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """10,000 connections at once; then connections that come and go."""
    held = crowd(found[arguments.plane])
    held["gates"] = [gate("failed or missing answers", held["wrong"] + held["failed"] + held["unanswered"], most=0)]
    gone = churn(found[arguments.plane], arguments.minutes)
    gone["gates"] = [
        gate("failed or missing answers", gone["wrong"] + gone["failed"] + gone["unanswered"], most=0),
        gate("memory, last quarter over second", gone["rss_growth_ratio"], most=0.02),
    ]
    return [held, gone]


PARTS: dict[str, Part] = {
    "rates": rates,
    "latency": latency,
    "bodies": bodies,
    "verify": verify,
    "connections": connections,
}


def _print(row: dict[str, Any]) -> None:
    what = " ".join(str(row[key]) for key in ("part", "model", "in_flight") if key in row)
    for name, each in row.get("servers", {}).items():
        print(
            f"{what:>24} {name:>8}: {each['rate']:9,.0f}/s  p50 {each['p50_us']:8,.0f} us  p99 {each['p99_us']:8,.0f} us"
            f"  cpu {each['cpu_us']:6.1f} us, of the client {each['client_cpu_us']:5.2f} us"
        )
    if "servers" not in row:
        print(f"{what:>24}: { ({key: value for key, value in row.items() if key not in ('part', 'gates')}) }")
    for each in row.get("gates", []):
        bound = f">= {each['least']:g}" if each["least"] is not None else f"<= {each['most']:g}"
        print(f"{'':>24} {each['name']}: {each['value']:,.2f} (required {bound}) {'ok' if each['met'] else 'MISSED'}")


def main(words: list[str] | None = None) -> int:
    """Run and print; 1 if a required number was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.native_plane")
    parser.add_argument("--plane", default="native", choices=("native", "python"), help="the plane under test")
    parser.add_argument("--verify", type=int, default=1_000_000, help="how many requests the long check verifies")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long connections come and go")
    parser.add_argument("--only", nargs="+", default=[], choices=PARTS, help="these parts; the result is not written")
    arguments = parser.parse_args([] if words is None else words)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the servers inherit it: one descriptor for each of many connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    facts = machine()
    executable()
    rows = []
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            models(folder)
            with servers(folder, arguments.plane) as found:
                for part in arguments.only or PARTS:
                    for row in PARTS[part](found, arguments):
                        _print(row)
                        rows.append(row)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if not arguments.only:
        settings = {"plane": arguments.plane, "seconds": SECONDS, "pairs": PAIRS, "models": MODELS}
        print(write("native_plane", {"machine": facts, "settings": settings, "rows": rows}))
    return int(any(not each["met"] for row in rows for each in row.get("gates", [])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
