"""A torch program on a device that is as late as a device may be (`lazy_device`)."""

import gc
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from server.backends.base import LoadTask
from server.backends.pipeline import SLOTS, Line
from server.backends.pt2_archive import PROGRAM, Pt2Archive
from server.backends.pt2_program import Program, read_program
from server.backends.slabs import Slab
from server.backends.torch_device import DeviceTorchBackend
from server.backends.torch_program import model_of
from server.backends.torch_weights import load_weights
from server.backends.vocabulary import ProgramNames, VocabularyRecord
from server.core.errors import BackendFailed, DeviceLost, InputsUnfit, OutOfDeviceMemory
from server.core.padding import with_pad_sizes
from server.core.settings import ModelSettings, TensorSettings
from server.core.versions import VersionKey
from tests.backends.lazy_device import LazyDevice
from tests.backends.programs import ROWS, exported

CPU = torch.device("cpu")
BUCKETS = (1, 2, 4, 8)


class Two(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Two inputs and two outputs of different types, one of which is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> Any:
        return torch.nn.functional.linear(x, self.weight) + n.to(torch.float32), n * 2


def two() -> bytes:
    return exported(Two(), (torch.zeros((4, 4)), torch.zeros((4, 1), dtype=torch.int64)), ({0: ROWS}, {0: ROWS}))


TWO = two()


@cache
def read(content: bytes) -> tuple[Program, dict[int, Any]]:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        with Pt2Archive(Path(file.name)) as archive:
            program = read_program(archive.json(PROGRAM), "program")
            return program, load_weights(archive, program, CPU)


def opened(
    content: bytes = TWO, seed: int = 0, *, device: LazyDevice | None = None, names: ProgramNames | None = None, **settings: Any
) -> DeviceTorchBackend:
    """`settings`: of `[torch]`; `max_batch` of the model."""
    max_batch = settings.pop("max_batch", 8)
    chosen = ModelSettings.model_validate({"max_batch": max_batch, "torch": settings})
    task = LoadTask(VersionKey("m", 1), Path("/nowhere"), chosen)
    program, weights = read(content)
    signature, model = model_of(task, program, names or ProgramNames(), weights, CPU)
    return DeviceTorchBackend(signature, model, Line(device or LazyDevice(seed)), graphs=chosen.torch.cuda_graphs)


def batch(rows: int, start: int = 0) -> dict[str, Any]:
    x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + start
    return {"x": x, "n": np.arange(start, start + rows, dtype=np.int64).reshape(rows, 1)}


def right(inputs: dict[str, Any], got: dict[str, Any]) -> bool:
    with torch.inference_mode():
        y, m = Two()(torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["n"]))
    first, second = got.values()
    return np.allclose(first, y.numpy(), rtol=1e-6) and np.array_equal(second, m.numpy())


@given(data=st.data(), seed=st.integers(0, 2**16), graphs=st.booleans(), staged=st.booleans())
def test_every_batch_gets_its_own_answers_whatever_order_the_device_and_its_users_take(
    data: st.DataObject, seed: int, graphs: bool, staged: bool
) -> None:
    backend = opened(seed=seed, cuda_graphs=graphs)
    if graphs:
        backend.prepare(BUCKETS)
    open_: list[tuple[dict[str, Any], Any, bool]] = []
    kept = []
    for start in range(data.draw(st.integers(1, 8))):
        rows = data.draw(st.integers(1, 8))
        given_ = batch(rows, 100 * start)
        inputs: dict[str, Any] = given_
        if staged:
            inputs = backend.arrays({name: (array.shape, array.dtype) for name, array in given_.items()})
            assert isinstance(inputs, Slab)
            for name, array in given_.items():
                inputs[name][...] = array
        open_.append((given_, backend.begin(inputs), False))
        while open_ and (len(open_) == SLOTS or data.draw(st.booleans())):
            place = data.draw(st.integers(0, len(open_) - 1))
            own, pending, waited = open_.pop(place)
            if waited or data.draw(st.booleans()):
                kept.append((own, pending.outputs()))
            else:
                pending.wait()
                open_.insert(place, (own, pending, True))
    kept += [(own, pending.outputs()) for own, pending, _ in open_]
    # only now: what was given out must not be written to by the batches that followed
    assert all(right(own, got) for own, got in kept)


def test_a_batch_crosses_once_each_way_and_executes_as_one_graph() -> None:
    device = LazyDevice()
    backend = opened(device=device)
    backend.prepare(BUCKETS)
    inward, compute, outward = device.streams
    before = inward.enqueued, compute.enqueued, outward.enqueued, device.replays
    assert right(batch(4), backend.run(batch(4)))
    after = inward.enqueued, compute.enqueued, outward.enqueued, device.replays
    # to the graph's memory, the graph, from its memory
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 3, 1, 1]
    assert backend.notes() == ("CUDA graphs for batches of 1, 2, 4, 8",)


def test_rows_that_nobody_prepared_are_executed_step_by_step() -> None:
    device = LazyDevice()
    backend = opened(device=device)
    backend.prepare(BUCKETS)
    before = device.replays
    assert right(batch(3), backend.run(batch(3)))
    assert device.replays == before


