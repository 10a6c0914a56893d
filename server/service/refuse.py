"""Who is answered with the outputs of a batch, and who must be refused for want of features. **Pure.**"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import DEFAULTED, Status, status_text
from server.core.errors import FeaturesUnavailable
from server.dataplane.interface import Part
from server.features.interface import STATUSES_OUTPUT, Joined
from server.service.join import Piece

_NAMED = 8
"""Features that a refusal names; more of them say no more."""


def answered(parts: Sequence[Part], pieces: Sequence[Piece], spans: NDArray[np.int64], names: Sequence[str]) -> list[Part]:
    """The parts of an executed batch, with the statuses of their rows beside the outputs, and refusals in their places.

    Whoever is refused is, whatever an execution with stand-ins gave. Parts and pieces each cover the batch in order; a part
    with outputs lies within one piece.
    Ownership: views of outputs and statuses.
    """
    made: list[Part] = []
    for piece in pieces:
        for part in parts:
            first, last = max(part.first, piece.first), min(part.last, piece.last)
            if first < last:
                made += _within(part, piece, first, last, spans, names)
    return made


def _within(part: Part, piece: Piece, first: int, last: int, spans: NDArray[np.int64], names: Sequence[str]) -> Iterator[Part]:
    """What requests `first:last` of both a part and a piece get."""
    joined = piece.joined
    if joined is None:
        yield Part(first, last, None, piece.error)
        return
    start = first
    if piece.refused is not None:
        for index in np.flatnonzero(piece.refused[first - piece.first : last - piece.first]).tolist():
            owner = first + index
            if start < owner:
                yield _cut(part, start, owner, spans, joined.statuses[row_slice(spans, piece.first, start, owner)])
            yield Part(owner, owner + 1, None, _refusal(joined, row_slice(spans, piece.first, owner, owner + 1), names))
            start = owner + 1
    if start < last:
        yield _cut(part, start, last, spans, joined.statuses[row_slice(spans, piece.first, start, last)])


def row_slice(spans: NDArray[np.int64], origin: int, first: int, last: int) -> slice:
    """The rows of requests `first:last`, counted from the first row of request `origin`."""
    return slice(int(spans[first] - spans[origin]), int(spans[last] - spans[origin]))


def _cut(part: Part, first: int, last: int, spans: NDArray[np.int64], statuses: NDArray[np.uint8]) -> Part:
    if part.outputs is None:
        return Part(first, last, None, part.error)
    outputs = part.outputs
    if (first, last) != (part.first, part.last):
        # several requests in one execution: then every output has the batch dimension
        rows = row_slice(spans, part.first, first, last)
        outputs = {name: array[rows] for name, array in outputs.items()}
    return Part(first, last, {**outputs, STATUSES_OUTPUT: statuses})


def _refusal(joined: Joined, rows: slice, names: Sequence[str]) -> FeaturesUnavailable:
    """Says which features, the worst first. What a default stands in for is no reason."""
    refused, statuses = joined.refused[rows], joined.statuses[rows]
    worst = np.where(statuses[refused] & DEFAULTED, 0, statuses[refused]).max(axis=0, initial=0)
    order = np.argsort(-worst.astype(np.int16), kind="stable").tolist()
    blamed = [f"'{names[index]}' is {status_text(int(worst[index]))}" for index in order if worst[index] >= Status.STALE]
    more = f" and {len(blamed) - _NAMED} more" if len(blamed) > _NAMED else ""
    where = f" in {np.count_nonzero(refused)} of {len(refused)} rows" if len(refused) > 1 else ""
    # refused though nothing is missing: a definition that fails on these values
    said = f"{', '.join(blamed[:_NAMED])}{more}" if blamed else "they cannot be computed"
    return FeaturesUnavailable(f"features are unavailable{where}: {said}")
