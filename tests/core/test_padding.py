"""What a version may state of the sizes its inputs are padded to, and the element that is written there."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import LoadFailed
from server.core.padding import pad_element, with_pad_sizes
from server.core.settings import TensorSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec

IDS = TensorSpec("ids", "INT64", (-1,))
FIXED = TensorSpec("fixed", "FP32", (4,))
TEXTS = TensorSpec("texts", "BYTES", (-1,))
OUT = TensorSpec("y", "FP32", (3,))


def signature(*inputs: TensorSpec, output: TensorSpec = OUT) -> Signature:
    return Signature("m", inputs or (IDS, FIXED), (output,), 8)


def stated(name: str = "ids", **changes: Any) -> TensorSettings:
    return TensorSettings(name=name, **({"pad_to": (16, 32)} | changes))


def test_inputs_take_the_sizes_that_settings_state() -> None:
    bare = signature(IDS, FIXED)
    assert with_pad_sizes(bare, ()) is bare
    assert with_pad_sizes(bare, (TensorSettings(name="ids"),)) is bare
    made = with_pad_sizes(bare, (stated(pad_value=7), TensorSettings(name="fixed")))
    assert made.inputs == (TensorSpec("ids", "INT64", (-1,), pad_to=(16, 32), pad_value=7), FIXED)
    assert (made.outputs, made.max_batch, made.pad_sizes) == (bare.outputs, 8, (16, 32))


def test_answers_that_would_have_to_be_cut_are_refused() -> None:
    with pytest.raises(LoadFailed, match=r"^output 'y' has the shape \[-1, 2\]: with pad_to every dimension of an output must"):
        with_pad_sizes(signature(output=TensorSpec("y", "FP32", (-1, 2))), (stated(),))
    assert with_pad_sizes(signature(output=TensorSpec("y", "FP32", (-1, 2))), ()).pad_sizes == ()


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (stated("nobody"), "pad_to is stated for 'nobody', which is no input of the model"),
        (stated("fixed"), "input 'fixed' has the shape [4]: pad_to needs a free dimension (-1)"),
        (stated("texts"), "input 'texts' is BYTES: pad_to is for numbers"),
        (stated(pad_value=0.5), "pad_value 0.5 of input 'ids' is no INT64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_cannot_be_padded_are_refused(tensor: TensorSettings, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        with_pad_sizes(signature(IDS, FIXED, TEXTS), (tensor,))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("datatype", "value", "raw"),
    [
        ("BOOL", 1, b"\x01"),
        ("UINT8", 255, b"\xff"),
        ("INT8", -1, b"\xff"),
        ("UINT64", 2**64 - 1, b"\xff" * 8),
        ("INT64", -(2**63) + 1, b"\x01" + b"\0" * 6 + b"\x80"),
        ("INT32", 2.0, b"\x02\0\0\0"),
        ("FP16", -1e4, np.float16(-1e4).tobytes()),
        ("FP64", 0.1, np.float64(0.1).tobytes()),
        ("BF16", -2.0, b"\x00\xc0"),
    ],
)
def test_the_element_of_every_datatype(datatype: str, value: float, raw: bytes) -> None:
    made = with_pad_sizes(signature(TensorSpec("ids", datatype, (-1,))), (stated(pad_value=value),))
    element = pad_element(made.inputs[0])
    assert (element.tobytes(), element.dtype) == (raw, NUMPY_DTYPES[datatype])


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("BOOL", 2),
        ("UINT8", 256),
        ("UINT32", -1),
        ("INT8", 128),
        ("INT16", 1.5),
        ("INT64", 2**63),
        ("FP16", 1e6),
        ("FP32", 1e39),
        ("BF16", 3.4e38),
    ],
)
def test_numbers_that_a_datatype_cannot_hold_are_refused(datatype: str, value: float) -> None:
    with pytest.raises(LoadFailed, match=f"^pad_value .* of input 'ids' is no {datatype}$"):
        with_pad_sizes(signature(TensorSpec("ids", datatype, (-1,))), (stated(pad_value=value),))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126))
def test_bfloat16_is_the_nearest(value: float) -> None:
    """Among the neighbours that 16 bits have, none is nearer."""
    bits = int(pad_element(TensorSpec("x", "BF16", (-1,), pad_to=(4,), pad_value=value)))

    def number(pattern: int) -> float:
        return float(np.uint32(pattern << 16).view(np.float32))

    others = [bits - 1, bits + 1] if bits & 0x7FFF else [bits + 1]
    assert all(abs(number(bits) - value) <= abs(number(other) - value) for other in others)
