"""The features of a batch, so that a request whose features cannot be computed fails alone.

Floor 5, on the engine's thread and before the batch enters its device: with two slots the features of one batch are looked up
while another executes. Like `execute` it halves a batch that fails as a whole; what is found then is executed piece by piece.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.core.clock import NS_PER_S, NS_PER_US, Clock
from server.core.errors import BackendFailed, FeaturesUnavailable, PodiumError
from server.core.feature_settings import FeatureStoreSettings
from server.core.tensors import Array
from server.dataplane.interface import Batch
from server.dataplane.rows import cut
from server.features.interface import Features, Joined

_log = logging.getLogger("podium.features")


@dataclass(frozen=True, slots=True)
class Piece:
    """Requests `first:last` of a batch with their features, or the error that all of them get.

    Shapes: `refused` bool `[last - first]`: requests that own a refused row; None: nobody does.
    """

    first: int
    last: int
    joined: Joined | None
    error: PodiumError | None = None
    refused: NDArray[np.bool_] | None = None

    @property
    def worth_running(self) -> bool:
        """Whether anybody would be answered with what an execution gives."""
        return self.joined is not None and (self.refused is None or not self.refused.all())


def budget_ns(deadline_ns: NDArray[np.int64], now_ns: int, settings: FeatureStoreSettings) -> int:
    """How long the features of a batch may take: the server's budget, or a part of what remains to its most patient request.

    Shapes: `deadline_ns` `[B]`, 2**62 where there is none.

    The most patient one decides, not the most urgent: with it, a neighbour with hardly any time left would turn everybody's
    features into defaults, and whom a request shares its batch with must not change its answer. The urgent one may be answered
    late for that; only while the store is slow, and no later than the breaker takes to open.
    """
    of_deadline_ns = int(max(int(deadline_ns.max()) - now_ns, 0) * settings.budget_of_deadline)
    return min(settings.budget_us * NS_PER_US, of_deadline_ns)


def join(features: Features, batch: Batch, settings: FeatureStoreSettings, clock: Clock) -> list[Piece]:
    """The features of every request of a batch, in order: one piece, unless the batch cannot be computed as a whole.

    Whatever `features` does, this returns. A batch of B requests costs at most 2B joins, and all of them one budget.
    """
    now_ns = clock()
    until_ns = now_ns + budget_ns(batch.deadline_ns, now_ns, settings)
    return _join(features, batch, batch.inputs, 0, len(batch.spans) - 1, until_ns, clock)


def _join(
    features: Features, batch: Batch, inputs: Mapping[str, Array], first: int, last: int, until_ns: int, clock: Clock
) -> list[Piece]:
    rows = int(batch.spans[last] - batch.spans[first])
    try:
        joined = features.join(inputs, rows, max(until_ns - clock(), 0) / NS_PER_S)
        _check(joined, rows, len(features.names))
        starts = batch.spans[first:last] - batch.spans[first]
        refused = np.logical_or.reduceat(joined.refused, starts) if joined.refused.any() else None
        return [Piece(first, last, joined, None, refused)]
    except FeaturesUnavailable as error:
        # a new one: what it was raised from leads to the frames that have the batch, which would be held until a collection
        failed: PodiumError = FeaturesUnavailable(str(error))
    except Exception as error:  # noqa: BLE001 - a bug in there must not end the engine or lose a ticket
        _log.exception("features could not be joined", extra={"model": str(batch.rules.key)})
        failed = BackendFailed(f"finding the features of '{batch.rules.key.model}' failed: {type(error).__name__}")
    if last - first == 1:
        return [Piece(first, last, None, failed)]
    middle = (first + last) // 2
    pieces: list[Piece] = []
    for start, stop in ((first, middle), (middle, last)):
        first_row, last_row = int(batch.spans[start]), int(batch.spans[stop])
        padded = batch.rules.padded(last_row - first_row)
        pieces += _join(features, batch, cut(batch.inputs, first_row, last_row, padded), start, stop, until_ns, clock)
    return pieces


def _check(joined: Joined, rows: int, names: int) -> None:
    """Hold features to their promise here, where rows are about to be given to their requests."""
    if joined.statuses.shape != (rows, names) or joined.refused.shape != (rows,):
        shapes = f"{list(joined.statuses.shape)} and {list(joined.refused.shape)}"
        raise ValueError(f"statuses and refusals have shapes {shapes} for {rows} rows of {names} features")
