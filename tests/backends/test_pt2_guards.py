"""Arguments that would end the process, or answer foreign memory, fail alone; all others answer as torch does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.backends.base import LoadTask
from server.backends.pt2_guards import guarded
from server.backends.torch_program import FILE, open_backend
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from tests.backends.programs import exported

LEAST = {torch.int32: -(2**31), torch.int64: -(2**63)}


def operator(step: str) -> Callable[..., Any]:
    name, _, overload = step.partition(".")
    return guarded(step, getattr(getattr(torch.ops.aten, name), overload))


def test_what_needs_no_guard_has_none() -> None:
    assert operator("add.Tensor") is torch.ops.aten.add.Tensor


def test_a_caller_cannot_end_the_process_by_a_division(tmp_path: Path) -> None:
    class Divide(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.div(x, y, rounding_mode="trunc")

    ones = torch.ones((2, 1), dtype=torch.int64)
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / FILE).write_bytes(exported(Divide(), (ones, ones.clone()), decompose=False))
    backend = open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings()))
    values = {"x": np.array([[-(2**63)], [7]]), "y": np.array([[-1], [-2]])}
    assert next(iter(backend.run(values).values())).tolist() == [[-(2**63)], [-3]]
    backend.close()


@pytest.mark.parametrize("dtype", LEAST)
def test_the_smallest_integer_is_divided_by_minus_one(dtype: Any) -> None:
    tensors, numbers = operator("div.Tensor_mode"), operator("div.Scalar_mode")
    values = torch.tensor([LEAST[dtype], -7, 7, 0], dtype=dtype)
    expected = [LEAST[dtype], 7, -7, 0]  # it wraps, as negating it does
    assert tensors(values, torch.full((4,), -1, dtype=dtype), rounding_mode="trunc").tolist() == expected
    assert tensors(values, torch.tensor(-1, dtype=dtype), rounding_mode="trunc").dtype is dtype
    assert numbers(values, -1, rounding_mode="trunc").tolist() == expected


@pytest.mark.parametrize("mode", ["trunc", "floor", None])
def test_other_divisions_are_torchs(mode: str | None) -> None:
    tensors, numbers = operator("div.Tensor_mode"), operator("div.Scalar_mode")
    dtypes = (torch.int64, torch.int8, torch.uint8, torch.float32)
    for above in dtypes:
        values = torch.tensor([[100], [7], [3]]).to(above)
        for below in dtypes:
            divisors = torch.tensor([-1, 2, -3, 255]).to(below)
            got = tensors(values, divisors, rounding_mode=mode)
            wanted = torch.div(values, divisors, rounding_mode=mode)
            assert got.dtype is wanted.dtype
            assert torch.equal(got, wanted)
        for divisor in (-1, -1.0, 3, 2.5):
            got, wanted = numbers(values, divisor, rounding_mode=mode), torch.div(values, divisor, rounding_mode=mode)
            assert got.dtype is wanted.dtype
            assert torch.equal(got, wanted)
    with pytest.raises(RuntimeError, match="ZeroDivision"):
        tensors(torch.tensor([1]), torch.tensor([0]), rounding_mode="trunc")


def test_ranges_are_counted_before_they_are_made() -> None:
    step = operator("arange.start_step")
    assert step(0, 6, 2).tolist() == [0, 2, 4]
    assert operator("arange.default")(end=3).tolist() == [0, 1, 2]
    for bounds in ((0, -(2**63), -1), (0, -(2.0**63), -1), (0, float("nan"), 1)):
        with pytest.raises(ValueError, match="64 bits"):
            step(*bounds, dtype=torch.int64)


def test_statistics_are_as_many_as_channels() -> None:
    normalize = operator("_native_batch_norm_legit_no_training.default")
    values, one, three = torch.randn(2, 3, 4), torch.ones(1), torch.full((3,), 2.0)
    wanted = torch.nn.functional.batch_norm(values, three, three, three, three)
    torch.testing.assert_close(normalize(values, three, three, three, three, 0.1, 1e-5)[0], wanted)
    named = {"running_mean": three, "running_var": three, "momentum": 0.1, "eps": 1e-5}
    assert normalize(values, None, None, **named)[0].shape == values.shape
    for arguments in ((one, None, three, three), (None, one, three, three), (None, None, one, three), (None, None, three, one)):
        with pytest.raises(ValueError, match=r"statistics of shape \[1\] for \[3\] channels"):
            normalize(values, *arguments, 0.1, 1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_an_lstm_answers_as_torchs_and_its_shapes_must_fit(
    bias: bool, projection: int, bidirectional: bool, batch_first: bool
) -> None:
    layers, cells, sides = 2, 5, 2 if bidirectional else 1
    model = torch.nn.LSTM(
        3, cells, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, proj_size=projection
    ).eval()
    values = torch.randn(4, 6, 3)
    rows = 4 if batch_first else 6
    states = [torch.zeros(layers * sides, rows, projection or cells), torch.zeros(layers * sides, rows, cells)]
    weights = [weight.detach() for weight in model._flat_weights]
    rest = (bias, layers, 0.0, False, bidirectional, batch_first)
    lstm = operator("lstm.input")
    with torch.inference_mode():
        torch.testing.assert_close(lstm(values, states, weights, *rest)[0], model(values)[0])
    wrong: list[tuple[Any, Any]] = [
        (states, [*weights[:index], weight[:1], *weights[index + 1 :]]) for index, weight in enumerate(weights)
    ]
    wrong += [(states, weights[:-1]), ([state[:, :1] for state in states], weights), (states, [w.half() for w in weights])]
    for given, params in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            lstm(values, given, params, *rest)
