"""alibi-detect's `TabularDrift` as it comes: a Kolmogorov-Smirnov test a number, a chi-square test a category, p < 0.05 after
Bonferroni's correction, once a window. Without categories that is its `KSDrift`.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from collections.abc import Sequence
from typing import Any

import numpy as np
from alibi_detect.cd import TabularDrift

from bench.drift.playing import Seen
from bench.drift.streams import Table

DISTRIBUTION = "alibi-detect"
ANY = "any column, Bonferroni"


class Detector:
    """Its own rule for a dataset is that any column is beyond the corrected threshold."""

    name, rules, memory, blind, at_once = "alibi-detect", (ANY,), False, False, 1

    def __init__(self) -> None:
        self._detector: Any = None

    def fit(self, rows: Table, window_rows: int) -> None:
        """The reference is all rows of the baseline."""
        numbers, codes = rows.numbers.shape[1], rows.codes.shape[1]
        categories = {numbers + index: None for index in range(codes)}
        self._detector = TabularDrift(_matrix(rows), p_val=0.05, categories_per_feature=categories or None)

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """One prediction a window."""
        return [self._see(rows) for rows in windows]

    def effect(self, rows: Table) -> float:
        """Its distance of a column."""
        return float(self._detector.predict(_matrix(rows))["data"]["distance"][0])

    def _see(self, rows: Table) -> Seen:
        data = self._detector.predict(_matrix(rows))["data"]
        return Seen({ANY: bool(data["is_drift"])}, int((np.asarray(data["p_val"]) < data["threshold"]).sum()))


def _matrix(rows: Table) -> Any:
    return np.concatenate([rows.numbers, rows.codes.astype(np.float32)], axis=1) if rows.codes.size else rows.numbers
