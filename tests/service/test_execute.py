"""A request that cannot be executed fails alone, whatever it shares its batch with."""

import gc
from collections.abc import Mapping
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import BackendDead, BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import Batch, Execution, Part, QueueRules
from server.service.execute import execute

SIGNATURE = Signature("m", (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),), 64)
BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class PickyBackend:
    """Adds one to every row; raises `error` when a row is negative."""

    platform = "double"
    device = "cpu"
    signature = SIGNATURE

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows: Any = inputs["x"]
        self.runs.append(len(rows))
        if (rows < 0).any():
            raise self.error
        return {"y": rows + 1}

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


def batch_of(sizes: list[int], bad: set[int], *, padding: bool = True) -> Batch:
    spans = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    total = int(spans[-1])
    padded = next(size for size in BUCKETS if size >= total) if padding else total
    rows = np.zeros((padded, 1), dtype=np.float32)
    for index, size in enumerate(sizes):
        rows[spans[index] : spans[index] + size] = index
        if index in bad:
            rows[spans[index] + size - 1] = -1
    rows[total:] = rows[0]
    rules = QueueRules(1, VersionKey("m", 1), SIGNATURE, "cpu", BUCKETS, (0,) * len(BUCKETS), padding, 0, True, 0, None)
    nothing = np.zeros(len(sizes), dtype=np.int64)
    return Batch(
        rules, {"x": rows}, spans, nothing, nothing, nothing.view(np.uint64), "full", [None] * len(sizes), Execution(0)
    )


def outcomes(parts: list[Part], sizes: list[int]) -> list[Any]:
    """What each request got: the values of its rows, or its error."""
    assert [part.first for part in parts] == [0, *(part.last for part in parts)][:-1]
    assert parts[-1].last == len(sizes)
    found: list[Any] = []
    for part in parts:
        row = 0
        for index in range(part.first, part.last):
            if part.outputs is None:
                found.append(part.error)
            else:
                found.append(part.outputs["y"][row : row + sizes[index], 0].tolist())
            row += sizes[index]
    return found


requests = st.lists(st.integers(1, 4), min_size=1, max_size=16)


@given(data=st.data(), sizes=requests, padding=st.booleans())
def test_only_the_guilty_fail(data: st.DataObject, sizes: list[int], padding: bool) -> None:
    bad = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    backend = PickyBackend(BackendFailed("negative"))
    batch = batch_of(sizes, bad, padding=padding)
    found = outcomes(execute(backend, batch), sizes)
    for index, size in enumerate(sizes):
        assert found[index] is backend.error if index in bad else found[index] == [index + 1.0] * size
    assert len(backend.runs) <= max(1, 2 * len(sizes))
    if not bad:
        assert backend.runs == [batch.padded_rows]
    if padding:
        assert set(backend.runs) <= set(BUCKETS)


def test_a_bug_in_a_backend_is_told_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    parts = execute(PickyBackend(KeyError("/secret/path")), batch_of([1, 2], {1}))
    ok, failed = outcomes(parts, [1, 2])
    assert ok == [1.0]
    assert isinstance(failed, BackendFailed)
    assert str(failed) == "executing 'm' failed: KeyError"
    assert {record.getMessage() for record in caplog.records} == {"backend raised outside its contract"}


def test_a_dead_backend_is_nobodys_fault() -> None:
    backend = PickyBackend(BackendDead("device lost"))
    with pytest.raises(BackendDead):
        execute(backend, batch_of([1, 1, 1, 1], {2}))
    assert backend.runs == [4]


class FailingBackend(PickyBackend):
    """Every run fails, each with an error of its own, as real backends do."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise BackendFailed(f"cannot add to {len(inputs['x'])} rows")


def test_a_failed_batch_is_free_at_once_not_when_garbage_is_next_collected() -> None:
    batch = batch_of([1, 1, 1], set())
    rows = ref(batch.inputs["x"])
    gc.collect()
    gc.disable()
    try:
        parts = execute(FailingBackend(BackendFailed("")), batch)
        assert [str(part.error) for part in parts] == ["cannot add to 1 rows"] * 3
        del parts, batch
        assert rows() is None
    finally:
        gc.enable()
