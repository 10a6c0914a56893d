from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from server.backends.onnx_signature import DATATYPES, read_signature, without_batching
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec


@dataclass(frozen=True)
class Arg:
    name: str
    shape: Sequence[int | str | None]
    type: str = "tensor(float)"


def read(inputs: list[Arg], outputs: list[Arg], /, **settings: object) -> Signature:
    return read_signature("m", inputs, outputs, ModelSettings.model_validate(settings), "model.onnx")


X, Y = Arg("x", ["N", 3]), Arg("y", ["N", 2])


def test_a_free_first_dimension_is_the_batch() -> None:
    assert read([X], [Y]) == Signature("m", (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (2,)),), 64)


def test_every_datatype_of_the_protocol_has_its_word() -> None:
    assert sorted(DATATYPES.values()) == sorted(NUMPY_DTYPES)


@pytest.mark.parametrize(
    "kind", ["tensor(float8e4m3fn)", "seq(tensor(float))", "map(string,tensor(float))", "optional(tensor(float))"]
)
def test_types_that_cannot_be_served_are_named(kind: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read([X], [Arg("y", ["N"], kind)])
    assert str(caught.value) == f"output 'y' of model.onnx is a {kind}, which cannot be served"


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([Arg("x", [4, 3])], [Y]),
        ([X], [Arg("y", [2])]),
        ([X], [Arg("y", [])]),
        ([Arg("x", [])], [Y]),
        ([X, Arg("z", ["M", 3])], [Y]),
        ([Arg("x", ["N", "N"])], [Y]),
        ([X], [Arg("y", ["N", "N"])]),
        ([], [Y]),
    ],
)
def test_what_does_not_batch_shows_its_full_shapes(inputs: list[Arg], outputs: list[Arg]) -> None:
    signature = read(inputs, outputs)
    assert signature.max_batch == 0
    for arg, spec in zip((*inputs, *outputs), (*signature.inputs, *signature.outputs), strict=True):
        assert spec.shape == tuple(dim if isinstance(dim, int) else -1 for dim in arg.shape)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([Arg("x", [None, 3]), Arg("z", ["N", "T", "F"])], [Y]),
        ([Arg("x", [-1])], [Arg("y", ["M", 5])]),
    ],
)
def test_symbols_are_compared_where_they_are_given(inputs: list[Arg], outputs: list[Arg]) -> None:
    assert read(inputs, outputs).max_batch == 64


def test_max_batch_0_states_full_shapes() -> None:
    signature = read([X], [Y], max_batch=0, inputs=[{"name": "x", "shape": [5, 3]}])
    assert (signature.max_batch, signature.inputs[0].shape, signature.outputs[0].shape) == (0, (5, 3), (-1, 2))


def test_a_stated_max_batch_overrules_symbols() -> None:
    assert read([X, Arg("z", ["M"])], [Y], max_batch=7).max_batch == 7


@pytest.mark.parametrize(
    ("inputs", "outputs", "obstacle"),
    [
        ([Arg("x", [4, 3])], [Y], "input 'x' has its first dimension fixed at 4"),
        ([X], [Arg("y", [2])], "output 'y' has its first dimension fixed at 2"),
        ([X], [Arg("y", [])], "output 'y' has no dimensions, or none that the file states"),
        ([], [Y], "there is no input to carry rows"),
    ],
)
def test_a_file_contradicts_a_stated_max_batch(inputs: list[Arg], outputs: list[Arg], obstacle: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read(inputs, outputs, max_batch=8)
    assert f"model.toml states max_batch = 8, but in model.onnx {obstacle};" in str(caught.value)


def test_an_unknown_rank_takes_the_stated_shape() -> None:
    signature = read([X], [Arg("y", [])], max_batch=8, outputs=[{"name": "y", "shape": [2]}])
    assert signature.outputs == (TensorSpec("y", "FP32", (2,)),)


def test_settings_narrow_the_file() -> None:
    images = Arg("x", ["N", 3, "H", "W"])
    signature = read([images], [Y], inputs=[{"name": "x", "datatype": "FP32", "shape": [3, 224, -1]}])
    assert signature.inputs == (TensorSpec("x", "FP32", (3, 224, -1)),)
    assert read([images], [Y], inputs=[{"name": "x", "datatype": "FP32"}]).inputs[0].shape == (3, -1, -1)


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        ({"name": "q"}, "model.toml states input 'q', but model.onnx has the inputs ['x']"),
        ({"name": "x", "datatype": "FP64"}, "model.toml states FP64 for input 'x', but in model.onnx it is FP32"),
        (
            {"name": "x", "shape": [-1, 3]},
            "model.toml states shape [-1, 3] for input 'x', but in model.onnx it is [3] (without the batch dimension;"
            " max_batch = 0 states full shapes)",
        ),
        (
            {"name": "x", "shape": [-1]},
            "model.toml states shape [-1] for input 'x', but in model.onnx it is [3] (without the batch dimension;"
            " max_batch = 0 states full shapes)",
        ),
        ({"name": "x", "optional": True}, "model.toml calls input 'x' optional, but model.onnx always has it"),
    ],
)
def test_contradictions_name_both_sides(stated: dict[str, object], text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read([X], [Y], inputs=[stated])
    assert str(caught.value) == text


def test_a_contradiction_of_full_shapes_has_no_note() -> None:
    with pytest.raises(LoadFailed, match=r"it is \[-1, 3\]$"):
        read([X], [Y], max_batch=0, inputs=[{"name": "x", "shape": [3]}])


def test_a_tensor_is_stated_once() -> None:
    with pytest.raises(LoadFailed, match="states output 'y' twice"):
        read([X], [Y], outputs=[{"name": "y"}, {"name": "y"}])


def test_without_batching_keeps_what_metadata_shows() -> None:
    signature = read([X, Arg("z", ["N"])], [Y])
    full = without_batching(signature)
    assert full.max_batch == 0
    assert [full.full_shape(spec) for spec in full.inputs] == [signature.full_shape(spec) for spec in signature.inputs]
    assert full.outputs[0].shape == (-1, 2)
