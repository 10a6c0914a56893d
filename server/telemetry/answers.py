"""What the answers of a decoupled version cost, by their place in their request: Triton's `response_stats`. **Pure.**

Floor 2: a recorder owns one under its lock, once its version has answered by a stream.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

ANSWERS_COUNTED = 100
"""Answers of a request that are told apart; what comes after them is not counted here. A request may have millions."""

ENDS = ("empty_response", "fail", "cancel")
"""How the answers of a request end: there were no more, an error, or a caller who has gone."""


class AnswerCosts:
    """Sums by place. Not thread-safe.

    >>> costs = AnswerCosts()
    >>> costs.add(np.array([5, 1, 7, 2]), "empty_response", 3)
    >>> costs.durations()[1]
    {'compute_infer': (1, 7), 'compute_output': (1, 2), 'success': (1, 9)}
    >>> costs.durations()[2]
    {'empty_response': (1, 3)}
    """

    def __init__(self) -> None:
        self._infer = np.zeros((2, ANSWERS_COUNTED), dtype=np.int64)
        self._output = np.zeros((2, ANSWERS_COUNTED), dtype=np.int64)
        self._ends = {end: np.zeros((2, ANSWERS_COUNTED), dtype=np.int64) for end in ENDS}

    def add(self, durations_ns: NDArray[np.int64], end: str, end_ns: int) -> None:
        """One request's answers.

        Shapes: `durations_ns` `[2 A]`: computing and handing over of each of its first A answers, A <= `ANSWERS_COUNTED`.
        Units: ns; `end_ns` from the last of these to the end. Raises: KeyError for an end that is not in `ENDS`.
        """
        answers = len(durations_ns) // 2
        self._infer[0, :answers] += 1
        self._infer[1, :answers] += durations_ns[0::2]
        self._output[1, :answers] += durations_ns[1::2]
        if answers < ANSWERS_COUNTED:
            self._ends[end][:, answers] += (1, end_ns)

    def durations(self) -> dict[int, Mapping[str, tuple[int, int]]]:
        """(count, ns) by place and by the field names of InferResponseStatistics; what never happened is left out."""
        found: dict[int, Mapping[str, tuple[int, int]]] = {}
        for place in range(ANSWERS_COUNTED):
            count, infer_ns = self._infer[:, place].tolist()
            fields: dict[str, tuple[int, int]] = {}
            if count:
                output_ns = int(self._output[1, place])
                fields["compute_infer"] = (count, infer_ns)
                fields["compute_output"] = (count, output_ns)
                fields["success"] = (count, infer_ns + output_ns)
            for end, sums in self._ends.items():
                if sums[0, place]:
                    fields[end] = (int(sums[0, place]), int(sums[1, place]))
            if fields:
                found[place] = fields
        return found
