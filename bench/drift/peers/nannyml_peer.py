"""NannyML's univariate drift calculator with its default methods and thresholds, chunks being as large as a window.

The thresholds are the mean and 3 standard deviations of the reference's chunks, each of them against the whole reference.

It has no rule for a dataset: who is told of an alert is told if any column has one. Missing values it judges by a calculator of
their own, which is run beside where there are some.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from collections.abc import Sequence
from typing import Any

import nannyml
import pandas as pd

from bench.drift.peers.frames import frame
from bench.drift.playing import Seen
from bench.drift.streams import DAY, Table

DISTRIBUTION = "nannyml"
ANY = "any column"


class Detector:
    """A day of windows is one call."""

    name, rules, memory, blind, at_once = "NannyML", (ANY,), False, False, DAY

    def __init__(self) -> None:
        self._calculators: list[Any] = []

    def fit(self, rows: Table, window_rows: int) -> None:
        """Thresholds come from the reference, in chunks of a window."""
        reference = frame(rows)
        options = {"column_names": list(reference), "chunk_size": window_rows}
        self._calculators = [nannyml.UnivariateDriftCalculator(**options)]
        if reference.isna().any(axis=None):
            self._calculators.append(nannyml.MissingValuesCalculator(**options))
        for calculator in self._calculators:
            calculator.fit(reference)

    def see(self, first: int, windows: Sequence[Table]) -> list[Seen]:
        """One chunk a window."""
        analysis = pd.concat([frame(rows) for rows in windows], ignore_index=True)
        alerts = sum(_alerts(calculator.calculate(analysis)) for calculator in self._calculators)
        if len(alerts) != len(windows):
            raise ValueError(f"{len(alerts)} chunks of {len(windows)} windows")
        return [Seen({ANY: bool(count)}, int(count)) for count in alerts]

    def effect(self, rows: Table) -> float:
        """Its distance of a column."""
        result = self._calculators[0].calculate(frame(rows)).filter(period="analysis").to_df()
        return float(result["x0"]["jensen_shannon"]["value"].iloc[0])


def _alerts(result: Any) -> Any:
    """How many columns have an alert, for each chunk."""
    table = result.filter(period="analysis").to_df()
    named = [column for column in table if column[-1] == "alert"]
    return table[named].to_numpy(dtype=bool).sum(axis=1)
