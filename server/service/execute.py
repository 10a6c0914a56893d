"""Run one batch so that a request that cannot be executed fails alone.

A backend can only say "this batch failed". So a failed batch is halved until the request at fault stands by itself; its
neighbours are answered. Inference changes nothing, so running rows twice is safe; a batch of B requests costs at most 2B
runs. What does not fit the device's memory is nobody's fault: it is halved once, and a half that does not fit fails as a whole.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from server.backends.base import Backend
from server.core.errors import BackendDead, BackendFailed, OutOfDeviceMemory
from server.core.tensors import Array
from server.dataplane.interface import Batch, Part
from server.dataplane.rows import cut
from server.service.join import Piece

_log = logging.getLogger("podium.execute")


Outputs = Callable[[], Mapping[str, Array]]


def execute(backend: Backend, batch: Batch, pieces: Sequence[Piece] = (), begun: Outputs | None = None) -> list[Part]:
    """The result of every request of a batch, in order.

    `begun` gives the outputs of the whole batch, where it was handed to the device already. `pieces`: the batch with its
    features, where its version has any. They are cut with the other inputs of a piece that fails, not looked up again. A piece
    that would run for nobody does not: its part has neither outputs nor an error, for `answered`.
    Raises: BackendDead when the backend can execute nothing any more; nothing is known then about any request.
    """
    if not pieces:
        return _run(backend, batch, batch.inputs, 0, len(batch.spans) - 1, begun)
    parts: list[Part] = []
    for piece in pieces:
        if piece.joined is not None and piece.worth_running:
            parts += _run(backend, batch, piece.joined.inputs, piece.first, piece.last, begun)
        else:
            parts.append(Part(piece.first, piece.last, None, piece.error))
    return parts


def _run(
    backend: Backend,
    batch: Batch,
    inputs: Mapping[str, Array],
    first: int,
    last: int,
    begun: Outputs | None = None,
    *,
    for_memory: bool = False,
) -> list[Part]:
    """`for_memory`: these are a half of what did not fit the device's memory."""
    try:
        outputs = backend.run(inputs) if begun is None else begun()
        _check_rows(outputs, int(batch.spans[last] - batch.spans[first]), batching=bool(batch.rules.signature.max_batch))
        return [Part(first, last, outputs)]
    except BackendDead:
        raise
    except BackendFailed as error:
        # its traceback leads to this frame, which has it: a circle that would hold the batch until a collection
        failed = error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a bug in a backend must not end the engine or lose a ticket
        _log.exception("backend raised outside its contract", extra={"model": str(batch.rules.key)})
        failed = BackendFailed(f"executing '{batch.rules.key.model}' failed: {type(error).__name__}")
    too_large = isinstance(failed, OutOfDeviceMemory)
    if last - first == 1 or (too_large and for_memory):
        return [Part(first, last, None, failed)]
    middle, origin = (first + last) // 2, int(batch.spans[first])
    parts: list[Part] = []
    for start, stop in ((first, middle), (middle, last)):
        first_row, last_row = int(batch.spans[start]), int(batch.spans[stop])
        # from these inputs, not from the batch's: with features they are others
        half = cut(inputs, first_row - origin, last_row - origin, batch.rules.padded(last_row - first_row))
        parts += _run(backend, batch, half, start, stop, for_memory=too_large)
    return parts


def _check_rows(outputs: Mapping[str, Array], rows: int, *, batching: bool) -> None:
    """Hold a backend to its promise here, where rows are about to be given to their requests."""
    for name, array in outputs.items() if batching else ():
        if not array.ndim or len(array) < rows:
            raise BackendFailed(f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows")
