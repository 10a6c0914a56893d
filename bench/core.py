"""The python data plane against a bare grpc.aio servicer that makes the same model call without batching: one run, one core, in
turns. The native one has its own bench."""

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.closed_loop import Run, drive, request
from bench.models import FIXED_COST, TRIVIAL, write_mlp
from bench.processes import cpu_s, podium, reference
from bench.record import machine, write

_PAIRS, _SECONDS = 5, 4
GATES = {("trivial", 64): 0.6, ("fixed_cost", 64): 2.0}


def _turn(address: str, process: Any, body: bytes, in_flight: int, folder: Path) -> tuple[Run, float]:
    before = cpu_s(process)
    run = drive(address, body, in_flight, _SECONDS, folder)
    # h2load's warm-up second is in the CPU time too
    return run, (cpu_s(process) - before) / (run.rate * (_SECONDS + 1)) * 1e6


def compare(name: str, widths: tuple[int, ...], in_flight: int, folder: Path) -> dict[str, Any]:
    """Medians over pairs of runs, and the median of the ratios pair by pair (the machine's speed drifts)."""
    repository = folder / name
    model = repository / name / "1" / "model.onnx"
    write_mlp(model, widths, seed=7)
    body = request(name, widths[0])
    ours: list[tuple[Run, float]] = []
    bare: list[tuple[Run, float]] = []
    flags = ("--data-plane", "python", "--control-mode", "explicit", "--load-model", name)
    with podium(repository, folder, *flags) as (address, _, process):
        for _ in range(_PAIRS):
            ours.append(_turn(address, process, body, in_flight, folder))
            with reference(model, folder) as (bare_address, bare_process):
                bare.append(_turn(bare_address, bare_process, body, in_flight, folder))
    ratios = [one.rate / other.rate for (one, _), (other, _) in zip(ours, bare, strict=True)]

    def medians(runs: list[tuple[Run, float]]) -> dict[str, float]:
        columns = {key: statistics.median(asdict(run)[key] for run, _ in runs) for key in asdict(runs[0][0])}
        return columns | {"cpu_us_per_request": statistics.median(cpu for _, cpu in runs)}

    row: dict[str, Any] = {
        "model": name,
        "in_flight": in_flight,
        "podium": medians(ours),
        "bare_grpc_aio": medians(bare),
        "rate_ratio": statistics.median(ratios),
        "rate_ratio_min_max": [min(ratios), max(ratios)],
        "cpu_ratio": statistics.median(other / one for (_, one), (_, other) in zip(ours, bare, strict=True)),
    }
    if (name, in_flight) in GATES:
        row["required_ratio"] = GATES[name, in_flight]
    return row


def main() -> int:
    """Run, print, write bench/results/core.json. Exit status 1 if a required ratio was missed."""
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            compare(name, widths, in_flight, Path(folder))
            for name, widths in (("trivial", TRIVIAL), ("fixed_cost", FIXED_COST))
            for in_flight in (64, 1)
        ]
    for row in rows:
        ours, bare = row["podium"], row["bare_grpc_aio"]
        print(
            f"{row['model']:>10} x{row['in_flight']:<3} podium {ours['rate']:6.0f}/s  bare {bare['rate']:6.0f}/s"
            f"  ratio {row['rate_ratio']:.2f} (required {row.get('required_ratio', '-')})"
            f"  p50 {ours['p50_ms']:.2f} / {bare['p50_ms']:.2f} ms  cpu {ours['cpu_us_per_request']:.0f} /"
            f" {bare['cpu_us_per_request']:.0f} us"
        )
    print(write("core", {"machine": facts, "seconds": _SECONDS, "pairs": _PAIRS, "rows": rows}))
    return int(any(row["rate_ratio"] < row.get("required_ratio", 0) for row in rows))
