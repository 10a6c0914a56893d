"""Whether rows of different callers may share an execution, found out by trying. **Pure** over a backend. Floor 2.

A free first dimension does not prove that rows are independent: a softmax over the batch, a mean over it, or a scale taken
from the whole tensor lets one caller's row change another's answer. So rows are run alone and together, and compared.
Never proves independence for all inputs; it refutes it for the ones tried, which is what exporters' mistakes need.
"""

from collections.abc import Mapping

import numpy as np

from server.backends.base import Backend
from server.backends.onnx_signature import without_batching
from server.backends.samples import Attempt, sample_inputs, worth_trying
from server.core.errors import BackendDead, BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array

ROWS = 4
_ATTEMPTS: tuple[Attempt, ...] = (("varied", 3), ("varied", 1), ("varied", 32), ("ones", 1), ("zeros", 1))
"""Tried in order until single rows run. 32: convolutions over free image sizes need more than a few pixels."""
_GROUPS = ((0, 1), (0, 0), (2, 1, 0, 3))
"""Rows put together: with a neighbour, with itself, and in another order."""
Tolerance = Mapping[str, float]
_TOLERANCE: Tolerance = {"FP16": 2e-2, "BF16": 2e-2, "FP32": 2e-3, "FP64": 2e-3}
"""Relative to the row's largest value: kernels for other batch sizes round differently (TF32 has 10 bits of mantissa), and
files that compute in FP32 may still answer FP64. A mixed row is off by far more."""
_IN_HALVES = dict.fromkeys(_TOLERANCE, 5e-2)
"""Where 16-bit numbers stand in for FP32: bfloat16 has 8 bits, and their errors add up over layers."""


def try_batching(backend: Backend, *, halves: bool = False) -> str | None:
    """Leave a backend without batching where its rows mix; why, or None. A model whose batch dimension was only read off its
    file is tried so; settings that state `max_batch` are taken at their word. `halves`: FP32 answers are computed in 16 bits.

    Raises: BackendDead.
    """
    batching = backend.signature
    backend.signature = without_batching(batching)
    mixing = rows_mix(backend, batching, _IN_HALVES if halves else _TOLERANCE)
    if mixing is None:
        backend.signature = batching
    return mixing


def rows_mix(backend: Backend, batching: Signature, tolerance: Tolerance = _TOLERANCE) -> str | None:
    """Say how batching would change answers, naming the first output; None if it does not, or cannot be judged.

    `backend` runs whatever it is given; `batching` is the signature it would have if it batched. An output that differs
    between two runs of one row (random numbers, or a state that every call moves on) cannot be compared: that counts
    against batching, since a guess could mix answers. None also when no sample runs alone: then nothing is known, and the
    shapes' word stands.

    Raises: BackendDead.
    """
    for content, free_dim in worth_trying(batching, _ATTEMPTS):
        samples = sample_inputs(batching, ROWS, content, free_dim)
        try:
            alone = [backend.run(_rows(samples, (row,))) for row in range(ROWS)]
            again = backend.run(_rows(samples, (0,)))
        except BackendDead:
            raise
        except BackendFailed:
            continue
        return _single(alone, batching) or _together(backend, batching, samples, alone, again, tolerance)
    return None


def _rows(samples: dict[str, Array], rows: tuple[int, ...]) -> dict[str, Array]:
    return {name: array[list(rows)] for name, array in samples.items()}


def _single(alone: list[dict[str, Array]], batching: Signature) -> str | None:
    for answer in alone:
        for spec in batching.outputs:
            shape = answer[spec.name].shape
            if shape[:1] != (1,):
                return f"output '{spec.name}' has shape {list(shape)} for 1 row"
    return None


def _together(
    backend: Backend,
    batching: Signature,
    samples: dict[str, Array],
    alone: list[dict[str, Array]],
    again: dict[str, Array],
    tolerance: Tolerance,
) -> str | None:
    for spec in batching.outputs:
        if not _same(spec.datatype, alone[0][spec.name], again[spec.name], tolerance.get(spec.datatype)):
            return f"output '{spec.name}' differs between two runs of the same row, so that rows cannot be compared"
    for group in _GROUPS:
        try:
            answers = backend.run(_rows(samples, group))
        except BackendDead:
            raise
        except BackendFailed as error:
            return f"rows that run alone do not run {len(group)} together ({error})"
        for spec in batching.outputs:
            answer = answers[spec.name]
            if answer.shape[:1] != (len(group),):
                return f"output '{spec.name}' has shape {list(answer.shape)} for {len(group)} rows"
            for position, row in enumerate(group):
                if not _same(spec.datatype, answer[position], alone[row][spec.name][0], tolerance.get(spec.datatype)):
                    return f"output '{spec.name}' of a row depends on the other rows of its batch"
    return None


def _same(datatype: str, one: Array, other: Array, tolerance: float | None) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return False
    if tolerance is None:
        return bool(np.array_equal(one, other))
    left, right = _as_float(datatype, one), _as_float(datatype, other)
    finite = np.abs(np.concatenate([left.reshape(-1), right.reshape(-1)]))
    largest = float(np.max(finite, where=np.isfinite(finite), initial=0.0))
    return bool(np.allclose(left, right, rtol=0.0, atol=tolerance * largest, equal_nan=True))


def _as_float(datatype: str, array: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)
