"""Batches of the native plane as the engine knows them, and results as the native plane takes them.

Floor 3. Rows of requests that were decoded natively are copied once, from where they were received into the arrays made here;
rows of requests that Python decoded are put beside them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.errors import BackendFailed, PodiumError
from server.core.tensors import NUMPY_DTYPES, Array, join_bytes
from server.dataplane.interface import Batch, Execution, Part, QueueRules
from server.dataplane.rows import brought, place, scatter
from server.dataplane.ticket import Ticket

_log = logging.getLogger("podium.dataplane")
_OBJECTS = np.dtype(np.object_)

Ending = tuple[int, str, Sequence[tuple[str, str]]]
"""How a call ends that fails: gRPC's number of its code, text, trailing metadata."""
Decoded = Mapping[int, tuple[Ticket, Mapping[str, Array]]]
"""Tickets of requests that Python decoded, by their place in the batch, with their inputs."""
Result = tuple[int, int, list[Any] | None, Ending | None]
"""What requests from the first up to the last get: outputs in their wire form, or how they end that failed."""


def batch_of(taken: Any, rules: QueueRules, decoded: Decoded, token: int) -> Batch:
    """The batch of what was taken; with a fault and without rows where they could not be gathered."""
    requests = taken.requests
    spans = np.empty(requests + 1, dtype=np.int64)
    arrival_ns, deadline_ns = np.empty(requests, dtype=np.int64), np.empty(requests, dtype=np.int64)
    id_hashes = np.empty(requests, dtype=np.uint64)
    taken.describe(spans, arrival_ns, deadline_ns, id_hashes)
    inputs: dict[str, Array] = {}
    elements = 0
    fault: BackendFailed | None = None
    try:
        inputs, elements = _gathered(taken, rules, decoded, spans)
    except Exception as error:  # noqa: BLE001 - whatever it was (no memory, say), these tickets are taken and must be answered
        _log.exception("a batch could not be gathered", extra={"model": str(rules.key), "rows": taken.rows})
        fault = BackendFailed(f"the batch could not be gathered: {type(error).__name__}")
    return Batch(
        rules=rules,
        inputs=inputs,
        spans=spans,
        arrival_ns=arrival_ns,
        deadline_ns=deadline_ns,
        id_hashes=id_hashes,
        execution=Execution(taken.taken_ns, rows=taken.rows),
        released=taken.reason,
        tickets=(taken,),
        token=token,
        staged=taken.staged,
        fault=fault,
        elements=elements,
    )


def _gathered(taken: Any, rules: QueueRules, decoded: Decoded, spans: NDArray[np.int64]) -> tuple[dict[str, Array], int]:
    """The inputs, and how many elements the requests brought of those whose free dimensions are padded."""
    signature = rules.signature
    rows, padded_rows = taken.rows, rules.padded(taken.rows)
    shapes: dict[int, tuple[int, ...]] = dict(taken.layout() or ())
    if not shapes:
        first = next(iter(decoded.values()))[1] if decoded else {}
        start = 1 if signature.max_batch else 0
        given = {index: spec for index, spec in enumerate(signature.inputs) if spec.name in first}
        shapes = {index: spec.padded(first[spec.name].shape[start:]) for index, spec in given.items()}
    lead = (padded_rows,) if signature.max_batch else ()
    specs = signature.inputs
    made = rules.allocate({specs[i].name: ((*lead, *dims), NUMPY_DTYPES[specs[i].datatype]) for i, dims in shapes.items()})
    numbers: list[tuple[int, Array]] = []
    for index in shapes:
        whole = made[specs[index].name]
        if whole.dtype == _OBJECTS:
            for row, count, texts in taken.elements(index):
                part: Any = whole[row : row + count] if lead else whole
                part.reshape(-1)[:] = texts
        else:
            numbers.append((index, whole))
    elements: int = taken.gather(numbers) + brought([arrays for _, arrays in decoded.values()], signature)
    for index, (_, arrays) in decoded.items():
        for name, whole in made.items():
            own = whole[int(spans[index]) : int(spans[index + 1])] if lead else whole
            place(arrays[name], own, signature.input_names[name])
    if lead and padded_rows > rows:
        for whole in made.values():
            whole[rows:] = whole[0]
    return made, elements


def results_of(
    parts: Sequence[Part], rules: QueueRules, ending: Callable[[PodiumError], Ending], spans: NDArray[np.int64]
) -> list[Result]:
    """The parts of a batch for `finish`: outputs by their place in the signature, in their wire form.

    A request whose outputs have none (texts that are no text, say) fails alone.
    """
    return [result for part in parts for result in _results(part, rules, ending, spans)]


def _results(
    part: Part, rules: QueueRules, ending: Callable[[PodiumError], Ending], spans: NDArray[np.int64]
) -> Iterator[Result]:
    if part.outputs is None:
        yield _failed(part, part.error or BackendFailed(f"executing '{rules.key.model}' gave nothing"), ending)
        return
    outputs = part.outputs
    try:
        wires = [_wire(outputs.get(spec.name), spec.datatype) for spec in rules.signature.outputs]
    except Exception as error:  # noqa: BLE001 - whatever a model gave: the tickets are taken, and the engine must go on
        if part.last - part.first == 1:
            _log.exception("outputs could not be encoded", extra={"model": str(rules.key)})
            name = type(error).__name__
            yield _failed(part, BackendFailed(f"the outputs of '{rules.key.model}' could not be encoded: {name}"), ending)
            return
    else:
        yield part.first, part.last, wires, None
        return
    each = scatter(outputs, spans, part.first, part.last, batching=bool(rules.signature.max_batch))
    for index, own in enumerate(each, part.first):
        yield from _results(Part(index, index + 1, own), rules, ending, spans)


def _failed(part: Part, error: PodiumError, ending: Callable[[PodiumError], Ending]) -> Result:
    code, text, trailing = ending(error)
    # half of a surrogate pair, in a file's name say, is no UTF-8
    return part.first, part.last, None, (code, text.encode("utf-8", "replace").decode(), trailing)


def _wire(array: Array | None, datatype: str) -> Any:
    if array is None:
        return None
    if datatype != "BYTES":
        return np.ascontiguousarray(array, dtype=NUMPY_DTYPES[datatype]).reshape(array.shape)
    texts: Any = array
    # slices: a row may be one element, which has no rows of its own
    rows = [join_bytes(texts[row : row + 1]) for row in range(len(texts))] if array.ndim else [join_bytes(texts)]
    return b"".join(rows), [0, *np.cumsum([len(row) for row in rows]).tolist()], array.shape
