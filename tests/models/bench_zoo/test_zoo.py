"""The zoo's networks in sizes that a test can afford; tests/soak runs the same for the full ones."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bench_zoo import build as recipe
from models.bench_zoo.build import contents, main
from models.bench_zoo.networks import PARAMETERS, count
from models.bench_zoo.zoo import ZOO, inputs, make
from server.backends import onnx_session, torch_program
from server.backends.base import LoadTask
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from server.registry.source import LocalDirectory

ROOT = Path(__file__).parents[3]
ROWS = 5


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task(folder: Path) -> LoadTask:
    said = {"torch": {"intra_op_threads": 1}, "onnx": {"intra_op_threads": 1}, "max_batch": 8}
    return LoadTask(VersionKey("zoo", 1), folder, ModelSettings.model_validate(said))


def eager(name: str, dtype: str) -> tuple[dict[str, Array], Any]:
    """What the small network itself says of some rows."""
    given = inputs(ZOO[name], ROWS, small=True)
    with torch.inference_mode():
        answer = make(ZOO[name], dtype, small=True)(*given.values()).numpy()
    return {name: tensor.numpy() for name, tensor in given.items()}, answer


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_architectures_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert count(ZOO[name].make()) == PARAMETERS[name]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_served_programs_answer_as_the_network(name: str, dtype: str, tmp_path: Path) -> None:
    given, expected = eager(name, dtype)
    assert len(np.unique(expected.round(4), axis=0)) == ROWS, "every row has an answer of its own"
    files = contents(name, dtype, small=True)
    assert ("model.onnx" in files) == (ZOO[name].onnx and dtype == "fp32")
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    for module in (torch_program, onnx_session)[: len(files)]:
        backend = module.open_backend(task(tmp_path))
        assert [spec.name for spec in backend.signature.inputs] == list(given)
        assert [(spec.name, spec.datatype) for spec in backend.signature.outputs] == [(ZOO[name].output, "FP32")]
        got: Any = backend.run(given)[ZOO[name].output]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        single: Any = backend.run({name: array[:1] for name, array in given.items()})[ZOO[name].output]
        np.testing.assert_allclose(
            single, expected[:1], rtol=1e-4 if dtype == "fp32" else 5e-2, atol=1e-4 if dtype == "fp32" else 5e-2
        )
        backend.close()


def test_bf16_halves_the_weights_and_answers_nearly_the_same() -> None:
    for name in ("mlp", "resnet50", "bert_base"):
        assert {weight.dtype for weight in make(ZOO[name], "bf16", small=True).parameters()} == {torch.bfloat16}
        one, other = (eager(name, dtype)[1] for dtype in ("fp32", "bf16"))
        assert np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_images_stay_in_the_order_in_which_they_come() -> None:
    network = make(ZOO["resnet50"], small=True)
    image = inputs(ZOO["resnet50"], 2, small=True)["image"]
    seen: list[torch.Tensor] = []
    network.blocks.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network(image)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_equal_seeds_are_equal_bytes_in_another_process_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models.bench_zoo.build", "--only", "mlp", "--check", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    here = contents("mlp", "fp32")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mlp" / "1").iterdir()} == here
    assert contents("mlp", "fp32", seed=1)["program.pt2"] != here["program.pt2"]
    found = LocalDirectory(tmp_path, settle_s=0.0).scan()["mlp"]
    assert found.problem is None
    assert found.settings is not None
    assert (found.settings.backend, found.settings.max_batch, found.settings.torch.device) == ("torch", 1024, "cpu")


def test_what_is_not_the_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETERS, "mlp", 7)
    with pytest.raises(ValueError, match="mlp has 2133008 parameters, not 7"):
        contents("mlp", "fp32")
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "difference", lambda *_: 1.0)
    assert main(["--only", "mlp", "--check", "--out", str(tmp_path)]) == 1
