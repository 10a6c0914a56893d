"""Evidently's `DataDriftPreset` as it comes, once a window: the window against the whole reference.

The preset takes 15 s a window here, most of it for drawing. So it is run whole on the first window, and from then on the tests
that it chooses by itself (`get_stattest` without an argument, the default threshold, drift of the dataset from half the columns
on); that both name the same columns with the same scores is checked on that first window.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType
from evidently.presets import DataDriftPreset

from bench.drift.peers.frames import frame
from bench.drift.playing import Seen
from bench.drift.streams import Table

DISTRIBUTION = "evidently"
DATASET, ANY = "half of the columns", "any column"


class Detector:
    """The default rule of the dataset, and beside it what a reader of its columns would call an alarm."""

    name, rules, memory, blind, at_once = "Evidently", (DATASET, ANY), False, False, 1

    def __init__(self) -> None:
        self._reference = pd.DataFrame()
        self._checked = False

    def fit(self, rows: Table, window_rows: int) -> None:
        """The reference is all rows of the baseline."""
        self._reference = frame(rows)

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """Raises: ValueError where the preset says something else."""
        return [self._see(frame(rows)) for rows in windows]

    def effect(self, rows: Table) -> float:
        """Its score of a column."""
        return float(self._results(frame(rows), ["x0"])["x0"].drift_score)

    def _see(self, current: Any) -> Seen:
        results = self._results(current, list(current))
        if not self._checked:
            self._check(current, {name: float(result.drift_score) for name, result in results.items()})
            self._checked = True
        drifted = sum(bool(result.drifted) for result in results.values())
        return Seen({DATASET: drifted >= 0.5 * len(results), ANY: drifted > 0}, drifted)

    def _results(self, current: Any, names: Sequence[str]) -> dict[str, Any]:
        results = {}
        for name in names:
            reference, column = self._reference[name].dropna(), current[name].dropna()
            kind = ColumnType.Numerical if name.startswith("x") else ColumnType.Categorical
            results[name] = get_stattest(reference, column, kind, None)(reference, column, kind, None)
        return results

    def _check(self, current: Any, scores: dict[str, float]) -> None:
        numbers = [name for name in current if name.startswith("x")]
        codes = [name for name in current if name.startswith("c")]
        definition = DataDefinition(numerical_columns=numbers, categorical_columns=codes)
        datasets = [Dataset.from_pandas(part, data_definition=definition) for part in (current, self._reference)]
        metrics = Report([DataDriftPreset()]).run(*datasets).dict()["metrics"]
        said = {metric["config"]["column"]: metric["value"] for metric in metrics if "column" in metric["config"]}
        wrong = [name for name, score in scores.items() if not math.isclose(said[name], score, rel_tol=1e-9, abs_tol=1e-12)]
        if wrong:
            raise ValueError(f"the preset scores {wrong[0]} {said[wrong[0]]}, its test alone {scores[wrong[0]]}")
