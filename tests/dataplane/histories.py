"""Small builders for data-plane tests: rows that can be recognised, replies that notice a second answer."""

from typing import Any

import numpy as np

from server.core.signature import CheckedRows, Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import QueueRules
from server.dataplane.ticket import NO_DEADLINE_NS, Ticket

ROW_SHAPE = (("X", (2,)),)


class CountingReply:
    """Never `done`, so that a second answer is seen instead of being swallowed."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        self.answers.append(result)

    def set_exception(self, error: BaseException, /) -> None:
        self.answers.append(error)


def rows_of(tag: int, rows: int, width: int = 2) -> CheckedRows:
    array = np.full((rows, width), tag, dtype=np.int64)
    array[:, 0] += np.arange(rows) * 1_000_000
    return CheckedRows({"X": array}, rows, (("X", (width,)),))


def ticket(
    tag: int = 0,
    rows: int = 1,
    *,
    arrival_ns: int = 0,
    deadline_ns: int = NO_DEADLINE_NS,
    priority: int = 0,
    queue_id: int = 1,
    width: int = 2,
    size_class: int = 0,
) -> Ticket:
    made = Ticket(rows_of(tag, rows, width), CountingReply(), arrival_ns, deadline_ns, priority)
    made.queue_id = queue_id
    made.size_class = size_class
    return made


def rules(queue_id: int = 1, *, max_batch: int = 8, costs_ns: tuple[int, ...] | None = None, **changes: Any) -> QueueRules:
    buckets = (*(size for size in (1, 2, 4, 8, 16, 32, 64) if size < max_batch), max_batch) if max_batch else (1,)
    signature = Signature("m", (TensorSpec("X", "INT64", (-1,)),), (TensorSpec("Y", "INT64", (-1,)),), max_batch)
    settings: dict[str, Any] = {
        "queue_id": queue_id,
        "key": VersionKey("m", queue_id),
        "signature": signature,
        "device": "cpu",
        "buckets": buckets,
        "costs_ns": costs_ns or (0,) * len(buckets),
        "padding": True,
        "max_requests": 0,
        "early_drop": True,
        "queue_delay_ns": 0,
        "handle": None,
    }
    return QueueRules(**(settings | changes))
