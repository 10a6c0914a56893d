"""Podium's monitors on the streams, through the code that serves: samples, counter, windows, judge."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.drift.playing import Seen
from bench.drift.streams import FEATURES, Table
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.build import build
from server.monitoring.monitors import Monitors
from server.monitoring.samples import Columns, Samples
from server.monitoring.verdict import DriftState, Finding, WindowVerdict

DATASET, ANY = "the version's alarm", "any detector alone"
KEY, ARM = VersionKey("streams", 1), "champion"
HOUR_US = 3_600_000_000
BEGIN_US = 1_704_067_200_000_000
"""The first of January 2024: windows are whole hours from there."""
_BATCH = 4096


class Detector:
    """One version with its defaults. An alarm counts in every window that it lasts."""

    name = "Podium"
    rules: Sequence[str] = (DATASET, ANY)
    memory, blind, at_once = True, False, 1

    def __init__(self, settings: ModelSettings | None = None) -> None:
        self._settings = ModelSettings() if settings is None else settings
        self._now_us = BEGIN_US
        self._monitors = Monitors(wall_us=lambda: self._now_us)
        self._next = 0

    def fit(self, rows: Table, window_rows: int) -> None:
        """The baseline is made as a registration makes it, of rows without timestamps."""
        self._monitors = Monitors(wall_us=lambda: self._now_us)
        baseline = build(samples_of(rows, BEGIN_US), self._settings, timed=False)
        self._monitors.serve(KEY, self._settings, baseline, (ARM,))

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """Rows of a window come in pieces, as batches do; then the clock moves on, until the window is judged."""
        made = []
        for index, rows in enumerate(windows, first):
            verdict = self.judged(index, rows)
            named = {finding.stream for finding in verdict.findings if finding.alarm}
            made.append(Seen({DATASET: verdict.state is DriftState.ALARM, ANY: bool(named)}, len(named)))
        return made

    def effect(self, rows: Table) -> float:
        """The debiased PSI of the first column."""
        return finding_of(self.judged(self._next, rows), "x[0]").effect

    def judged(self, index: int, rows: Table) -> WindowVerdict:
        """The verdict on one window. Raises: ValueError unless it is exactly one."""
        self._next = index + 1
        self._now_us = BEGIN_US + index * HOUR_US
        for begin in range(0, rows.rows, _BATCH):
            self._monitors.add([samples_of(part(rows, begin, begin + _BATCH), self._now_us)])
        self._now_us += HOUR_US + math.ceil(self._settings.monitoring.grace_s * 1e6)
        (verdict,) = self._monitors.tick(self._now_us)
        return verdict


def finding_of(verdict: WindowVerdict, stream: str) -> Finding:
    """What was found of a stream's distribution."""
    return next(finding for finding in verdict.findings if (finding.stream, finding.check) == (stream, "distribution"))


def part(rows: Table, begin: int, end: int) -> Table:
    """Consecutive rows, without copying."""
    return Table(rows.numbers[begin:end], rows.codes[begin:end])


def samples_of(rows: Table, start_us: int) -> Samples:
    """Rows of a table as samples of a served version: one input with many columns, and one text for each column of codes."""
    inputs: dict[str, NDArray[np.generic] | NDArray[np.object_]] = {"x": rows.numbers}
    words = np.array([str(code).encode() for code in range(FEATURES)], dtype=object)
    inputs |= {f"c{index}": words[rows.codes[:, index]][:, np.newaxis] for index in range(rows.codes.shape[1])}
    return samples(inputs, {}, np.full(rows.rows, start_us, np.int64))


def samples(
    inputs: Columns, outputs: Columns, time_us: NDArray[np.int64], identities: NDArray[np.uint64] | None = None
) -> Samples:
    """Samples of a version without features, all of them taken. Shapes: every array `[N, ...]`."""
    rows = len(time_us)
    return Samples(
        key=KEY,
        arm=ARM,
        epoch=0,
        weight=1.0,
        time_us=time_us,
        id_hash=np.arange(rows, dtype=np.uint64) if identities is None else identities,
        row=np.zeros(rows, np.int32),
        inclusion=np.ones(rows),
        queue_us=np.zeros(rows, np.int64),
        execute_us=np.zeros(rows, np.int64),
        inputs=inputs,
        callers={},
        outputs=outputs,
        features=(),
        statuses=np.zeros((rows, 0), np.uint8),
    )
