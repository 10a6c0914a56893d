"""Effects, evidence and detectors together: hourly windows with a harmless wobble, and then a shift of one stream of many.

`bench/drift` does the same for months, against other libraries.
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from server.statistics.detector import EMPTY, e_value, family, step
from server.statistics.distances import psi
from server.statistics.evidence import psi_evidence, tolerated_psi

FEATURES, WINDOWS, ROWS, ALARM = 100, 168, 20_000, 672
EDGES = stats.norm.ppf(np.concatenate(([0.0], np.arange(1, 10) / 10, [1.0])))


def shares(shift: float) -> NDArray[np.float64]:
    return np.asarray(np.diff(stats.norm.cdf(EDGES, loc=shift)))


class Streams:
    """A detector for each feature, of normal values in deciles; its baseline is a sample, and the same for all windows."""

    def __init__(self, seed: int, rows: int) -> None:
        self.random, self.rows = np.random.default_rng(seed), rows
        self.baselines = self.random.multinomial(ROWS, shares(0.0), FEATURES)
        self.logs = [EMPTY] * FEATURES

    def window(self, common: float, of_the_first: float = 0.0) -> float:
        """The logarithm of the family after one more window. Means are moved by `common`, the first feature's further."""
        counts = self.random.multinomial(self.rows, shares(common), FEATURES)
        counts[0] = self.random.multinomial(self.rows, shares(common + of_the_first))
        for place, (before, after) in enumerate(zip(self.baselines, counts, strict=True)):
            p = psi_evidence(psi(before, after), 10, ROWS, self.rows, tolerated_psi(0.1)).p
            self.logs[place] = step(self.logs[place], e_value(p))
        return family(self.logs)


@pytest.mark.parametrize(("rows", "most"), [(200, 8), (1_000, 2), (10_000, 1)])
def test_a_week_without_alarm_and_then_a_shift_of_one_feature_is_found(rows: int, most: int) -> None:
    streams = Streams(rows, rows)
    wobble = 0.05 * np.sin(2 * math.pi * np.arange(WINDOWS) / 24)
    assert max(streams.window(float(common)) for common in wobble) < math.log(ALARM)
    delay = 1
    while streams.window(0.0, 0.3) < math.log(ALARM):
        delay += 1
        assert delay <= most
    assert int(np.argmax(streams.logs)) == 0
