import numpy as np
import pytest

from server.backends.samples import Attempt, sample_inputs, worth_trying
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec


def signature(*shapes: tuple[int, ...], max_batch: int = 8, datatype: str = "FP32") -> Signature:
    specs = tuple(TensorSpec(f"x{index}", datatype, shape) for index, shape in enumerate(shapes))
    return Signature("m", specs, specs, max_batch)


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
@pytest.mark.parametrize("content", ["zeros", "ones", "varied"])
@pytest.mark.parametrize(("max_batch", "shape"), [(8, (5, 2)), (0, (2,)), (0, ())])
def test_samples_fit_the_model(datatype: str, content: str, max_batch: int, shape: tuple[int, ...]) -> None:
    model = signature((2,) if shape else (), max_batch=max_batch, datatype=datatype)
    inputs = sample_inputs(model, 5, content)  # type: ignore[arg-type] # parametrised over the literals
    assert (inputs["x0"].dtype, inputs["x0"].shape) == (NUMPY_DTYPES[datatype], shape)
    again = sample_inputs(model, 5, content)  # type: ignore[arg-type] # parametrised over the literals
    np.testing.assert_array_equal(inputs["x0"], again["x0"])


@pytest.mark.parametrize(
    ("datatype", "zero", "one"), [("BYTES", b"0", b"1"), ("BF16", 0, 0x3F80), ("INT8", 0, 1), ("FP16", 0, 1)]
)
def test_zeros_and_ones_are_those_numbers(datatype: str, zero: object, one: object) -> None:
    model = signature((1,), datatype=datatype)
    assert sample_inputs(model, 2, "zeros")["x0"].tolist() == [[zero], [zero]]
    assert sample_inputs(model, 2, "ones")["x0"].tolist() == [[one], [one]]


def test_varied_rows_and_inputs_differ() -> None:
    inputs = sample_inputs(signature((3,), (3,)), 4, "varied")
    assert len({row.tobytes() for array in inputs.values() for row in array}) == 8


def test_varied_integers_are_small() -> None:
    values = sample_inputs(signature((100,), datatype="INT64"), 4, "varied")["x0"]
    assert set(values.reshape(-1).tolist()) == {0, 1, 2, 3}


def test_free_dimensions_take_the_size_given() -> None:
    assert sample_inputs(signature((3, -1, -1)), 2, free_dim=5)["x0"].shape == (2, 3, 5, 5)


def test_attempts_that_are_alike_are_made_once() -> None:
    assert worth_trying(signature((3,)), (("varied", 3), ("varied", 1), ("ones", 1))) == [("varied", 1), ("ones", 1)]


def test_attempts_that_would_be_huge_are_left_out() -> None:
    attempts: tuple[Attempt, ...] = (("varied", 3), ("varied", 32), ("ones", 1))
    assert worth_trying(signature((3, -1, -1)), attempts) == list(attempts)
    assert worth_trying(signature((-1, -1, -1, -1)), attempts) == [("varied", 3), ("ones", 1)]


@pytest.mark.parametrize(("size", "expected"), [(None, 5), (2, 4), (4, 4), (8, 4), (9, 9), (20, 9)])
def test_padded_inputs_have_the_largest_of_their_sizes_that_is_asked_for(size: int | None, expected: int) -> None:
    padded = TensorSpec("x", "FP32", (-1, 2), pad_to=(4, 9))
    model = Signature("m", (padded, TensorSpec("y", "FP32", (-1,))), (), 8)
    made = sample_inputs(model, 3, free_dim=5, size=size)
    assert (made["x"].shape, made["y"].shape) == ((3, expected, 2), (3, 5))
