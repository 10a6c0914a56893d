"""A batch against the constraints of its version, so that a request with values that may not be is refused alone.

Floor 5, on the engine's thread and before the batch enters its device. What a caller brought is judged first; of features only
what no refusal for want of them has settled: whom a request shares its batch with must not change what it is told.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from server.core.errors import BackendFailed, InvalidValues
from server.core.validation import Breach, Constraints
from server.dataplane.interface import Batch, Part
from server.lifecycle.replica import Replica
from server.service.join import Piece
from server.service.refuse import row_slice

_log = logging.getLogger("podium.validate")
_NAMED = 8
"""Constraints that a refusal names."""


def validate(replica: Replica, batch: Batch, pieces: Sequence[Piece]) -> list[Part]:
    """The refusals of requests that own a row which breaks a constraint, in order; what breaks one is counted.

    Whatever the values are, this returns. A cost per batch, and one per request that is refused.
    """
    constraints = replica.constraints
    if constraints is None or batch.fault is not None:
        return []
    try:
        breaches = _breaches(constraints, batch, pieces)
        if not breaches:
            return []
        rows: Counter[tuple[str, str, str]] = Counter()
        for breach in breaches:
            rows[breach.stream, breach.constraint, constraints.action] += int(np.count_nonzero(breach.rows))
        replica.recorder.invalid.add(rows)
        return list(_refusals(breaches, batch)) if constraints.reject else []
    except Exception as bug:  # noqa: BLE001 - no memory, say; what could not be judged is not executed where it had to be
        _log.exception("a batch could not be validated", extra={"model": str(replica.key)})
        failed = BackendFailed(f"checking the inputs of '{replica.key.model}' failed: {type(bug).__name__}")
        return [Part(0, len(batch.spans) - 1, None, failed)] if constraints.reject else []


def among(parts: Sequence[Part], refused: Sequence[Part], spans: NDArray[np.int64]) -> list[Part]:
    """The parts of an executed batch with refusals in their places: who is refused is, whatever the execution gave.

    Ownership: views of outputs.
    """
    made: list[Part] = []
    refusals = {index: each for each in refused for index in range(each.first, each.last)}
    for part in parts:
        own = [index for index in range(part.first, part.last) if index in refusals]
        for before, index in pairwise([part.first - 1, *own, part.last]):
            if before + 1 < index:
                made.append(_cut(part, before + 1, index, spans))
            if index < part.last:
                made.append(Part(index, index + 1, None, refusals[index].error))
    return made


def _cut(part: Part, first: int, last: int, spans: NDArray[np.int64]) -> Part:
    if part.outputs is None:
        return Part(first, last, None, part.error)
    if (first, last) == (part.first, part.last):
        return part
    # several requests in one execution: then every output has the batch dimension
    rows = row_slice(spans, part.first, first, last)
    return Part(first, last, {name: array[rows] for name, array in part.outputs.items()})


def _breaches(constraints: Constraints, batch: Batch, pieces: Sequence[Piece]) -> list[Breach]:
    """Of all N rows of a batch."""
    found = constraints.brought(batch.inputs, batch.rows)
    for piece in pieces:
        joined = piece.joined
        if joined is None:
            continue
        own = row_slice(batch.spans, 0, piece.first, piece.last)
        for breach in constraints.made(batch.inputs, joined.inputs, joined.statuses, own.stop - own.start):
            rows = np.zeros(batch.rows, dtype=np.bool_)
            rows[own] = breach.rows
            if piece.refused is not None:
                rows[own] &= ~np.repeat(piece.refused, np.diff(batch.spans[piece.first : piece.last + 1]))
            if rows.any():
                found.append(breach._replace(rows=rows))
    return found


def _refusals(breaches: Sequence[Breach], batch: Batch) -> Iterator[Part]:
    broken = np.add.reduceat(np.stack([breach.rows for breach in breaches]), batch.spans[:-1], axis=1, dtype=np.int64)
    for index in np.flatnonzero(broken.any(axis=0)).tolist():
        rows = int(batch.spans[index + 1] - batch.spans[index])
        said = [
            f"'{breach.stream}' breaks {breach.said}" + (f" in {count} of {rows} rows" if rows > 1 else "")
            for breach, count in zip(breaches, broken[:, index].tolist(), strict=True)
            if count
        ]
        more = f" and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        text = f"invalid values for model '{batch.rules.key.model}': {', '.join(said[:_NAMED])}{more}"
        yield Part(index, index + 1, None, InvalidValues(text))
