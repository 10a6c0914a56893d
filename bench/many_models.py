"""Many models on one device: how much is answered in time, what a neighbour's burst does, and what a second slot is worth.

Data plane, engine threads and fake backends as in the server, without gRPC: with deadlines of 25 ms the Python client of the
`overload` benchmark would measure itself. Load is open-loop Poisson from one thread; a request is on time if its answer was
there 25 ms after it was *due*. Beside each figure stands what the same rules reach in virtual time (`bench.simulate`), where
nothing but the device takes any time: the ideal.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.record import machine, write
from bench.simulate import Model, simulate, zipf_rates
from server.backends.fake import FakeBackend
from server.core.clock import monotonic_ns
from server.core.errors import PodiumError
from server.core.settings import FakeSettings, ModelSettings, QueueSettings, buckets_for
from server.core.signature import CheckedRows, Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import Answer, settle
from server.dataplane.python.plane import PythonPlane
from server.dataplane.ticket import Ticket
from server.lifecycle.replica import Replica, queue_rules
from server.service.engine import Engine
from server.telemetry.recorder import VersionRecorder

MS = 1_000_000
DEADLINE_NS = 25 * MS
T0_US, ROW_US, MAX_ROWS = 1200.0, 13.0, 128
ROWS = 8
"""Rows per request: 5,600 requests/s fill the device, which one interpreter can offer and count while it serves them."""
SLOTS = 2
"""As on an accelerator: the next batch is gathered while one runs."""
CAPACITY_PER_S = MAX_ROWS / (T0_US + ROW_US * MAX_ROWS) * 1e6 / ROWS
_LOADS = (0.6, 0.8, 0.9, 1.2)
REQUIRED_OF_IDEAL = {0.8: 0.9, 1.2: 0.75}
REQUIRED_P99_RATIO = 1.5
_SECONDS, _SETTLE_S, _SIMULATED_S, _REPEATS = 8.0, 1.0, 10.0, 3
MOST_LATENESS_MS = 2.5
"""A run is void if the load was later than this at p99: a tenth of the deadline."""


class _Reply:
    """Notes when its answer came."""

    __slots__ = ("at_ns", "ok")

    def __init__(self) -> None:
        self.at_ns, self.ok = 0, False

    def done(self) -> bool:
        return False

    def set_result(self, result: object, /) -> None:
        self.at_ns, self.ok = monotonic_ns(), True

    def set_exception(self, error: BaseException, /) -> None:
        self.at_ns = monotonic_ns()


class _Closed:
    """A reply that asks again as soon as it is answered, until the time is over."""

    def __init__(self, device: "Device", checked: CheckedRows, until_ns: int) -> None:
        self._device, self._checked, self._until_ns = device, checked, until_ns
        self._lock = threading.Lock()
        self.answers = 0

    def again(self) -> None:
        self._device.plane.submit(0, Ticket(self._checked, self, monotonic_ns()))

    def done(self) -> bool:
        return False

    def set_result(self, result: object, /) -> None:
        with self._lock:
            self.answers += 1
        if monotonic_ns() < self._until_ns:
            self.again()

    def set_exception(self, error: BaseException, /) -> None:
        raise error


class Device:
    """A plane with its engines, serving fakes."""

    def __init__(self, models: Sequence[ModelSettings], slots: int = 1, width: int = 4) -> None:
        self._engines: list[Engine] = []
        self.plane = PythonPlane(monotonic_ns, InflightLimit(10**6, 2**40), self._deliver, self._start, lambda device: slots)
        spec = (TensorSpec("x", "FP32", (width,)),)
        for index, settings in enumerate(models):
            signature = Signature(f"m{index}", spec, (TensorSpec("y", "INT64", (1,)),), settings.max_batch or 0)
            buckets = buckets_for(signature.max_batch, settings.batching)
            costs = tuple(round((settings.fake.t0_us + settings.fake.row_us * size) * 1000) for size in buckets)
            key = VersionKey(f"m{index}", 1)
            backend: Any = FakeBackend(signature, settings.fake)
            replica = Replica(
                queue_id=index,
                key=key,
                backend=backend,
                signature=signature,
                settings=settings,
                buckets=buckets,
                costs_ns=costs,
                device="cpu",
                recorder=VersionRecorder(key),
                stamp="",
            )
            self.plane.open(queue_rules(replica))

    def _deliver(self, answers: Sequence[Answer], executed_ns: int | None) -> None:
        settle(answers)
        if executed_ns is not None:
            self.plane.observe_delivery(monotonic_ns() - executed_ns)

    def _start(self, device: str) -> None:
        engine = Engine(self.plane, device, monotonic_ns, lambda replica, error: None, lambda: None)
        self._engines.append(engine)
        engine.start()

    def stop(self) -> None:
        """End the engines."""
        self.plane.stop()
        for engine in self._engines:
            engine.join()


def offer(device: Device, rates: Sequence[float], rows: int, seed: int) -> tuple[list[NDArray[np.float64]], float]:
    """Offer each model its Poisson rate. Returns per model the latency from due to answer in ms (inf: no answer), without the
    first seconds, and the p99 of the generator's own lateness in ms.
    """
    rng = np.random.default_rng(seed)
    length_s = _SECONDS + _SETTLE_S
    due: list[tuple[int, int]] = []
    for index, rate in enumerate(rates):
        times = np.cumsum(rng.exponential(1e9 / rate, int(rate * length_s * 1.3) + 50))
        due += [(int(at), index) for at in times[times < length_s * 1e9]]
    due.sort()
    array = np.zeros((rows, 4), np.float32)
    checked = CheckedRows({"x": array}, rows, (("x", (4,)),))
    replies: list[tuple[int, int, _Reply]] = []
    lateness: list[int] = []
    start_ns = monotonic_ns() + 50 * MS
    for at_ns, index in due:
        due_ns = start_ns + at_ns
        wait_ns = due_ns - monotonic_ns()
        if wait_ns > 50_000:
            time.sleep((wait_ns - 30_000) / 1e9)
        now_ns = monotonic_ns()
        lateness.append(max(now_ns - due_ns, 0))
        reply = _Reply()
        replies.append((due_ns, index, reply))
        try:
            device.plane.submit(index, Ticket(checked, reply, now_ns, due_ns + DEADLINE_NS))
        except PodiumError:
            reply.at_ns = monotonic_ns()
    time.sleep(0.2)
    latencies: list[list[float]] = [[] for _ in rates]
    for due_ns, index, reply in replies:
        if due_ns - start_ns >= _SETTLE_S * 1e9:
            latencies[index].append((reply.at_ns - due_ns) / MS if reply.ok else np.inf)
    return [np.array(one) for one in latencies], float(np.percentile(lateness, 99)) / MS


def _settings(max_batch: int, t0_us: float, row_us: float, share: float = 0.0) -> ModelSettings:
    return ModelSettings(
        backend="fake", max_batch=max_batch, fake=FakeSettings(t0_us=t0_us, row_us=row_us), queue=QueueSettings(share=share)
    )


def zipf() -> list[dict[str, Any]]:
    """8 models, rates 1, 1/2, 1/3 …; of several runs of each load the one in the middle."""
    rows = []
    for load in _LOADS:
        rates = zipf_rates(CAPACITY_PER_S * load, 8)
        own = Model(0.0, DEADLINE_NS, int(T0_US * 1000), int(ROW_US * ROWS * 1000), MAX_ROWS // ROWS)
        outcome = simulate([_at(own, rate) for rate in rates], _SIMULATED_S, seed=1)
        ideal = sum(outcome.on_time) / sum(outcome.offered)
        runs = sorted((_zipf_run(rates, seed) for seed in range(_REPEATS)), key=lambda run: run["on_time"])
        row = {
            "load": load,
            "offered_per_s": sum(rates),
            "ideal": ideal,
            **runs[_REPEATS // 2],
            "of_ideal": runs[_REPEATS // 2]["on_time"] / ideal,
            "all_on_time": [run["on_time"] for run in runs],
        }
        rows.append(row)
        print(
            f"8 models, load {load:.1f}: on time {row['on_time']:.3f} ({row['all_on_time'][0]:.3f} to"
            f" {row['all_on_time'][-1]:.3f}), ideal {ideal:.3f}, ratio {row['of_ideal']:.3f}; load generator late p99"
            f" {row['client_lateness_p99_ms']:.2f} ms",
            flush=True,
        )
    return rows


def _zipf_run(rates: Sequence[float], seed: int) -> dict[str, Any]:
    device = Device([_settings(MAX_ROWS, T0_US, ROW_US)] * len(rates), SLOTS)
    latencies, lateness_ms = offer(device, rates, ROWS, seed)
    device.stop()
    return {
        "on_time": float((np.concatenate(latencies) <= DEADLINE_NS / MS).mean()),
        "per_model": [float((one <= DEADLINE_NS / MS).mean()) for one in latencies],
        "client_lateness_p99_ms": lateness_ms,
    }


def _at(model: Model, rate_per_s: float, share: float = 0.0) -> Model:
    return Model(rate_per_s, model.deadline_ns, model.t0_ns, model.row_ns, model.max_batch, share)


ISOLATION = {"one request per execution": (0, 4000.0, 0.0, 1), "batches": (MAX_ROWS, T0_US, ROW_US, ROWS)}
"""max_batch, t0 and row in us, rows per request."""


def isolation() -> list[dict[str, Any]]:
    """A model at 80 % of its half of the device, alone and beside one at 150 % of the other half.

    One slot: a batch that is staged cannot be overtaken by a claim.
    """
    rows = []
    for name, (max_batch, t0_us, row_us, per_request) in ISOLATION.items():
        capacity = max(max_batch, 1) / (t0_us + row_us * max(max_batch, 1)) * 1e6 / per_request
        for share in (0.0, 0.5):
            p99: dict[str, float] = {}
            found: dict[str, Any] = {"kind": name, "share": share}
            for case, rates in {"alone": (0.4,), "beside": (0.4, 0.75)}.items():
                device = Device([_settings(max_batch, t0_us, row_us, share)] * len(rates))
                latencies, lateness_ms = offer(device, [capacity * rate for rate in rates], per_request, seed=2)
                device.stop()
                answered = latencies[0][np.isfinite(latencies[0])]
                p99[case] = float(np.percentile(answered, 99))
                found[f"{case}_p99_ms"] = p99[case]
                found[f"{case}_on_time"] = float((latencies[0] <= DEADLINE_NS / MS).mean())
                found[f"{case}_client_lateness_p99_ms"] = lateness_ms
            found["neighbour_on_time"] = float((latencies[1] <= DEADLINE_NS / MS).mean())
            found["p99_ratio"] = p99["beside"] / p99["alone"]
            rows.append(found)
            print(
                f"{name}, share {share}: p99 {p99['alone']:.2f} ms alone, {p99['beside']:.2f} beside, ratio"
                f" {found['p99_ratio']:.2f}; on time {found['beside_on_time']:.3f}, neighbour {found['neighbour_on_time']:.3f}",
                flush=True,
            )
    return rows


def slots() -> list[dict[str, Any]]:
    """Rows/s of a saturated device, with one slot and with two: 16 KiB per row, so that gathering and answering take time."""
    rows = []
    width, seconds, in_flight = 4096, 5.0, 512
    for count in (1, 2):
        device = Device([_settings(64, 2000.0, 0.0)], count, width)
        checked = CheckedRows({"x": np.zeros((1, width), np.float32)}, 1, (("x", (width,)),))
        counted = _Closed(device, checked, monotonic_ns() + int(seconds * 1e9))
        for _ in range(in_flight):
            counted.again()
        time.sleep(seconds + 0.3)
        device.stop()
        rows.append(
            {"slots": count, "rows_per_s": counted.answers / seconds, "of_device": counted.answers / seconds / (64 / 2e-3)}
        )
        print(f"slots {count}: {rows[-1]['rows_per_s']:.0f} rows/s, {rows[-1]['of_device']:.3f} of the device", flush=True)
    return rows


def main() -> int:
    """Run, print, write bench/results/many_models.json. Exit status 1 if a required ratio was missed or a run was void."""
    facts = machine()
    results = {"zipf": zipf(), "isolation": isolation(), "slots": slots()}
    lateness = [row["client_lateness_p99_ms"] for row in results["zipf"]]
    void = max(lateness) > MOST_LATENESS_MS
    short = [row for row in results["zipf"] if row["of_ideal"] < REQUIRED_OF_IDEAL.get(row["load"], 0)]
    short += [row for row in results["isolation"] if row["share"] and row["p99_ratio"] > REQUIRED_P99_RATIO]
    settings = {
        "deadline_ms": DEADLINE_NS / MS,
        "t0_us": T0_US,
        "row_us": ROW_US,
        "max_rows": MAX_ROWS,
        "rows_per_request": ROWS,
        "slots": SLOTS,
        "capacity_per_s": CAPACITY_PER_S,
        "required_of_ideal": {str(load): ratio for load, ratio in REQUIRED_OF_IDEAL.items()},
        "required_p99_ratio": REQUIRED_P99_RATIO,
    }
    print(write("many_models", {"machine": facts, "settings": settings, "void": void, "short": len(short), **results}))
    return int(void or bool(short))
