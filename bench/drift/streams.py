"""Seeded streams of windows with a known change, or none. **Pure**, and numpy alone: peers make the same rows themselves.

A window is made when it is asked for, from its own seed, so nobody holds a stream in memory and anybody can begin anywhere.
Numbers are N(0, 1) but for a daily wobble that all columns share: harmless, and the reason why a test of "no difference at all"
must alarm in the end. The baseline has no wobble.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kind = Literal["numbers", "categories", "missing"]

FEATURES, BASELINE_ROWS, WINDOWS, DAY = 100, 100_000, 672, 24
"""672 hourly windows are four weeks."""
WOBBLE_SD, SHIFT_SD = 0.05, 0.3
CATEGORICAL, VOCABULARY, NEW_RATIO = 10, 8, 0.01
"""Of the kind "categories": so many columns of codes below `VOCABULARY`; the change is a new code in so many of the rows."""
INCOMPLETE, MISSING_RATIO, MISSING_AFTER = 10, 0.01, 0.03
"""Of the kind "missing": so many columns are NaN in so many of the rows; the change is the other ratio in the first of them."""
OUTLIER = 1e4


@dataclass(frozen=True, slots=True)
class Table:
    """Rows. Shapes: `numbers` float32 `[N, FEATURES - C]`, NaN where missing; `codes` int64 `[N, C]`; C is 0 but for the kind
    "categories".
    """

    numbers: NDArray[np.float32]
    codes: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.numbers)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One stream: `rows` a window; the first column of its kind changes in window `change_at`, never where that is None."""

    kind: Kind
    rows: int
    seed: int = 1
    change_at: int | None = None

    def as_json(self) -> dict[str, Any]:
        """What another process needs to make the same rows."""
        return {"kind": self.kind, "rows": self.rows, "seed": self.seed, "change_at": self.change_at}


def from_json(document: Mapping[str, Any]) -> Scenario:
    """The scenario that `as_json` wrote."""
    return Scenario(**document)


def baseline(scenario: Scenario, rows: int = BASELINE_ROWS) -> Table:
    """The rows that windows are compared with: one table for each kind and seed, whatever the windows' size."""
    return _rows(replace(scenario, rows=rows, change_at=None), np.random.default_rng([scenario.seed, 0]), 0.0, False)


def window(scenario: Scenario, index: int) -> Table:
    """The rows of one window, the first being 0."""
    wobble = WOBBLE_SD * math.sin(2 * math.pi * index / DAY)
    changed = scenario.change_at is not None and index >= scenario.change_at
    return _rows(scenario, np.random.default_rng([scenario.seed, 1, scenario.rows, index]), wobble, changed)


def with_outlier(table: Table, column: int = 0) -> Table:
    """The same rows, and the first of them once more with one number that nobody has ever seen."""
    row = table.numbers[:1].copy()
    row[0, column] = OUTLIER
    return Table(np.concatenate([table.numbers, row]), np.concatenate([table.codes, table.codes[:1]]))


def digest(table: Table) -> str:
    """Equal for equal rows: how processes show that they judged the same."""
    return f"{zlib.crc32(table.codes.tobytes(), zlib.crc32(table.numbers.tobytes())):08x}"


def _rows(scenario: Scenario, random: np.random.Generator, wobble: float, changed: bool) -> Table:
    rows, kind = scenario.rows, scenario.kind
    numbers = random.standard_normal((rows, FEATURES - (CATEGORICAL if kind == "categories" else 0)), dtype=np.float32)
    numbers += np.float32(wobble)
    codes = np.empty((rows, 0), np.int64)
    if kind == "categories":
        weights = 1.0 / np.arange(1, VOCABULARY + 1)
        codes = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], random.random((rows, CATEGORICAL)), side="right")
        if changed:
            codes[random.random(rows) < NEW_RATIO, 0] = VOCABULARY
    elif kind == "missing":
        ratios = np.full(INCOMPLETE, MISSING_RATIO)
        if changed:
            ratios[0] = MISSING_AFTER
        numbers[:, :INCOMPLETE][random.random((rows, INCOMPLETE)) < ratios] = np.nan
    elif changed:
        numbers[:, 0] += np.float32(SHIFT_SD)
    return Table(numbers, codes)
