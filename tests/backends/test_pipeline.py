"""The way of batches through a device, without a program."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.pipeline import Line, Pipeline
from server.backends.slabs import ALIGN_BYTES, Slab, layout, shapes_of, views
from tests.backends.lazy_device import LazyDevice

DTYPES = [np.dtype(word) for word in ("u1", "?", "f2", "i4", "f8", "u8")]
shapes = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=5
).map(lambda pairs: tuple((f"a{place}", *pair) for place, pair in enumerate(pairs)))


@given(shapes)
def test_arrays_of_a_slab_lie_apart_and_aligned(given_: Any) -> None:
    arrangement = layout(given_)
    memory = np.zeros(arrangement.nbytes, np.uint8)
    arrays = views(arrangement, memory)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {name: (s, d) for name, s, d in given_}
    for count, array in enumerate(arrays.values(), 1):
        array.reshape(-1).view(np.uint8)[:] = count
    for count, (array, place) in enumerate(zip(arrays.values(), arrangement.places, strict=True), 1):
        assert (array.reshape(-1).view(np.uint8) == count).all()
        assert place.first % ALIGN_BYTES == 0
    assert shapes_of(arrays, tuple(arrays)) == given_


def add_one(line: Line, seen: list[int]) -> Any:
    def execute(memory: Any, arrangement: Any) -> list[Any]:
        result = memory[: arrangement.nbytes].clone()

        def work() -> None:
            result.copy_(memory[: arrangement.nbytes] + 1)
            seen.append(int(memory[0]))

        line.compute.enqueue(work)
        return [result]

    return execute


def filled(pipeline: Pipeline, value: int) -> Slab:
    slab = pipeline.slab((("x", (4,), np.dtype(np.uint8)),))
    slab["x"][:] = value
    return slab


def test_a_slot_is_used_again_when_the_device_has_let_go_of_it() -> None:
    line = Line(LazyDevice(3))
    pipeline = Pipeline(line, slots=1)
    seen: list[int] = []
    for value in range(10):
        pending = pipeline.begin(filled(pipeline, value), add_one(line, seen), ["y"])
        assert seen[:value] == list(range(value))
        del pending
    assert seen[:9] == list(range(9))


def test_a_slot_returns_from_a_batch_that_could_not_begin() -> None:
    pipeline = Pipeline(Line(LazyDevice()), slots=1)

    def refuses(memory: Any, arrangement: Any) -> list[Any]:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            pipeline.begin(filled(pipeline, 1), refuses, ["y"])


def test_answers_outlive_their_slot_and_grow_with_their_batch() -> None:
    line = Line(LazyDevice(9))
    pipeline = Pipeline(line, slots=1)
    kept = []
    for size in (1, 5, 3, 700, 2):
        slab = pipeline.slab((("x", (size,), np.dtype(np.uint8)),))
        slab["x"][:] = size % 200
        kept.append((size, pipeline.begin(slab, add_one(line, []), ["y"]).outputs()["y"]))
    for size, answer in kept:
        assert answer.tolist() == [size % 200 + 1] * size
