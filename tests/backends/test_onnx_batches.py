"""Batches of a device in any order that is allowed: each gets its own answers, and what was answered stays as it is."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from server.backends.onnx_backend import PipelinedOnnx
from server.backends.onnx_device import SLOTS, DeviceBatch
from server.core.errors import BackendDead
from server.core.tensors import Array
from tests.backends.conftest import Save
from tests.backends.onnx_devices import Device, free_slots, rows

FLOAT = TensorProto.FLOAT
WEIGHTS = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "wait", "outputs", "drop", "forget"]), st.integers(0, 7), st.integers(1, 8)),
    max_size=40,
)


@pytest.fixture
def two(save: Save, device: Device) -> tuple[PipelinedOnnx, PipelinedOnnx]:
    """One whose sizes are all known, with graphs, and one whose answers are as long as they come out."""
    names = [("x", FLOAT, ["N", 3]), ("y", FLOAT, ["N", 2])]
    save([helper.make_node("MatMul", ["x", "w"], ["y"])], names[:1], names[1:], {"w": WEIGHTS})
    fixed = device(max_batch=8, onnx={"cuda_graphs": True})
    save(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Concat", ["h", "t"], ["y"], axis=1)],
        [("x", FLOAT, ["N", 3]), ("t", FLOAT, ["N", "T"])],
        [("y", FLOAT, ["N", "U"])],
        {"w": WEIGHTS},
    )
    return fixed, device(max_batch=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(steps=STEPS)
def test_batches_in_any_order_get_their_own_answers(
    two: tuple[PipelinedOnnx, PipelinedOnnx], steps: list[tuple[str, int, int]]
) -> None:
    """And what was answered stays as it is for as long as somebody holds it."""
    open_batches: dict[int, tuple[DeviceBatch, Array]] = {}
    answered: dict[int, tuple[Array, Array]] = {}
    for number, (step, place, count) in enumerate(steps):
        if step == "begin" and place not in open_batches:
            backend = two[place % 2]
            inputs = _inputs(backend, number, count, lent=bool(place & 2))
            expected: Array = inputs["x"].astype(np.float32) @ WEIGHTS
            if "t" in inputs:
                expected = np.concatenate([expected, inputs["t"]], axis=1)
            open_batches[place] = backend.begin(inputs), expected
        elif step == "wait" and place in open_batches:
            open_batches[place][0].wait()
        elif step == "outputs" and place in open_batches:
            pending, expected = open_batches.pop(place)
            answered[place] = pending.outputs()["y"], expected
        elif step == "drop":
            open_batches.pop(place, None)
        elif step == "forget":
            answered.pop(place, None)
        for answer, expected in answered.values():
            np.testing.assert_array_equal(answer, expected)
    for pending, expected in open_batches.values():
        np.testing.assert_array_equal(pending.outputs()["y"], expected)
    open_batches.clear()
    for backend in two:
        _settle(backend)
        assert free_slots(backend) == SLOTS


def _settle(backend: PipelinedOnnx) -> None:
    """What was dropped is behind this on the same thread."""
    backend._runner._thread.submit(int).result(30)


def _inputs(backend: PipelinedOnnx, number: int, count: int, *, lent: bool) -> dict[str, Array]:
    shapes = {"x": (count, 3)} | ({"t": (count, number % 5)} if len(backend.signature.inputs) == 2 else {})
    made = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    arrays = backend.arrays(made)
    if not lent:
        arrays = {name: np.empty_like(array) for name, array in arrays.items()}
    for position, array in enumerate(arrays.values()):
        array[:] = number + position + np.arange(array.size).reshape(array.shape) % 7
    return arrays


def test_batches_of_many_threads(linear: Path, device: Device) -> None:
    backend = device(max_batch=8, onnx={"cuda_graphs": True})
    wrong: list[str] = []

    def engine(seed: int) -> None:
        try:
            for value in range(seed, seed + 60):
                pending = backend.begin({"x": rows(1 + value % 8, value)})
                if value % 7:
                    pending.wait()
                    if not (pending.outputs()["y"] == 2 * value).all():
                        wrong.append(f"{value}")
        except BackendDead as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=engine, args=(100 * seed,)) for seed in range(SLOTS + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    _settle(backend)
    assert free_slots(backend) == SLOTS
