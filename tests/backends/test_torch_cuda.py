"""Torch programs on a CUDA device: what `test_torch_device` shows without one, and what only a device can show."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from server.backends.base import LoadTask
from server.backends.torch_program import open_backend
from server.core.errors import OutOfDeviceMemory
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from tests.backends.programs import ROWS, exported

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
BUCKETS = (1, 2, 4, 8, 16)
MIB = 2**20


class Image(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """Convolutions, a norm, a pool: what a vision model is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.layers(x.to(torch.float32) / 255).flatten(1))


class Words(nn.Module):  # type: ignore[misc]  # as above
    """An embedding, attention, a norm: what a language model is made of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(100, 32)
        self.three = nn.Linear(32, 96)
        self.norm = nn.LayerNorm(32)

    def forward(self, ids: torch.Tensor) -> Any:
        states = self.table(ids)
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.three(states).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(states + mixed).mean(1)


MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "image": (Image, torch.zeros((2, 3, 16, 16), dtype=torch.uint8)),
    "words": (Words, torch.zeros((2, 12), dtype=torch.int64)),
}


def sample(name: str, rows: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    if name == "image":
        return {"x": generator.integers(0, 256, (rows, 3, 16, 16), dtype=np.uint8)}
    return {"ids": generator.integers(0, 100, (rows, 12))}


@pytest.fixture
def opened(folder: Path) -> Callable[..., Any]:
    def opened(name: str, max_batch: int = 16, **settings: Any) -> Any:
        made, example = MODELS[name]
        (folder / "program.pt2").write_bytes(exported(made(), (example,), ({0: ROWS},)))
        chosen = {"max_batch": max_batch, "torch": {"device": "cuda"} | settings}
        return open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings.model_validate(chosen)))

    return opened


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({}, 2e-3),
        ({"cuda_graphs": False}, 2e-3),
        ({"precision": "bf16"}, 6e-2),
        ({"precision": "fp16", "channels_last": True}, 2e-2),
        ({"compile": "default"}, 2e-3),
    ],
    ids=["graphs", "eager", "bf16", "fp16-channels-last", "compiled"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_gpu_answers_as_the_cpu_does(opened: Any, name: str, settings: dict[str, Any], tolerance: float) -> None:
    cpu = opened(name, device="cpu")
    gpu = opened(name, **settings)
    gpu.prepare(BUCKETS)
    graphs = "CUDA graphs for batches of 1, 2, 4, 8, 16"
    assert (graphs in gpu.notes()) == settings.get("cuda_graphs", True), gpu.notes()
    for rows in (1, 2, 3, 16):
        inputs = sample(name, rows, rows)
        (expected,), (got,) = cpu.run(inputs).values(), gpu.run(inputs).values()
        assert got.dtype == expected.dtype
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    gpu.close()


def test_a_batch_that_is_ahead_changes_nobodys_answer(opened: Any) -> None:
    backend = opened("words")
    backend.prepare(BUCKETS)
    expected = {(rows, seed): backend.run(sample("words", rows, seed)) for rows in BUCKETS for seed in range(4)}
    wrong: list[Any] = []

    def work(number: int) -> None:
        generator = np.random.default_rng(number)
        for _ in range(300):
            key = (int(generator.choice(BUCKETS)), int(generator.integers(4)))
            given = sample("words", *key)
            inputs = backend.arrays({name: (array.shape, array.dtype) for name, array in given.items()})
            for name, array in given.items():
                inputs[name][...] = array
            pending = backend.begin(inputs)
            pending.wait()
            (got,), (want,) = pending.outputs().values(), expected[key].values()
            if not np.array_equal(got, want):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    backend.close()


def test_inputs_lie_in_pinned_memory(opened: Any) -> None:
    backend = opened("words")
    slab = backend.arrays({"ids": ((4, 12), np.dtype(np.int64))})
    assert slab.whole.is_pinned()


def test_a_full_device_fails_one_batch(opened: Any) -> None:
    backend = opened("image")
    backend.prepare((1,))
    free, _ = torch.cuda.mem_get_info(0)
    hog = torch.empty(free - 64 * MIB, dtype=torch.uint8, device="cuda:0")
    torch.cuda.empty_cache()
    try:
        with pytest.raises(OutOfDeviceMemory):
            backend.run({"x": np.zeros((8192, 3, 16, 16), np.uint8)})  # 134 MB after the first layer
    finally:
        del hog
        torch.cuda.empty_cache()
    assert backend.run(sample("image", 4, 1))
    backend.close()


def test_a_hundred_loads_and_unloads_leave_nothing_behind(opened: Any) -> None:
    def cycle() -> None:
        backend = opened("words")
        backend.prepare(BUCKETS)
        backend.run(sample("words", 8, 1))
        backend.close()

    for _ in range(3):  # what libraries keep for themselves
        cycle()
    before, _ = torch.cuda.mem_get_info(0)
    for _ in range(100):
        cycle()
    after, _ = torch.cuda.mem_get_info(0)
    assert before - after < 16 * MIB


BREAKS = """
import sys
import numpy as np
from pathlib import Path
from server.backends.base import LoadTask
from server.backends.torch_program import open_backend
from server.core.errors import DeviceLost
from server.core.settings import ModelSettings
from server.core.versions import VersionKey

settings = ModelSettings.model_validate({"max_batch": 16, "torch": {"device": "cuda"}})
backend = open_backend(LoadTask(VersionKey("m", 1), Path(sys.argv[1]), settings))
backend.prepare((1, 2))
lost = 0
for value in (1, 10**9, 1, 1):
    try:
        backend.run({"ids": np.full((2, 12), value)})
    except DeviceLost as error:
        lost += 1
        assert "/" not in str(error), error
sys.exit(10 + lost)
"""


def test_an_index_out_of_range_loses_the_device_for_good(opened: Any, folder: Path) -> None:
    opened("words").close()  # writes the file
    done = subprocess.run([sys.executable, "-c", BREAKS, str(folder)], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 13
