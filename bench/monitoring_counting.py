"""Rows to counts: 100 float32 features on one core, against the simplest way that numpy offers, in one run.

The other side makes a histogram of each column by `np.histogram` with the same edges. It counts less: no sums, nothing of
values that are out of range, missing or infinite. So a ratio below 1 is what these cost; what is required is rows per second.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.record import machine, write
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.build import build
from server.monitoring.counting import Counter
from server.monitoring.samples import Samples
from server.monitoring.streams import Numeric

FEATURES, ROWS = 100, (1000, 3000, 10_000)
REQUIRED_ROWS_PER_S = 200_000
_PAIRS, _SECONDS, _BASELINE_ROWS = 7, 0.5, 20_000

Values = NDArray[np.float32]


def samples_of(values: Values) -> Samples:
    """Rows of one input that is packed, as a version with 100 features has it."""
    rows = len(values)
    return Samples(
        key=VersionKey("bench", 1),
        arm="champion",
        epoch=0,
        weight=1.0,
        time_us=np.zeros(rows, dtype=np.int64),
        id_hash=np.zeros(rows, dtype=np.uint64),
        row=np.zeros(rows, dtype=np.int32),
        inclusion=np.ones(rows),
        queue_us=np.zeros(rows, dtype=np.int64),
        execute_us=np.zeros(rows, dtype=np.int64),
        inputs={"x": values},
        callers={},
        outputs={},
        features=(),
        statuses=np.empty((rows, 0), dtype=np.uint8),
    )


def rows_per_s(count: Callable[[], object], rows: int) -> float:
    """How many rows a second of CPU time counts: what others do on the machine is not in it."""
    begun, calls = time.process_time(), 0
    while (taken := time.process_time() - begun) < _SECONDS:
        count()
        calls += 1
    return calls * rows / taken


def compare(rows: int, generator: np.random.Generator) -> dict[str, Any]:
    """Medians over pairs of runs in turns, and the median of their ratios."""
    baseline = build(samples_of(generator.standard_normal((_BASELINE_ROWS, FEATURES), dtype=np.float32)), ModelSettings())
    values = generator.standard_normal((rows, FEATURES), dtype=np.float32)
    values[generator.random(values.shape) < 0.01] = np.nan
    block, counter = samples_of(values), Counter(baseline.layout, ModelSettings())
    edges = [
        np.concatenate([[-np.inf], stream.edges, [np.inf]]).astype(np.float32)
        for stream in baseline.streams
        if isinstance(stream, Numeric)
    ]

    def simplest() -> list[NDArray[np.int64]]:
        # inf - inf is NaN in its search for bins of equal width, which these are not
        return [np.histogram(values[:, column], own)[0] for column, own in enumerate(edges)]

    ours, theirs = [], []
    with np.errstate(invalid="ignore"):
        for _ in range(_PAIRS):
            ours.append(rows_per_s(lambda: counter.count(block), rows))
            theirs.append(rows_per_s(simplest, rows))
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "rows_a_block": rows,
        "rows_per_s": statistics.median(ours),
        "rows_per_s_min_max": [min(ours), max(ours)],
        "histogram_rows_per_s": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_min_max": [min(ratios), max(ratios)],
        "required_rows_per_s": REQUIRED_ROWS_PER_S,
    }


def main() -> int:
    """Run, print, write bench/results/monitoring_counting.json. Exit status 1 if it is too slow."""
    facts = machine()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        rows = [compare(each, np.random.default_rng(1)) for each in ROWS]
    finally:
        os.sched_setaffinity(0, allowed)
    for row in rows:
        print(
            f"{row['rows_a_block']:>6} rows a block: {row['rows_per_s']:10,.0f} rows/s"
            f" (required {REQUIRED_ROWS_PER_S:,}), np.histogram {row['histogram_rows_per_s']:10,.0f}, ratio {row['ratio']:.2f}"
        )
    print(write("monitoring_counting", {"machine": facts, "features": FEATURES, "pairs": _PAIRS, "rows": rows}))
    return int(any(row["rows_per_s"] < REQUIRED_ROWS_PER_S for row in rows))
