"""The way of a batch through a device, over onnxruntime on the CPU: everything but the provider itself is what a GPU runs."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from server.backends.onnx_device import SLOTS, DeviceBatch, Turns
from server.core.errors import BackendFailed, DeviceLost, OutOfDeviceMemory
from server.core.tensors import NUMPY_DTYPES
from tests.backends.conftest import Save
from tests.backends.cudart import FakeCudart
from tests.backends.onnx_devices import Device, free_slots, rows
from tests.backends.test_onnx_session import texts, values
from tests.onnx_types import ONNX_TYPES

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


@pytest.mark.parametrize("host_memory", [True, False])
@pytest.mark.parametrize("datatype", [datatype for datatype in NUMPY_DTYPES if datatype != "BYTES"])
@pytest.mark.parametrize("shape", [["N", 2], ["N", "T"], [3, 2], []])
def test_every_datatype_and_rank(save: Save, device: Device, datatype: str, shape: list[Any], host_memory: bool) -> None:
    device.host_memory = host_memory
    kind = ONNX_TYPES[datatype]
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])
    backend = device()
    sent = values(datatype) if shape else values(datatype)[1, 1:].reshape(())
    for given_array in (sent, np.asfortranarray(sent) if shape else sent, sent):
        answer = backend.run({"x": given_array})["y"]
        assert (answer.dtype, answer.shape, answer.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())
    assert backend.device == "cuda:0"


def test_a_batch_in_memory_of_the_backend_goes_there_as_it_is(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    given_array = backend.arrays({"x": ((2, 3), np.dtype(np.float32))})["x"]
    given_array[:] = [[1, 2, 3], [4, 5, 6]]
    pending = backend.begin({"x": given_array})
    pending.wait()
    assert pending.outputs()["y"].tolist() == [[4, 5], [10, 11]]
    assert given_array.ctypes.data in device.cudart.sources
    # somebody else's memory is copied beside the bus first; every copy over it is of page-locked memory
    assert backend.run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[2, 2], [2, 2]]
    assert device.cudart.copied_from_pageable == 0


def test_a_batch_is_copied_while_another_one_executes(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    gate = device.session.gate = threading.Event()
    pendings = [backend.begin({"x": rows(2, value)}) for value in (1, 2, 3)]
    first = pendings[0]
    assert not first.future.done()
    gate.set()
    assert [pending.outputs()["y"][0, 0] for pending in pendings] == [2, 4, 6]
    assert {name.split("_")[0] for name in device.session.threads} == {"podium-onnx"}
    assert len(device.session.threads) == 1


def test_outputs_without_wait_wait(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    assert backend.begin({"x": rows(1)}).outputs()["y"].tolist() == [[2, 2]]


def test_more_batches_than_slots_are_answered_all_the_same(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    pendings = [backend.begin({"x": rows(1, value)}) for value in range(2 * SLOTS + 1)]
    for value in reversed(range(2 * SLOTS + 1)):
        pendings[value].wait()
        assert pendings[value].outputs()["y"].tolist() == [[2 * value, 2 * value]]


def test_executions_of_a_device_are_in_the_order_they_were_handed_over(linear: Path, device: Device) -> None:
    one, other = device(max_batch=8), device(max_batch=8)
    first, second = device.sessions
    order: list[str] = []
    gate = threading.Event()
    first.before = lambda: order.append("one" if gate.wait(30) else "never")
    second.before = lambda: order.append("other")
    pendings = [backend.begin({"x": rows(1)}) for backend in (one, other, other, one, other)]
    gate.set()
    for pending in reversed(pendings):
        pending.outputs()
    assert order == ["one", "other", "other", "one", "other"]


def test_two_that_hand_over_at_once_do_not_wait_for_each_other(
    linear: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that is taken first is first on the thread, too: else each would wait for the other."""
    backend = device(max_batch=8)
    taken, take, lasts = threading.Event(), Turns.take, threading.Lock()

    def slow(turns: Turns) -> object:
        turn = take(turns)
        if lasts.acquire(blocking=False):
            taken.wait(0.3)  # long enough for the other one to come between, if it could
        else:
            taken.set()
        return turn

    monkeypatch.setattr(Turns, "take", slow)
    begun: list[DeviceBatch] = []
    threads = [threading.Thread(target=lambda: begun.append(backend.begin({"x": rows(1)}))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for pending in begun:
        pending.future.result(30)
        assert pending.outputs()["y"].tolist() == [[2, 2]]
    assert len(begun) == 2


def test_buffers_are_for_the_largest_batch_from_the_first_on(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    for _ in range(SLOTS):
        backend.run({"x": rows(1)})
    there = set(device.cudart.device)
    for count in (8, 2, 8, 3):
        backend.run({"x": rows(count)})
    assert set(device.cudart.device) == there


def test_a_buffer_that_moved_for_a_batch_that_was_dropped(save: Save, device: Device) -> None:
    axes = {"axes": np.array([1], dtype=np.int64)}
    save([helper.make_node("ReduceSum", ["x", "axes"], ["y"])], [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", 1])], axes)
    backend = device(max_batch=8)
    small, large = np.ones((1, 2), np.float32), np.ones((1, 5000), np.float32)
    for _ in range(SLOTS):
        assert backend.run({"x": small})["y"].tolist() == [[2]]
    gate = device.session.gate = threading.Event()
    held, dropped = backend.begin({"x": small}), backend.begin({"x": large})
    del dropped
    gate.set()
    held.outputs()
    for _ in range(2 * SLOTS):
        assert backend.run({"x": small})["y"].tolist() == [[2]]


def test_instances_do_not_wait_for_each_other(linear: Path, device: Device) -> None:
    one, other = device(max_batch=8, instances=2), device(max_batch=8, instances=2)
    gate = device.sessions[0].gate = threading.Event()
    held = one.begin({"x": rows(1)})
    assert other.begin({"x": rows(1, 2)}).outputs()["y"].tolist() == [[4, 4]]
    gate.set()
    held.outputs()


@pytest.mark.parametrize("when", ["before it executes", "while it executes", "executed"])
def test_a_batch_that_is_dropped_gives_its_slot_back(linear: Path, device: Device, when: str) -> None:
    backend = device(max_batch=8)
    gate = device.session.gate = threading.Event()
    if when == "before it executes":
        running = backend.begin({"x": rows(1)})
        dropped = backend.begin({"x": rows(1)})
        del dropped
        gate.set()
        running.outputs()
        assert len(device.session.runs) == 1
    else:
        dropped = backend.begin({"x": rows(1)})
        if when == "executed":
            gate.set()
            dropped.wait()
        del dropped
        assert free_slots(backend) == (SLOTS if when == "executed" else SLOTS - 1)
        gate.set()
    assert backend.run({"x": rows(2, 2)})["y"].tolist() == [[4, 4]] * 2
    assert free_slots(backend) == SLOTS


def test_a_batch_is_answered_once(linear: Path, device: Device) -> None:
    pending = device(max_batch=8).begin({"x": rows(1)})
    pending.outputs()
    with pytest.raises(BackendFailed, match="its outputs were given away"):
        pending.outputs()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a", DeviceLost),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED", DeviceLost),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfDeviceMemory),
        ("Failed to allocate memory for requested buffer of size 4194304", OutOfDeviceMemory),
        ("Available memory of 512 is smaller than requested bytes of 4096", OutOfDeviceMemory),
        ("Non-zero status code returned while running Gather node.", BackendFailed),
    ],
)
def test_failures_have_names(linear: Path, device: Device, said: str, kind: type[Exception]) -> None:
    backend = device(max_batch=8)
    device.session.fails.append(said)
    pending = backend.begin({"x": rows(1)})
    with pytest.raises(BackendFailed) as caught:
        pending.wait()
    assert type(caught.value) is kind
    assert str(caught.value) == f"executing model 'm' failed: {said.split(' ; ')[0]}"
    assert free_slots(backend) == SLOTS
    assert backend.run({"x": rows(1)})["y"].tolist() == [[2, 2]]


def test_too_little_memory_for_a_batch(save: Save, device: Device) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", "T"])])
    backend = device(max_batch=4)
    device.cudart.limit_bytes = device.cudart.used() + 4096
    with pytest.raises(OutOfDeviceMemory, match="executing model 'm' failed: CUDA failure 2: out of memory"):
        backend.run({"x": np.zeros((4, 1000), np.float32)})
    assert backend.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1, 1]]
    assert free_slots(backend) == SLOTS


