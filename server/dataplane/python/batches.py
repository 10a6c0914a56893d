"""A release of the plan as a batch that can run."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from server.core.errors import BackendFailed
from server.core.tensors import Array
from server.dataplane.interface import Batch, Execution
from server.dataplane.plan import Release
from server.dataplane.rows import brought, gather

_log = logging.getLogger("podium.dataplane")


def batch_of(release: Release, parts: Sequence[Mapping[str, Array]], taken_ns: int) -> Batch:
    """The batch of a release; with a fault and without rows where they could not be gathered."""
    rules, tickets = release.queue.rules, release.tickets
    spans = np.zeros(len(tickets) + 1, dtype=np.int64)
    np.cumsum([ticket.rows for ticket in tickets], out=spans[1:])
    inputs: dict[str, Array] = {}
    elements = 0
    fault: BackendFailed | None = None
    try:
        inputs = gather(parts, release.rows, rules.padded(release.rows), rules.allocate, rules.signature)
        elements = brought(parts, rules.signature)
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
        elements=elements,
    )
