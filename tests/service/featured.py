"""Features of a version whose rows follow from their key alone, and batches of requests that bring nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from feature_client.schema import DEFAULTED, Status
from server.core.errors import FeaturesUnavailable, InvalidRequest
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import Batch, Execution, QueueRules
from server.dataplane.ticket import NO_DEADLINE_NS
from server.features.interface import Joined

NAMES = ("delay", "rate")
CALLERS = Signature("m", (TensorSpec("id", "INT64", (1,)),), (TensorSpec("y", "FP32", (1,)),), 64)
"""What callers bring; the model itself is given `x`, which is the key as FP32."""
BUCKETS = (1, 2, 4, 8, 16, 32, 64)

UNAVAILABLE, BROKEN, REFUSED, STALE = -1, -2, -3, -4
"""Keys for which nothing can be computed, the code fails, no default may stand in, and one does."""


class KeyFeatures:
    """`x` is the key. Notes the budget of every join, and calls `asked` in it."""

    signature = CALLERS
    names: tuple[str, ...] = NAMES

    def __init__(self, asked: Callable[[], None] = lambda: None) -> None:
        self.asked = asked
        self.budgets_s: list[float] = []
        self.rows: list[tuple[int, int]] = []

    def check(self, given: frozenset[str]) -> None:
        if "id" not in given:
            raise InvalidRequest("expected input 'id'")

    def join(self, inputs: Mapping[str, Array], rows: int, budget_s: float) -> Joined:
        self.budgets_s.append(budget_s)
        self.asked()
        ids: Any = inputs["id"]
        self.rows.append((rows, len(ids)))
        keys = ids[:rows, 0]
        if (keys == UNAVAILABLE).any():
            raise FeaturesUnavailable("'rate' cannot be computed") from ValueError(ids)
        if (keys == BROKEN).any():
            raise KeyError("/secret/path")
        statuses = np.zeros((rows, len(NAMES)), np.uint8)
        statuses[keys == STALE, 1] = Status.STALE | DEFAULTED
        statuses[keys == REFUSED] = Status.NULL, Status.TIMEOUT
        return Joined({"x": ids.astype(np.float32)}, statuses, keys == REFUSED)


def batch_of(keys: list[list[int]], *, padding: bool = True, deadline_ns: list[int] | None = None, handle: Any = None) -> Batch:
    """Requests of one row per key."""
    sizes = [len(each) for each in keys]
    spans = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    total = int(spans[-1])
    padded = next(size for size in BUCKETS if size >= total) if padding else total
    rows = np.empty((padded, 1), np.int64)
    rows[:total, 0] = [key for each in keys for key in each]
    rows[total:] = rows[0]
    rules = QueueRules(1, VersionKey("m", 1), CALLERS, "cpu", BUCKETS, (0,) * len(BUCKETS), padding, 0, True, 0, handle)
    deadlines = np.array(deadline_ns or [NO_DEADLINE_NS] * len(keys), np.int64)
    nothing = np.zeros(len(keys), np.int64)
    return Batch(
        rules, {"id": rows}, spans, nothing, deadlines, nothing.view(np.uint64), "full", [None] * len(keys), Execution(0)
    )