def test_a_device_that_is_lost(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    pending = backend.begin({"x": rows(1)})
    pending.wait()
    device.cudart.broken = True
    with pytest.raises(DeviceLost):
        pending.outputs()
    with pytest.raises(DeviceLost):
        backend.begin({"x": rows(1)})
    backend.close()  # fails for nobody, and has nothing to give back
    device.opened.clear()
    device.cudart.broken = False
    device.cudart = FakeCudart()


def test_what_the_data_plane_would_never_bring(linear: Path, device: Device) -> None:
    backend = device(max_batch=8)
    with pytest.raises(BackendFailed, match="input 'x' of model 'm' is float64, not FP32"):
        backend.run({"x": np.ones((1, 3))})
    assert free_slots(backend) == SLOTS


def test_rows_that_do_not_come_back(save: Save, device: Device) -> None:
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    save(nodes, [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["M", "T"])])
    with pytest.raises(BackendFailed, match=r"output 'y' of model 'm' has shape \[4, 1\] for 2 rows"):
        device(max_batch=8).run({"x": np.ones((2, 1), np.float32)})
    assert device().signature.max_batch == 0


def test_strings_go_without_slots(save: Save, device: Device) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", STRING, ["N"])], [("y", STRING, ["N"])])
    backend = device.plain(max_batch=4)
    assert not hasattr(backend, "begin")
    assert backend.run({"x": texts(b"a", b"b")})["y"].tolist() == [b"a", b"b"]
    assert backend.notes() == ("copies do not overlap executions: input 'x' is BYTES",)
    graphs = device.plain(max_batch=4, onnx={"cuda_graphs": True})
    assert graphs.notes()[-1] == "no CUDA graphs: input 'x' is BYTES"
    assert graphs.run({"x": texts(b"a")})["y"].tolist() == [b"a"]


def test_without_the_library_onnxruntime_copies(linear: Path, device: Device) -> None:
    backend = device.plain(without_library=True, max_batch=4, onnx={"cuda_graphs": True})
    assert backend.run({"x": rows(1)})["y"].tolist() == [[2, 2]]
    assert device.wanted == [
        {
            "CUDAExecutionProvider": {
                "device_id": "0",
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "EXHAUSTIVE",
            }
        }
    ]
    assert backend.notes() == (
        "copies do not overlap executions: libcudart was not found",
        "no CUDA graphs: libcudart was not found",
    )


def test_the_session_computes_on_a_stream_of_the_backend(linear: Path, device: Device) -> None:
    device(max_batch=4)
    (options,) = device.wanted[-1].values()
    assert int(options["user_compute_stream"]) in device.cudart.streams


def test_turns_pass_over_what_was_given_up() -> None:
    turns = Turns()
    first, second, third = turns.take(), turns.take(), turns.take()
    turns.end(second)
    turns.wait(first)
    turns.end(first)
    turns.wait(third)
    turns.end(third)
