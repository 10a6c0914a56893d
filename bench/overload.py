"""Goodput under overload: at 120 % of capacity, how much of the capacity is answered on time?

A FIFO queue answers almost nothing on time once it is overloaded: everything waits its whole deadline and is executed late.
The load is open-loop Poisson; a request is on time if its answer came within the deadline counted from the instant it was
*due*, not from when it was sent. The run is void when the client itself was late.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.closed_loop import METHOD
from bench.processes import CLIENT_CORE, podium
from bench.record import machine, write
from protos import grpc_service_pb2 as pb

# slow enough that the Python client's own 0.3 ms per answer, 10 ms for the last of a batch, stay small beside the deadline
MAX_BATCH, T0_MS, ROW_MS, DEADLINE_S = 32, 50.0, 1.0, 0.4
CAPACITY = MAX_BATCH / (T0_MS + ROW_MS * MAX_BATCH) * 1000
"""Rows per second of the fake backend at its largest batch."""
_LOADS, _SECONDS, _SETTLE_S = (0.8, 1.0, 1.2, 1.5), 20.0, 2.0
REQUIRED_RATIO = 0.95
_MODEL_TOML = f"""
backend = "fake"
max_batch = {MAX_BATCH}
[fake]
t0_us = {T0_MS * 1000}
row_us = {ROW_MS * 1000}
"""
_FAKE = {
    "inputs": [{"name": "IN", "datatype": "FP32", "shape": [4]}],
    "outputs": [{"name": "OUT", "datatype": "INT64", "shape": [1]}],
}


async def offer(address: str, load: float, seed: int) -> dict[str, Any]:
    """Offer `load` times the capacity; counts exclude the first seconds."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / (CAPACITY * load), int(CAPACITY * load * (_SECONDS + _SETTLE_S) * 1.2))
    due_s = np.cumsum(gaps)
    due_s = due_s[due_s < _SECONDS + _SETTLE_S]
    message = pb.ModelInferRequest(model_name="fake")
    message.inputs.add(name="IN", datatype="FP32", shape=[1, 4])
    message.raw_input_contents.append(np.zeros(4, np.float32).tobytes())
    body = message.SerializeToString()
    finished_s, ok, lateness_s = np.full(len(due_s), np.inf), np.zeros(len(due_s), bool), np.zeros(len(due_s))
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(METHOD)
        await call(body, timeout=10)
        start_s = time.monotonic() + 0.1

        async def one(index: int) -> None:
            try:
                # the deadline is the caller's: what is left of it when the request is really sent
                await call(body, timeout=max(start_s + due_s[index] + DEADLINE_S - time.monotonic(), 0.001))
                ok[index] = True
            except grpc.aio.AioRpcError:
                pass
            finished_s[index] = time.monotonic() - start_s

        tasks = []
        for index, due in enumerate(due_s.tolist()):
            delay_s = start_s + due - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            lateness_s[index] = max(time.monotonic() - start_s - due, 0.0)
            tasks.append(asyncio.create_task(one(index)))
        await asyncio.gather(*tasks)
    counted = due_s >= _SETTLE_S
    took_s = (finished_s - due_s)[counted]
    on_time = ok[counted] & (took_s <= DEADLINE_S)
    return {
        "load": load,
        "offered_per_s": counted.sum() / _SECONDS,
        "on_time_per_s": on_time.sum() / _SECONDS,
        "on_time_of_capacity": on_time.sum() / _SECONDS / CAPACITY,
        "on_time_of_offered": on_time.mean(),
        "answered_late": int((ok[counted] & (took_s > DEADLINE_S)).sum()),
        "refused_after_p50_ms": float(np.median(took_s[~ok[counted]]) * 1000) if (~ok[counted]).any() else None,
        "client_lateness_p99_ms": float(np.percentile(lateness_s[counted], 99) * 1000),
    }


def planes(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every kind of data plane that is there, and what it made of each load."""
    for plane in ("python", "native") if find_spec("podium_native") else ("python",):
        flags = ("--data-plane", plane, "--control-mode", "explicit", "--load-model", "fake")
        with podium(folder / "models", folder, *flags) as (address, _, _):
            os.sched_setaffinity(0, {CLIENT_CORE})
            yield plane, [asyncio.run(offer(address, load, seed)) for seed, load in enumerate(_LOADS)]


def main() -> int:
    """Run, print, write bench/results/overload.json. Exit status 1 if the required ratio was missed or a run was void."""
    facts = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        version = folder / "models" / "fake" / "1"
        version.mkdir(parents=True)
        (version / "fake.json").write_text(json.dumps(_FAKE))
        (version.parent / "model.toml").write_text(_MODEL_TOML)
        rows = dict(planes(folder))
    for plane, row in ((plane, row) for plane, its in rows.items() for row in its):
        print(
            f"{plane}, load {row['load']:.1f}: offered {row['offered_per_s']:6.0f}/s, on time {row['on_time_per_s']:6.0f}/s ="
            f" {row['on_time_of_capacity']:.3f} of capacity, {row['on_time_of_offered']:.3f} of offered;"
            f" late {row['answered_late']}, client late p99 {row['client_lateness_p99_ms']:.1f} ms"
        )
    overloads = [next(row for row in its if row["load"] == 1.2) for its in rows.values()]
    void = any(each["client_lateness_p99_ms"] > DEADLINE_S * 1000 * 0.1 for each in overloads)
    settings = {"max_batch": MAX_BATCH, "t0_ms": T0_MS, "row_ms": ROW_MS, "deadline_s": DEADLINE_S, "capacity_per_s": CAPACITY}
    result = {"machine": facts, "settings": settings, "required_ratio": REQUIRED_RATIO, "void": void, "rows": rows}
    print(write("overload", result))
    return int(void or any(each["on_time_of_capacity"] < REQUIRED_RATIO for each in overloads))
