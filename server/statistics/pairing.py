"""Pairs of a positive and a negative, in order of arrival: what makes an AUC a mean of values in [0, 1]. **Pure.**

Floor 1: a frozen value of bounded size. Each row is in one pair at most, so what a pair says is new.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from server.statistics.scores import Floats, binary

WAITING_MOST = 1024
"""Rows that wait for one of the other class; beyond it the oldest is left out, whatever its score."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Scores that wait for one of the other class, oldest first; `label` is theirs."""

    label: int = 0
    waiting: tuple[float, ...] = ()

    def add(self, scores: ArrayLike, labels: ArrayLike) -> tuple[Self, Floats]:
        """With further rows `[N]`; and of each pair that is complete 1, 1/2 or 0: the positive's score above, equal, below.

        It does not matter how rows are cut into pieces. Raises: ValueError as `scores` says.
        """
        first, second = binary(scores, labels)
        waiting, label = deque(self.waiting, WAITING_MOST), self.label
        complete: list[float] = []
        for score, own in zip(first.tolist(), second.astype(np.intp).tolist(), strict=True):
            if not waiting or own == label:
                waiting.append(score)
                label = own
                continue
            other = waiting.popleft()
            higher, lower = (score, other) if own else (other, score)
            complete.append(1.0 if higher > lower else 0.5 if higher == lower else 0.0)
        return replace(self, label=label, waiting=tuple(waiting)), np.array(complete)