def test_threads_share_a_line() -> None:
    device = LazyDevice(5)
    backend = opened(device=device)
    backend.prepare(BUCKETS)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(40):
            inputs = batch(1 + (number + turn) % 8, 1000 * number + turn)
            pending = backend.begin(inputs)
            pending.wait()
            if not right(inputs, pending.outputs()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2 * SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_what_is_dropped_returns_its_slot() -> None:
    backend = opened()
    for _ in range(2 * SLOTS):
        backend.begin(batch(2))
        gc.collect()
    assert right(batch(2), backend.run(batch(2)))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (lambda x: x + x.masked_select(x > 0).sum(), "not permitted when stream is capturing"),
        (lambda x: x + torch.zeros(3)[torch.nonzero(torch.ones(3)).flatten()].sum(), "not permitted when stream is capturing"),
    ],
    ids=["masked_select", "nonzero"],
)
def test_a_step_that_needs_the_host_is_no_part_of_a_graph_and_still_runs(steps: Callable[[Any], Any], says: str) -> None:
    class Steps(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> Any:
            return steps(x)

    backend = opened(exported(Steps(), (torch.ones((4, 2)),), ({0: ROWS},)), device=(device := LazyDevice()))
    backend.prepare(BUCKETS)
    (note,) = backend.notes()
    assert note.startswith("no CUDA graphs: ")
    assert says in note
    x = np.ones((2, 2), np.float32)
    with torch.inference_mode():
        expected = steps(torch.from_numpy(x)).numpy()
    (got,) = backend.run({"x": x}).values()
    assert np.allclose(got, expected)
    assert device.replays == 0


def test_graphs_can_be_left_out() -> None:
    backend = opened(cuda_graphs=False)
    backend.prepare(BUCKETS)
    assert backend.notes() == ("no CUDA graphs: cuda_graphs is off",)


def test_free_sizes_are_executed_as_they_come() -> None:
    class Sum(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> Any:
            return x.sum(1, keepdim=True)

    backend = opened(exported(Sum(), (torch.ones((4, 6)),), ({0: ROWS, 1: torch.export.Dim("length", min=2, max=50)},)))
    backend.prepare(BUCKETS)
    assert backend.notes() == ("no CUDA graphs: sizes are free per request, or no sample of inputs runs",)
    for length in (2, 50, 7):
        (got,) = backend.run({"x": np.full((3, length), 2, np.float32)}).values()
        assert got.tolist() == [[2.0 * length]] * 3
    with pytest.raises(InputsUnfit):
        backend.run({"x": np.ones((3, 51), np.float32)})


def test_sizes_that_are_padded_to_are_captured_each() -> None:
    class Masked(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> Any:
            return (x * (x > 0)).sum(1, keepdim=True)

    content = exported(Masked(), (torch.ones((4, 6)),), ({0: ROWS, 1: torch.export.Dim("length", min=2, max=50)},))
    device = LazyDevice()
    backend = opened(content, device=device)
    backend.signature = with_pad_sizes(backend.signature, [TensorSettings(name="x", pad_to=(4, 16))])
    backend.prepare(BUCKETS)
    assert backend.notes() == ("CUDA graphs for batches of 1, 2, 4, 8, in sizes 4, 16",)
    for length, graphs in ((4, 1), (16, 1), (7, 0)):
        before = device.replays
        (got,) = backend.run({"x": np.full((2, length), 3, np.float32)}).values()
        assert got.tolist() == [[3.0 * length]] * 2
        assert device.replays - before == graphs


def test_a_kernel_that_fails_loses_the_device() -> None:
    device = LazyDevice()
    backend = opened(device=device)
    backend.prepare(BUCKETS)
    pending = backend.begin(batch(2))
    device.broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLost, match=r"^executing model 'm' failed: CUDA error: an illegal memory access"):
        pending.wait()
    for _ in range(2 * SLOTS):
        with pytest.raises(DeviceLost):
            backend.run(batch(2))


def test_a_full_device_fails_the_batch_and_no_other() -> None:
    device = LazyDevice(total_bytes=2500)
    backend = opened(device=device, max_batch=128)
    assert right(batch(8), backend.run(batch(8)))
    for _ in range(2 * SLOTS):
        with pytest.raises(OutOfDeviceMemory, match="out of memory"):
            backend.run(batch(128))
    assert right(batch(8), backend.run(batch(8)))


def test_graphs_that_do_not_fit_are_left_out() -> None:
    backend = opened(device=LazyDevice(total_bytes=600))
    backend.prepare((1, 2, 4, 8))
    (note,) = backend.notes()
    assert "no CUDA graphs: CUDA out of memory" in note


def test_texts_are_looked_up_before_they_cross() -> None:
    names = ProgramNames(inputs=["x", "word"], vocabularies={"word": VocabularyRecord(codes={"a": 5}, unknown=7)})
    backend = opened(names=names)
    backend.prepare(BUCKETS)
    words = np.array([[b"a"], [b"?"]], dtype=object)
    assert not isinstance(backend.arrays({"x": ((2, 4), np.dtype("f4")), "word": ((2, 1), np.dtype(object))}), Slab)
    x = np.ones((2, 4), np.float32)
    assert right({"x": x, "n": np.array([[5], [7]])}, backend.run({"x": x, "word": words}))


def test_outputs_without_their_rows_are_refused() -> None:
    class Total(nn.Module):  # type: ignore[misc]  # as above
        def forward(self, x: torch.Tensor) -> Any:
            return torch.cat([x, x])

    content = exported(Total(), (torch.ones((4, 2)),), ({0: ROWS},))
    backend = opened(content)
    with pytest.raises(BackendFailed, match=r"has shape \[6, 2\] for 3 rows"):
        backend.run({"x": np.ones((3, 2), np.float32)})


def test_close_gives_everything_back() -> None:
    device = LazyDevice()
    backend = opened(device=device)
    backend.prepare(BUCKETS)
    assert backend.memory_bytes() == 48
    backend.close()
    assert device.trimmed == 1
