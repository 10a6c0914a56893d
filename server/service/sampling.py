"""What was answered of one batch, as the sampler takes it.

Floor 5, on the engine's thread, after the answers have left. Requests that failed, were refused or had left are not sampled:
they got no prediction. Answers that were remembered from before executed nothing, and are not sampled either.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.tensors import Array
from server.dataplane.interface import Batch, Part
from server.features.interface import STATUSES_OUTPUT
from server.lifecycle.replica import Replica
from server.monitoring.picked import Served
from server.monitoring.sampler import Sampler
from server.service.join import Piece

_log = logging.getLogger("podium.monitoring")
_NONE: Mapping[str, Array] = {}


def sample(
    sampler: Sampler,
    replica: Replica,
    batch: Batch,
    parts: Sequence[Part],
    pieces: Sequence[Piece],
    answered: NDArray[np.bool_],
) -> None:
    """Offer every request of a finished batch that got outputs. Shapes: `answered` bool `[B]`.

    `pieces`: the batch with its features, where its version has any.
    """
    if not sampler.wants(replica.key) or batch.rules.decoupled:
        return
    try:
        _sample(sampler, replica, batch, parts, pieces, answered)
    except Exception:  # noqa: BLE001 - everybody has been answered; an engine must not end for want of a sample
        _log.exception("a batch could not be sampled", extra={"model": str(replica.key)})


def _sample(
    sampler: Sampler,
    replica: Replica,
    batch: Batch,
    parts: Sequence[Part],
    pieces: Sequence[Piece],
    answered: NDArray[np.bool_],
) -> None:
    execution, batching, count = batch.execution, bool(batch.rules.signature.max_batch), len(answered)
    for part in parts:
        outputs = part.outputs
        if not outputs:
            continue
        first, last = part.first, part.last
        if first == 0 and last == count and batching and not pieces:
            # nearly every batch
            served = Served(
                batch.spans,
                batch.id_hashes,
                batch.arrival_ns,
                answered,
                batch.inputs,
                _NONE,
                outputs,
                None,
                execution.taken_ns,
                execution.ran_ns - execution.started_ns,
                execution.rows,
            )
            sampler.offer(replica.key, served)
            continue
        inputs, callers = _inputs(replica, batch, pieces, first, last)
        statuses: Any = outputs.get(STATUSES_OUTPUT)
        outputs = {name: array for name, array in outputs.items() if name != STATUSES_OUTPUT}
        if not batching:
            inputs, callers, outputs = _one_row(inputs), _one_row(callers), _one_row(outputs)
        sampler.offer(
            replica.key,
            Served(
                spans=batch.spans[first : last + 1],
                id_hashes=batch.id_hashes[first:last],
                arrival_ns=batch.arrival_ns[first:last],
                answered=answered[first:last],
                inputs=inputs,
                callers=callers,
                outputs=outputs,
                statuses=statuses,
                taken_ns=execution.taken_ns,
                execute_ns=execution.ran_ns - execution.started_ns,
                rows=int(batch.spans[last] - batch.spans[first]),
            ),
        )


def _inputs(
    replica: Replica, batch: Batch, pieces: Sequence[Piece], first: int, last: int
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """What the backend was given for requests `first:last`, and what was brought beside that; row 0 is their first."""
    spans = batch.spans
    whole = (first, last) == (0, len(spans) - 1)
    for piece in pieces:
        if piece.first <= first and last <= piece.last and piece.joined is not None:
            own = slice(int(spans[first] - spans[piece.first]), int(spans[last] - spans[piece.first]))
            given = piece.joined.inputs
            rows = slice(int(spans[first]), int(spans[last]))
            beside = {name: array[rows] for name, array in batch.inputs.items() if name not in given}
            return {name: array[own] for name, array in given.items()}, beside
    if whole or not replica.signature.max_batch:
        return batch.inputs, {}
    rows = slice(int(spans[first]), int(spans[last]))
    return {name: array[rows] for name, array in batch.inputs.items()}, {}


def _one_row(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A model without a batch dimension executes one request at a time."""
    return {name: array[np.newaxis] for name, array in arrays.items()}
