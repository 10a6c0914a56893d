import numpy as np
import pytest

from server.backends.pt2_program import Program, ProgramTensor
from server.backends.pt2_signature import check_sizes, free_dims, program_signature
from server.core.errors import InputsUnfit, LoadFailed
from server.core.settings import ModelSettings
from server.core.tensors import Array, TensorSpec

X = ProgramTensor("x", "float32", ("s0", "s1", None, 4), 0)
Y = ProgramTensor("y", "float32", ("s0",), 1)
RANGES = {"s0": (1, 20), "s1": (3, None)}


def test_the_batch_keeps_to_the_range_of_its_symbol() -> None:
    assert program_signature("m", [X], [Y], ModelSettings(), RANGES, "f").max_batch == 20
    assert program_signature("m", [X], [Y], ModelSettings(), {}, "f").max_batch == 64
    assert program_signature("m", [X], [Y], ModelSettings(max_batch=20), RANGES, "f").max_batch == 20
    for limits in ((3, None), (0, 0)):
        alone = program_signature("m", [X], [Y], ModelSettings(), {"s0": limits}, "f")
        assert (alone.max_batch, alone.inputs) == (0, (TensorSpec("x", "FP32", (-1, -1, -1, 4)),))
        with pytest.raises(LoadFailed, match="states max_batch = 64, but the program takes"):
            program_signature("m", [X], [Y], ModelSettings(max_batch=64), {"s0": limits}, "f")


def test_free_dimensions_are_those_with_a_symbol() -> None:
    program = Program((X,), (Y,), (), (), 2, RANGES)
    signature = program_signature("m", [X], [Y], ModelSettings(), RANGES, "f")
    (length,) = free_dims(signature, program)
    assert (length.name, length.axis, length.symbol, length.least, length.most) == ("x", 1, "s1", 3, None)
    alone = program_signature("m", [X], [Y], ModelSettings(max_batch=0), RANGES, "f")
    assert [dim.symbol for dim in free_dims(alone, program)] == ["s0", "s1"]
    small: dict[str, Array] = {"x": np.zeros((1, 2, 1, 4), np.float32)}
    with pytest.raises(InputsUnfit, match="dimension 1 of input 'x' is 2; the program takes 3 to any size"):
        check_sizes((length,), small)
    free = free_dims(alone, program)
    check_sizes(free, {"x": np.zeros((4, 4, 1, 4), np.float32)})
    with pytest.raises(InputsUnfit, match="dimension 1 of input 'x' is 4; others like it are 5"):
        check_sizes((free[1], free[1]), _Changing())


class _Changing(dict[str, Array]):
    """An input whose size is another one every time it is looked at, as two inputs of one symbol may differ."""

    def __missing__(self, name: str) -> Array:
        self.seen = getattr(self, "seen", 6) - 1
        found: Array = np.zeros((4, self.seen, 1, 4), np.float32)
        return found
