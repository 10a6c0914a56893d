from collections.abc import Callable, Mapping

import numpy as np
import pytest

from server.backends.probe import rows_mix
from server.core.errors import BackendDead, BackendFailed
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec

Function = Callable[[Array], Array]


class Function1:
    """A backend of one input and one output, given by a function."""

    platform = "test"
    device = "cpu"

    def __init__(
        self, function: Function, datatype: str = "FP32", out: str | None = None, shape: tuple[int, ...] = (3,)
    ) -> None:
        self.function = function
        self.signature = Signature("m", (TensorSpec("x", datatype, shape),), (TensorSpec("y", out or datatype, (-1,)),), 64)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.function(inputs["x"])}

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        return


def mix(function: Function, datatype: str = "FP32", out: str | None = None, shape: tuple[int, ...] = (3,)) -> str | None:
    backend = Function1(function, datatype, out, shape)
    return rows_mix(backend, backend.signature)


def as_float(array: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return array.astype(np.float64)


DEPENDS = "output 'y' of a row depends on the other rows of its batch"


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT64", "UINT8", "BOOL", "BYTES", "BF16"])
def test_independent_rows_pass(datatype: str) -> None:
    assert mix(lambda x: x[:, ::-1], datatype) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.exp(x) / np.exp(x).sum(axis=0),
        lambda x: x - x.mean(axis=0),
        lambda x: (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5),
        lambda x: np.round(x * 127 / np.abs(x).max()) * np.abs(x).max() / 127,
        lambda x: np.broadcast_to(x.sum(axis=0), x.shape),
        lambda x: np.sort(x, axis=0),
        lambda x: np.where(len(x) > 1, np.nan, x),
        lambda x: x if len(x) == 1 else np.repeat(x, 2, axis=1),
    ],
)
def test_rows_that_know_of_each_other_do_not(function: Function) -> None:
    assert mix(function) == DEPENDS


@pytest.mark.parametrize("datatype", ["INT32", "BF16", "BYTES"])
def test_other_datatypes_are_compared_too(datatype: str) -> None:
    assert mix(lambda x: np.broadcast_to(x[:1], x.shape), datatype) == DEPENDS


def test_rounding_differently_is_no_mixing() -> None:
    assert mix(lambda x: (as_float(x) * (1 + 1e-5 * len(x))).astype(np.float32)) is None


def test_nan_and_infinity_equal_themselves() -> None:
    assert mix(lambda x: np.where(as_float(x) > 0, np.inf, np.nan)) is None


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x.sum(axis=0), "output 'y' has shape [3] for 1 row"),
        (lambda x: x.reshape(-1), "output 'y' has shape [3] for 1 row"),
        (lambda x: np.float32(x.sum()), "output 'y' has shape [] for 1 row"),
        (lambda x: x[:1], "output 'y' has shape [1, 3] for 2 rows"),
        (lambda x: x.reshape(1, -1), "output 'y' has shape [1, 6] for 2 rows"),
    ],
)
def test_rows_must_come_back(function: Function, text: str) -> None:
    assert mix(function) == text


def fails_together(x: Array) -> Array:
    if len(x) > 1:
        raise BackendFailed("no reshape")
    return x


def test_rows_that_only_run_alone() -> None:
    assert mix(fails_together) == "rows that run alone do not run 2 together (no reshape)"


def test_what_differs_by_itself_is_not_trusted() -> None:
    generator = np.random.default_rng(0)
    text = "output 'y' differs between two runs of the same row, so that rows cannot be compared"
    assert mix(lambda x: generator.standard_normal(x.shape)) == text


def never(x: Array) -> Array:
    raise BackendFailed("wants a real image")


def test_a_model_that_takes_no_sample_cannot_be_judged() -> None:
    assert mix(never) is None


def test_a_model_that_only_takes_some_samples_is_judged_by_those() -> None:
    def picky(x: Array) -> Array:
        if not (as_float(x) == 1).all():
            raise BackendFailed("wants ones")
        return as_float(x) / len(x)

    assert mix(picky) == DEPENDS


def test_free_dimensions_are_tried_larger() -> None:
    def large(x: Array) -> Array:
        if x.shape[1] < 8:
            raise BackendFailed("kernel larger than image")
        answer: Array = x - x.mean(axis=0)
        return answer

    assert mix(large, shape=(-1, -1)) == DEPENDS


@pytest.mark.parametrize("rows", [1, 2])
def test_a_dead_device_is_not_a_verdict(rows: int) -> None:
    def dies(x: Array) -> Array:
        if len(x) == rows:
            raise BackendDead("gone")
        return x

    with pytest.raises(BackendDead):
        mix(dies)
