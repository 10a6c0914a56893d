"""Single nodes as steps: what each kind of argument and result becomes, and what is refused."""

import math
from typing import Any

import pytest

from server.backends.pt2_graph import Cells, Result, Step, TorchWord, Value, read_steps
from server.core.errors import LoadFailed

ADD = "torch.ops.aten.add.Tensor"


def node(target: str, *inputs: Any, outputs: Any = None, kind: int | None = 1) -> dict[str, Any]:
    return {
        "target": target,
        "inputs": [{"name": name, "arg": argument, "kind": kind} for name, argument in inputs],
        "outputs": [{"as_tensor": {"name": "out"}}] if outputs is None else outputs,
    }


def cells() -> Cells:
    """Tensors t and u in 0 and 1, the number n in 2."""
    known = Cells()
    known.add("t", "x")
    known.add("u", "x")
    known.add("n", "x", number=True)
    return known


def step(*nodes: Any) -> Step:
    return read_steps(list(nodes), cells(), "nodes")[0]


T, U = {"name": "t"}, {"name": "u"}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"as_tensor": T}, Value(0)),
        ({"as_tensors": [T, U]}, (Value(0), Value(1))),
        ({"as_optional_tensor": {"as_none": True}}, None),
        ({"as_optional_tensors": [{"as_none": True}, {"as_tensor": U}]}, (None, Value(1))),
        ({"as_sym_int": {"as_name": "n"}}, Value(2)),
        ({"as_sym_ints": [{"as_name": "n"}, {"as_int": 4}]}, (Value(2), 4)),
        ({"as_sym_float": {"as_float": 0.5}}, 0.5),
        ({"as_sym_floats": [{"as_float": 0.5}]}, (0.5,)),
        ({"as_sym_bool": {"as_bool": True}}, True),
        ({"as_scalar_type": 13}, TorchWord("dtype", "bfloat16")),
        ({"as_memory_format": 2}, TorchWord("memory_format", "channels_last")),
        ({"as_layout": 7}, TorchWord("layout", "strided")),
        ({"as_device": {"type": "cuda", "index": 5}}, TorchWord("device")),
        ({"as_none": True}, None),
        ({"as_int": -3}, -3),
        ({"as_float": "-Infinity"}, -math.inf),
        ({"as_bool": False}, False),
        ({"as_string": "mean"}, "mean"),
        ({"as_ints": [1, -1]}, (1, -1)),
        ({"as_floats": [1.0, 2]}, (1.0, 2.0)),
        ({"as_bools": [True]}, (True,)),
    ],
)
def test_arguments(argument: Any, expected: Any) -> None:
    assert step(node(ADD, ("self", argument))).positional == (("self", expected),)
    for kind in (2, None):
        assert step(node(ADD, ("self", argument), kind=kind)).keywords == (("self", expected),)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"as_graph": {}}, "an argument of the kind 'as_graph'"),
        ({"as_custom_obj": {}}, "an argument of the kind 'as_custom_obj'"),
        ({"as_operator": "os.system"}, "an argument of the kind 'as_operator'"),
        ({"as_tensor": {"name": "later"}}, "'later' is read but not made before"),
        ({"as_tensor": {"name": "n"}}, "'n' is read but not made before"),
        ({"as_sym_int": {"as_name": "t"}}, "'t' is read but not made before"),
        ({"as_sym_int": {"as_expr": "s0"}}, "'as_expr' is no kind of number"),
        ({"as_scalar_type": 9}, "dtype 9 cannot be served"),
        ({"as_layout": 1}, "layout 1 cannot be served"),
        ({"as_device": "cuda"}, "'cuda' is no object"),
        ({"as_int": 2**64}, "is no integer"),
        ({}, "0 entries where one says what it is"),
    ],
)
def test_arguments_that_are_refused(argument: Any, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        step(node(ADD, ("self", argument)))
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"nodes[0] ({ADD})")


def test_results() -> None:
    outputs = [{"as_tensors": [{"name": "a"}, {"name": "b"}]}, {"as_none": True}, {"as_sym_int": {"as_name": "m"}}]
    assert step(node(ADD, outputs=outputs)).results == (Result((3, 4), is_list=True), Result(()), Result((5,), number=True))
    for output, text in (
        ({"as_graph": {}}, "a result of the kind 'as_graph'"),
        ({"as_tensor": T}, "the value 't' is made twice"),
    ):
        with pytest.raises(LoadFailed, match=text):
            step(node(ADD, outputs=[output]))


NUMBER = [{"as_sym_int": {"as_name": "m"}}]


def test_arithmetic_takes_numbers_and_gives_one() -> None:
    found = step(node("_operator.mul", ("a", {"as_sym_int": {"as_name": "n"}}), ("b", {"as_int": 2}), outputs=NUMBER, kind=2))
    assert (found.operator, found.positional, found.keywords) == ("_operator.mul", (("a", Value(2)), ("b", 2)), ())
    assert found.is_number
    for argument in ({"as_string": "x"}, {"as_ints": [1]}, {"as_none": True}, {"as_layout": 7}):
        with pytest.raises(LoadFailed, match="arithmetic takes numbers only"):
            step(node("_operator.mul", ("a", argument), ("b", {"as_int": 2}), outputs=NUMBER))
    with pytest.raises(LoadFailed, match="arithmetic takes numbers only"):
        step(node("_operator.mul", ("a", {"as_tensor": T}), ("b", {"as_int": 2}), outputs=NUMBER))
    for outputs in ([], [{"as_tensor": {"name": "m"}}]):
        with pytest.raises(LoadFailed, match="arithmetic gives one number"):
            step(node("_operator.mul", ("a", {"as_int": 2}), outputs=outputs))


def test_what_the_exporter_asserts_about_types_is_no_step() -> None:
    ignored = node("torch.ops.aten._assert_tensor_metadata.default", ("a", {"as_tensor": T}), outputs=[])
    assert read_steps([ignored], cells(), "nodes") == ()


def test_operators_that_learn_while_they_answer_are_refused() -> None:
    assert step(node("torch.ops.aten.dropout.default", ("train", {"as_bool": False}))).operator == "dropout.default"
    for inputs in ([("train", {"as_bool": True})], [("train", {"as_int": 0})], []):
        with pytest.raises(LoadFailed, match="'train' must be False"):
            step(node("torch.ops.aten.dropout.default", *inputs))
    with pytest.raises(LoadFailed, match="'running_mean' must be None"):
        step(node("torch.ops.aten.instance_norm.default", ("running_mean", {"as_tensor": T})))


def test_attention_may_leave_its_dropout_out_but_not_use_it() -> None:
    attention = "torch.ops.aten.scaled_dot_product_attention.default"
    for inputs in ([], [("dropout_p", {"as_float": 0.0})]):
        assert step(node(attention, *inputs)).operator == "scaled_dot_product_attention.default"
    for given in ({"as_float": 0.1}, {"as_bool": False}, {"as_tensor": T}):
        with pytest.raises(LoadFailed, match=r"'dropout_p' must be 0\.0"):
            step(node(attention, ("dropout_p", given)))


def test_operators_that_are_not_listed_are_refused() -> None:
    with pytest.raises(LoadFailed, match=r"^nodes\[0\] \(os\.system\): this operator is not among"):
        step(node("os.system"))
