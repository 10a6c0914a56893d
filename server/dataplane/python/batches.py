"""A release of the plan as a batch that can run."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from server.core.errors import BackendFailed
from server.core.tensors import Array
from server.dataplane.interface import Batch, Execution
from server.dataplane.plan import Release
from server.dataplane.rows import gather

_log = logging.getLogger("podium.dataplane")


def batch_of(release: Release, parts: Sequence[Mapping[str, Array]], taken_ns: int) -> Batch:
    """The batch of a release; with a fault and without rows where they could not be gathered."""
    rules, tickets = release.queue.rules, release.tickets
    padded_rows = release.queue.costs.bucket_rows(release.rows) if rules.padding else release.rows
    spans = np.zeros(len(tickets) + 1, dtype=np.int64)
    np.cumsum([ticket.rows for ticket in tickets], out=spans[1:])
    inputs: dict[str, Array] = {}
    fault: BackendFailed | None = None
    try:
        inputs = gather(parts, release.rows, padded_rows, rules.allocate)
    except Exception as error:  # noqa: BLE001 - whatever it was (no memory, say), these tickets are taken and must be answered
        _log.exception("a batch could not be gathered", extra={"model": str(rules.key), "rows": release.rows})
        fault = BackendFailed(f"the batch could not be gathered: {type(error).__name__}")
    return Batch(
        rules=rules,
        inputs=inputs,
        spans=spans,
        arrival_ns=np.array([ticket.arrival_ns for ticket in tickets], dtype=np.int64),
        deadline_ns=np.array([ticket.deadline_ns for ticket in tickets], dtype=np.int64),
        id_hashes=np.array([ticket.id_hash for ticket in tickets], dtype=np.uint64),
        execution=Execution(taken_ns, rows=release.rows),
        released=release.reason,
        tickets=tickets,
        token=release.token,
        staged=release.staged,
        fault=fault,
    )
