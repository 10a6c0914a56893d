"""What one version has done since the process started: written once per batch, read once per scrape.

Floor 2: the engine thread and the door write it, metrics and ModelStatistics read snapshots. Metrics kept per request cost
2.3 us each, about as much as there is for a whole request (docs/METRICS.md, "Cost"); everything here takes the arrays of a
batch, for 8 to 11 us with 1 to 256 requests. Never reads the monotonic clock: all durations are differences of times that
the caller took anyway.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_MS
from server.core.versions import VersionKey
from server.telemetry.answers import AnswerCosts
from server.telemetry.histogram import LATENCY_EDGES_NS, ROWS_EDGES, Histogram
from server.telemetry.invalid import InvalidCounts, InvalidRows

REFUSALS = ("queue_full", "expired", "cancelled", "invalid", "not_ready", "backend")
"""Why a request ends without being executed: a closed list, because each is a label value."""

OUTCOMES = ("ok", "failed", "abandoned", "refused")
"""How a request ends: answered; executed, with an error; executed, but its caller had gone; not executed."""

PHASES = ("queue", "execute", "total")


@dataclass(frozen=True)
class VersionStats:
    """One version's totals at an instant; all its numbers belong to the same instant.

    `durations` and `batches` mean what Triton's ModelStatistics means: (count of requests, ns summed over requests) for
    success, fail, queue, compute_input, compute_infer and compute_output, where all but fail cover answered requests; and
    per executed batch size, ascending, (count of executions, ns summed over executions) of the three compute parts.
    cache_hit is looking up, cache_miss looking up in vain and keeping the answer; hits are answered, so success and queue (0
    ns) cover them too.
    `histograms` has one of ns per phase, over answered requests; `batch_rows` one of rows per execution, without padding.
    `devices`: executed batches by the device that executed them.
    `answers`: of a decoupled version, the same by the place of an answer in its request, see `AnswerCosts`.
    `features`: of ns per batch that features took; None where there were none. `invalid`: rows that broke a constraint.
    Units: `inference_count` rows answered, `execution_count` batches, `last_inference_ms` since 1970 (0: never),
    `rows` and `padding_rows` executed; `elements` and `padding_elements` of inputs whose free dimensions are padded.
    Ownership: the histograms are copies; nobody changes them any more.
    """

    key: VersionKey
    inference_count: int
    execution_count: int
    last_inference_ms: int
    durations: Mapping[str, tuple[int, int]]
    batches: list[tuple[int, dict[str, tuple[int, int]]]]
    memory_bytes: int
    histograms: Mapping[str, Histogram]
    batch_rows: Histogram
    released: Mapping[str, int]
    requests: Mapping[str, int]
    refused: Mapping[str, int]
    late: int
    rows: int
    padding_rows: int
    elements: int = 0
    padding_elements: int = 0
    devices: Mapping[str, int] = field(default_factory=dict)
    cache_evictions: int = 0
    answers: Mapping[int, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    features: Histogram | None = None
    invalid: InvalidRows = field(default_factory=dict)


@dataclass(slots=True)
class _BatchCost:
    executions: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, input_ns: int, infer_ns: int, output_ns: int, times: int) -> None:
        self.executions += times
        self.input_ns += input_ns * times
        self.infer_ns += infer_ns * times
        self.output_ns += output_ns * times

    def parts(self) -> dict[str, tuple[int, int]]:
        return {
            "compute_input": (self.executions, self.input_ns),
            "compute_infer": (self.executions, self.infer_ns),
            "compute_output": (self.executions, self.output_ns),
        }


class VersionRecorder:
    """Counts for one version. Thread-safe: one lock, held for the update alone.

    `wall_clock_ns` says the time since 1970; it is read once per batch, for ModelStatistics' `last_inference`. `settle`
    brings in what is counted elsewhere until somebody asks; called without the lock.
    """

    def __init__(
        self, key: VersionKey, wall_clock_ns: Callable[[], int] = time.time_ns, settle: Callable[[], None] = lambda: None
    ) -> None:
        self.key = key
        self._settle = settle
        self._wall_clock_ns = wall_clock_ns
        self._lock = threading.Lock()
        self._phases = {phase: Histogram(LATENCY_EDGES_NS) for phase in PHASES}
        self._batch_rows = Histogram(ROWS_EDGES)
        self._answered_cost = _BatchCost()
        self._size_costs: dict[int, _BatchCost] = {}
        self._released: dict[str, int] = {}
        self._devices: dict[str, int] = {}
        self._requests = dict.fromkeys(OUTCOMES, 0)
        self._refused = dict.fromkeys(REFUSALS, 0)
        self._failed_ns = 0
        self._inference_count = 0
        self._last_inference_ms = 0
        self._memory_bytes = 0
        self._late = 0
        self._padding_rows = 0
        self._elements = 0
        self._padding_elements = 0
        self._cache_hit = [0, 0]  # count, ns
        self._cache_miss = [0, 0]
        self._cache_evictions = 0
        self._answers: AnswerCosts | None = None
        self._features: Histogram | None = None
        self.invalid = InvalidCounts()
        """Rows that broke a constraint, of whichever replica."""

    def batch(
        self,
        *,
        spans: NDArray[np.int64],
        arrival_ns: NDArray[np.int64],
        deadline_ns: NDArray[np.int64],
        answered: NDArray[np.bool_],
        failed: NDArray[np.bool_],
        taken_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
        finished_ns: int,
        padded_rows: int,
        released: str,
        elements: int = 0,
        padding_elements: int = 0,
        device: str = "cpu",
    ) -> None:
        """Record one executed batch, after its last answer has been handed over.

        Shapes: `spans` `[B + 1]` as in `Batch`, the other arrays `[B]`. `answered` is what `DataPlane.finish` returned, and
        `failed` marks the requests that were given an error. `padded_rows` is P: rows executed; `elements`, too, as in `Batch`.
        Units: `taken_ns`, `finished_ns`, `arrival_ns`, `deadline_ns` monotonic; the others durations of the whole batch.
        Raises: ValueError when P is less than the requests' own rows (a bug in the caller, nothing is recorded).
        """
        rows = int(spans[-1])
        if padded_rows < rows:
            raise ValueError(f"{self.key}: {padded_rows} executed rows cannot hold the {rows} rows of the batch")
        waits_ns, ok_rows, abandoned, failures, failed_ns = taken_ns - arrival_ns, rows, 0, 0, 0
        after_ns = finished_ns - taken_ns
        if np.count_nonzero(answered) < arrival_ns.size or np.count_nonzero(failed):
            ok = answered & ~failed
            failures = int(np.count_nonzero(failed))
            abandoned = arrival_ns.size - failures - int(np.count_nonzero(ok))
            ok_rows = int(np.diff(spans)[ok].sum())
            failed_ns = int(waits_ns[~ok].sum()) + (failures + abandoned) * after_ns
            waits_ns, deadline_ns = waits_ns[ok], deadline_ns[ok]
        oks = waits_ns.size
        with self._lock:
            self._phases["queue"].observe(waits_ns)
            self._phases["total"].observe(waits_ns + after_ns)
            if oks:
                self._phases["execute"].observe_one(input_ns + infer_ns + output_ns, oks)
            self._answered_cost.add(input_ns, infer_ns, output_ns, oks)
            self._size_cost(padded_rows).add(input_ns, infer_ns, output_ns, 1)
            self._batch_rows.observe_one(rows)
            self._requests["ok"] += oks
            self._requests["failed"] += failures
            self._requests["abandoned"] += abandoned
            self._failed_ns += failed_ns
            self._released[released] = self._released.get(released, 0) + 1
            self._devices[device] = self._devices.get(device, 0) + 1
            self._inference_count += ok_rows
            self._late += int(np.count_nonzero(deadline_ns < finished_ns))
            self._padding_rows += padded_rows - rows
            self._elements += elements
            self._padding_elements += padding_elements
            self._last_inference_ms = self._wall_clock_ns() // NS_PER_MS

    def _size_cost(self, size: int) -> _BatchCost:
        cost = self._size_costs.get(size)
        if cost is None:
            cost = self._size_costs[size] = _BatchCost()
        return cost

    def refused(self, reason: str, count: int = 1) -> None:
        """Record requests that ended without execution. Raises: ValueError for a reason that is not in `REFUSALS`."""
        if reason not in self._refused:
            raise ValueError(f"unknown reason '{reason}' for a refusal; one of {', '.join(REFUSALS)}")
        if count < 0:
            raise ValueError(f"a counter cannot take {count}")
        with self._lock:
            self._refused[reason] += count
            self._requests["refused"] += count

    def cache_hit(self, lookup_ns: int, total_ns: int) -> None:
        """Record a request that was answered from the response cache: it neither waited nor was executed."""
        with self._lock:
            self._cache_hit[0] += 1
            self._cache_hit[1] += lookup_ns
            self._phases["total"].observe_one(total_ns)
            self._requests["ok"] += 1

    def cache_miss(self, lookup_ns: int) -> None:
        """Record a request whose answer was looked for in vain."""
        with self._lock:
            self._cache_miss[0] += 1
            self._cache_miss[1] += lookup_ns

    def cache_kept(self, keep_ns: int, evictions: int) -> None:
        """Record that the answer of a missed request was kept, or was too large, and how many were forgotten for it."""
        with self._lock:
            self._cache_miss[1] += keep_ns
            self._cache_evictions += evictions

    def features(self, took_ns: int) -> None:
        """Record how long the features of one batch took; it is part of the batch's `input_ns` as well."""
        with self._lock:
            if self._features is None:
                self._features = Histogram(LATENCY_EDGES_NS)
            self._features.observe_one(took_ns)

    def answers(self, durations_ns: NDArray[np.int64], end: str, end_ns: int) -> None:
        """Record the answers of one request to a decoupled version; see `AnswerCosts.add`."""
        with self._lock:
            if self._answers is None:
                self._answers = AnswerCosts()
            self._answers.add(durations_ns, end, end_ns)

    def hold_memory(self, memory_bytes: int) -> None:
        """State what the loaded version holds now; 0 once it is unloaded."""
        with self._lock:
            self._memory_bytes = memory_bytes

    def snapshot(self) -> VersionStats:
        """Everything recorded so far, of one instant."""
        self._settle()
        with self._lock:
            phases = {phase: histogram.copy() for phase, histogram in self._phases.items()}
            batch_rows = self._batch_rows.copy()
            requests = dict(self._requests)
            unanswered = requests["failed"] + requests["abandoned"] + requests["refused"]
            return VersionStats(
                key=self.key,
                inference_count=self._inference_count,
                execution_count=batch_rows.count,
                last_inference_ms=self._last_inference_ms,
                durations={
                    "success": (phases["total"].count, phases["total"].sum),
                    "fail": (unanswered, self._failed_ns),
                    "queue": (phases["queue"].count + self._cache_hit[0], phases["queue"].sum),
                    "cache_hit": (self._cache_hit[0], self._cache_hit[1]),
                    "cache_miss": (self._cache_miss[0], self._cache_miss[1]),
                    **self._answered_cost.parts(),
                },
                batches=[(size, self._size_costs[size].parts()) for size in sorted(self._size_costs)],
                memory_bytes=self._memory_bytes,
                histograms=phases,
                batch_rows=batch_rows,
                released=dict(self._released),
                requests=requests,
                refused=dict(self._refused),
                late=self._late,
                rows=batch_rows.sum,
                padding_rows=self._padding_rows,
                elements=self._elements,
                padding_elements=self._padding_elements,
                devices=dict(self._devices),
                cache_evictions=self._cache_evictions,
                answers={} if self._answers is None else self._answers.durations(),
                features=None if self._features is None else self._features.copy(),
                invalid=self.invalid.rows(),
            )
