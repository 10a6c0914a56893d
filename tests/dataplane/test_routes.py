"""Which sets of inputs the fast lane may take."""

import pytest

from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.dataplane.native.routes import masks, stated


def signature(required: int, optional: int) -> Signature:
    names = [(f"r{index}", False) for index in range(required)] + [(f"o{index}", True) for index in range(optional)]
    return Signature("m", tuple(TensorSpec(name, "FP32", (1,), optional=free) for name, free in names), (), 4)


def test_every_set_of_optional_inputs_with_all_that_are_required() -> None:
    assert masks(signature(2, 2), lambda names: True) == [0b0011, 0b0111, 0b1011, 0b1111]


def test_only_sets_that_can_be_run() -> None:
    assert masks(signature(1, 2), lambda names: "o1" in names) == [0b101, 0b111]


def test_of_many_optional_inputs_none_or_all() -> None:
    assert masks(signature(1, 9), lambda names: True) == [1, 2**10 - 1]


@pytest.mark.parametrize(("inputs", "expected"), [(64, [2**64 - 1]), (65, [])])
def test_as_many_inputs_as_a_mask_has_bits(inputs: int, expected: list[int]) -> None:
    assert masks(signature(inputs, 0), lambda names: True) == expected


def test_tensors_bring_an_element_of_their_padding() -> None:
    inputs = (TensorSpec("ids", "INT16", (-1,), pad_to=(4, 8), pad_value=-2), TensorSpec("n", "FP32", (1,), optional=True))
    assert stated(Signature("m", inputs, (TensorSpec("y", "BYTES", (2,)),), 4)) == (
        [("ids", "INT16", [-1], False, [4, 8], b"\xfe\xff"), ("n", "FP32", [1], True, [], b"")],
        [("y", "BYTES", [2], False, [], b"")],
    )
