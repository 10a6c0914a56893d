"""Reading features: one process on one core, the Redis-compatible server on the other, 50 float32 features, loopback.

Rows of ours from threads and coalesced from asyncio, and memory beside Feast's layout. Where `--feast-python` or `FEAST_PYTHON`
names an interpreter that has Feast, its client is measured in the same run, in turns with ours; elsewhere those rows say so.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import redis

from bench.processes import CLIENT_CORE, SERVER_CORE, free_port
from bench.record import machine, write
from feature_client.aggregation import last
from feature_client.async_reader import AsyncReader
from feature_client.embedded import server_program
from feature_client.feast import FeastReader
from feature_client.feast_view import FeastView, feast_view
from feature_client.keys import row_keys
from feature_client.reader import Reader, Wanted
from feature_client.redis_store import RedisStore
from feature_client.row import pack
from feature_client.schema import Entity, EventLog, Feature, Status, days
from feature_client.view import View

ENTITIES, FEATURES, STAMP = 10_000, 50, 7
BUDGET_S = 5.0
BATCHES = (1, 10, 100, 500)
CALLERS = (64, 256)
_SECONDS = 3.0
_PAIRS = 5
_CALLS = {1: 2000, 10: 1000, 100: 400, 500: 200}
_FEAST_CALLS = {1: 60, 10: 30, 100: 10}
P50_MS = {1: 0.2, 100: 0.5, 500: 2.0}
RATE, MEMORY, FEAST_TIMES = 80_000, 0.5, {10: 15.0, 100: 40.0}
NAMES = [f"f{index:03}" for index in range(FEATURES)]
WIDE = View(
    "wide",
    1,
    "stored",
    {"x": last("x")},
    tuple(Feature(name, "float32", 0.0) for name in NAMES),
    lambda x: {},
    Entity("driver", {"driver_id": "int64"}),
    EventLog("log", {"driver_id": "int64", "event_us": "int64", "x": "float64"}),
    max_age_us=days(365),
)
FEAST_WIDE: FeastView = feast_view(
    "wide", entity="driver", keys={"driver_id": "int64"}, features=[Feature(name, "float32", 0.0) for name in NAMES]
)
FEAST_ROW = [round(index * 0.37 - 5, 2) for index in range(FEATURES)]
FEAST_PROJECT = "shop"
Row = dict[str, Any]


@contextmanager
def valkey(folder: Path) -> Iterator[tuple[str, Any]]:
    """A server on the server's core: its address and a client."""
    port = free_port()
    command = [str(server_program()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    client: Any = redis.Redis(port=port, socket_timeout=60)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        yield f"127.0.0.1:{port}", client
    finally:
        client.close()
        process.terminate()
        process.wait(15)


class FeastSide:
    """Feast's interpreter, on the client's core, told what to do line by line."""

    def __init__(self, python: str, address: str) -> None:
        script = Path(__file__).with_name("feast_side.py")
        self._process = subprocess.Popen(
            [python, str(script), "serve", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=script.parent.parent,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        os.sched_setaffinity(self._process.pid, {CLIENT_CORE})

    def ask(self, *words: Any) -> Any:
        """One line there, one back."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(("[", "{")) or line.strip().isdigit():  # Feast reports its progress there as well
                return json.loads(line)
        raise RuntimeError("Feast's interpreter ended")

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)


def fill(client: Any) -> tuple[list[bytes], float]:
    """Our rows with expiry, as they are written in service: the keys, and the bytes of memory per entity."""
    client.flushall(asynchronous=False)
    before = client.info("memory")["used_memory"]
    rng = np.random.default_rng(7)
    values = {name: rng.standard_normal(ENTITIES).astype(np.float32) for name in NAMES}
    now_us = np.full(ENTITIES, time.time_ns() // 1000)
    rows = pack(WIDE, STAMP, values, np.zeros((ENTITIES, FEATURES), np.bool_), now_us, now_us)
    keys = row_keys("podium", WIDE, {"driver_id": np.arange(ENTITIES)})
    store = RedisStore(f"redis://{_address(client)}")
    store.write(list(zip(keys, rows, strict=True)), 86_400)
    store.close()
    return keys, (client.info("memory")["used_memory"] - before) / ENTITIES


def _address(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return f"{options.get('host', '127.0.0.1')}:{options['port']}"


def timed(call: Callable[[list[int]], object], batches: Sequence[list[int]]) -> list[float]:
    """Milliseconds per call."""
    taken = []
    for batch in batches:
        begun = time.perf_counter()
        call(batch)
        taken.append((time.perf_counter() - begun) * 1e3)
    return taken


def batches_of(size: int, count: int, seed: int) -> list[list[int]]:
    """Distinct entities in each batch."""
    draw = random.Random(seed)
    return [draw.sample(range(ENTITIES), size) for _ in range(count)]


def quantiles(taken: Sequence[float]) -> Row:
    """p50 and p99, in milliseconds."""
    return {"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99)), "calls": len(taken)}


def from_threads(address: str) -> list[Row]:
    """The sync reader, nothing remembered: raw rows in, decoded columns out. Keys are made in the time as well."""
    store = RedisStore(f"redis://{address}")
    reader = Reader(store)

    def call(batch: list[int]) -> None:
        wanted = Wanted(WIDE, STAMP, row_keys("podium", WIDE, {"driver_id": np.array(batch)}))
        (found,) = reader.read([wanted], BUDGET_S)
        if (found.row_status != Status.PRESENT).any():
            raise RuntimeError("a row was not found")

    rows = []
    for size in BATCHES:
        timed(call, batches_of(size, 20, 0))
        row: Row = {"entities": size, **quantiles(timed(call, batches_of(size, _CALLS[size], size)))}
        rows.append(row | ({"required_p50_ms": P50_MS[size]} if size in P50_MS else {}))
    store.close()
    return rows


async def _coalesced(address: str, keys: list[bytes], callers: int, kind: str) -> Row:
    reader = AsyncReader(f"redis://{address}")
    done = missed = 0
    wanted = [[Wanted(WIDE, STAMP, [key])] for key in keys]
    await reader.rows(keys[:1], BUDGET_S)
    end = time.perf_counter() + _SECONDS

    async def caller(seed: int) -> None:
        nonlocal done, missed
        order = random.Random(seed).sample(range(ENTITIES), 1000)
        while time.perf_counter() < end:
            for at in order[:50]:
                if kind == "bytes":
                    (asked,) = await reader.rows((keys[at],), BUDGET_S)
                    missed += not asked.answered
                elif kind == "found":
                    (found,) = await reader.read(wanted[at], BUDGET_S)
                    missed += int(found.row_status[0]) != Status.PRESENT
                else:
                    (served,) = await reader.serve(wanted[at], BUDGET_S)
                    missed += int(served.statuses[0, 0]) != Status.PRESENT
            done += 50
            order = order[50:] + order[:50]

    cpu, begun = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(seed) for seed in range(callers)))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    told = reader.store_reading()
    connections = reader.connected
    await reader.close()
    return {
        "callers": callers,
        "gives": kind,
        "lookups_per_s": done / took,
        "cpu_us_per_lookup": cpu / done * 1e6,
        "keys_per_request": told.keys_asked / told.calls,
        "missed": missed,
        "connections": connections,
    }


def coalesced(address: str, keys: list[bytes]) -> list[Row]:
    """Single rows for many callers of one loop: bytes as they came, decoded, and judged. Medians of some runs."""
    rows = []
    for kind in ("bytes", "found", "served"):
        for callers in CALLERS:
            runs = [asyncio.run(_coalesced(address, keys, callers, kind)) for _ in range(3)]
            row = sorted(runs, key=lambda run: float(run["lookups_per_s"]))[1]
            rows.append(row | ({"required_per_s": RATE} if kind == "bytes" else {}))
    return rows


def beside_feast(python: str, address: str, client: Any) -> tuple[list[Row], Row]:
    """Feast's client, ours on our rows and ours on Feast's rows, in turns on one core; and the memory of its layout.

    Feast's rows are written by Feast; both are read from one server, and what is given is the same.
    """
    feast = FeastSide(python, address)
    try:
        feast.ask("measure", [[0]])
        before = client.info("memory")["used_memory"]
        feast.ask("write", ENTITIES, FEAST_ROW)
        memory = {"feast_bytes_per_entity": (client.info("memory")["used_memory"] - before) / ENTITIES}
        store, theirs = RedisStore(f"redis://{address}"), FeastReader(f"redis://{address}", FEAST_PROJECT)
        reader = Reader(store)

        def ours(batch: list[int]) -> object:
            return reader.read([Wanted(WIDE, STAMP, row_keys("podium", WIDE, {"driver_id": np.array(batch)}))], BUDGET_S)

        def on_feasts(batch: list[int]) -> object:
            return theirs.read(FEAST_WIDE, {"driver_id": np.array(batch)}, BUDGET_S)

        _same_values(feast, theirs)
        rows = []
        for size, count in _FEAST_CALLS.items():
            turns: dict[str, list[list[float]]] = {"feast": [], "ours": [], "ours_on_feasts_rows": []}
            for turn in range(_PAIRS):
                batches = batches_of(size, count, turn)
                turns["feast"].append(feast.ask("measure", batches))
                turns["ours"].append(timed(ours, batches))
                turns["ours_on_feasts_rows"].append(timed(on_feasts, batches))
            rows.append(_compared(size, turns))
        store.close()
        theirs.close()
    finally:
        feast.close()
    return rows, memory


def _same_values(feast: FeastSide, reader: FeastReader) -> None:
    batch = [0, 1, ENTITIES - 1]
    given = np.array(feast.ask("values", batch), np.float32)
    found = reader.read(FEAST_WIDE, {"driver_id": np.array(batch)}, BUDGET_S)
    if not np.array_equal(np.stack([found.values[name] for name in NAMES], axis=1), given):
        raise RuntimeError("Feast's client and ours give different values")


def _compared(size: int, turns: dict[str, list[list[float]]]) -> Row:
    row: Row = {"entities": size}
    for name, taken in turns.items():
        row[name] = quantiles([each for turn in taken for each in turn])
    medians = {name: [statistics.median(turn) for turn in taken] for name, taken in turns.items()}
    for name in ("ours", "ours_on_feasts_rows"):
        ratios = [theirs / ours for theirs, ours in zip(medians["feast"], medians[name], strict=True)]
        row[f"feast_over_{name}"] = statistics.median(ratios)
    return row | ({"required_times": FEAST_TIMES[size]} if size in FEAST_TIMES else {})


def missed(result: Row) -> list[str]:
    """What does not reach what it must, in words."""
    found = []
    for row in result["reader"]:
        if row["p50_ms"] > row.get("required_p50_ms", float("inf")):
            found.append(f"{row['entities']} entities: p50 {row['p50_ms']:.3f} ms")
    for row in result["coalesced"]:
        if row["lookups_per_s"] < row.get("required_per_s", 0):
            found.append(f"{row['callers']} callers: {row['lookups_per_s']:.0f} lookups/s")
    if isinstance(result["feast"], list):
        for row in result["feast"]:
            if row["feast_over_ours"] < row.get("required_times", 0):
                found.append(f"{row['entities']} entities: {row['feast_over_ours']:.1f} times as fast as Feast's client")
        if result["memory"]["ratio"] > MEMORY:
            found.append(f"memory: {result['memory']['ratio']:.2f} of Feast's layout")
    return found


def show(result: Row) -> None:
    """For people."""
    print(f"ping  p50 {result['ping']['p50_ms']:.3f} ms")
    for row in result["reader"]:
        required = row.get("required_p50_ms", "-")
        times = f"p50 {row['p50_ms']:.3f} ms  p99 {row['p99_ms']:.3f} ms"
        print(f"reader {row['entities']:>4} entities  {times}  (p50 required {required})")
    for row in result["coalesced"]:
        print(
            f"coalesced {row['gives']:>6} x{row['callers']:<4} {row['lookups_per_s']:8.0f}/s"
            f"  {row['cpu_us_per_lookup']:.1f} us CPU  (required {row.get('required_per_s', '-')})"
        )
    print(f"memory {result['memory']}")
    for row in result["feast"] if isinstance(result["feast"], list) else ():
        print(
            f"feast {row['entities']:>4} entities  p50 {row['feast']['p50_ms']:.2f} ms  ours {row['ours']['p50_ms']:.3f} ms:"
            f" {row['feast_over_ours']:.1f} times (required {row.get('required_times', '-')});"
            f" ours on its rows {row['ours_on_feasts_rows']['p50_ms']:.3f} ms:"
            f" {row['feast_over_ours_on_feasts_rows']:.1f} times"
        )


def measure(python: str) -> Row:
    """Everything, in one run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, client = stack.enter_context(valkey(folder))
        os.sched_setaffinity(0, {CLIENT_CORE})
        keys, bytes_per_entity = fill(client)
        result: Row = {
            "entities": ENTITIES,
            "features": FEATURES,
            "server": client.info("server").get("valkey_version", client.info("server")["redis_version"]),
            # what the machine takes for any question at all
            "ping": quantiles(timed(lambda batch: client.ping(), [[]] * 2000)),
            "reader": from_threads(address),
            "coalesced": coalesced(address, keys),
            "memory": {"bytes_per_entity": bytes_per_entity},
            "feast": "not run",
        }
        if python:
            result["feast"], memory = beside_feast(python, address, client)
            result["memory"] |= memory
            result["memory"]["ratio"] = bytes_per_entity / memory["feast_bytes_per_entity"]
    return result


def main() -> int:
    """Run, print, write bench/results/features_read.json. Exit status 1 if something required was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench features_read", add_help=False)
    parser.add_argument("--feast-python", default=os.environ.get("FEAST_PYTHON", ""))
    options, _ = parser.parse_known_args(sys.argv[1:])
    facts = machine()
    allowed = os.sched_getaffinity(0)
    try:
        result = measure(options.feast_python)
    finally:
        os.sched_setaffinity(0, allowed)
    show(result)
    below = missed(result)
    print(write("features_read", {"machine": facts, **result, "missed": below}))
    return int(bool(below))
