"""Reading a program: the valid one whole, and every place where it can be wrong."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from server.backends.pt2_archive import CONSTANTS_CONFIG, PROGRAM, WEIGHTS_CONFIG
from server.backends.pt2_graph import Value, drops
from server.backends.pt2_program import read_program, read_stored
from server.core.errors import LoadFailed
from tests.backends.programs import records, small

VALID = json.loads(records(small())[PROGRAM])
STORED = json.loads(records(small())[WEIGHTS_CONFIG])
Edit = Callable[[Any], Any]


def test_the_whole_program_is_read() -> None:
    program = read_program(VALID, "r")
    assert [(tensor.name, tensor.type, tensor.shape[1:]) for tensor in program.inputs] == [
        ("codes", "int64", (1,)),
        ("numbers", "float32", (2,)),
    ]
    batch = program.inputs[0].shape[0]
    assert isinstance(batch, str)
    assert program.inputs[1].shape[0] == program.outputs[0].shape[0] == batch
    assert program.ranges == {batch: (0, 128)}
    assert [(weight.key, weight.is_constant) for weight in program.weights] == [
        ("table", False),
        ("weight", False),
        ("shift", False),
        ("factor", True),
    ]
    assert [step.operator for step in program.steps][-1] == "sigmoid.default"
    assert read_program({**VALID, "range_constraints": {}}, "r").ranges == {}


def test_values_are_dropped_after_they_were_read_for_the_last_time() -> None:
    program = read_program(VALID, "r")
    keep = {tensor.cell for tensor in (*program.inputs, *program.outputs)} | {weight.cell for weight in program.weights}
    gone = drops(program.steps, keep)
    made = [cell for step in program.steps for result in step.results for cell in result.cells]
    assert sorted(cell for cells in gone for cell in cells) == sorted(set(made) - keep)
    for index, cells in enumerate(gone):
        for step in program.steps[index + 1 :]:
            read = [item for _, given in step.positional for item in (given if isinstance(given, tuple) else (given,))]
            assert not {item.cell for item in read if isinstance(item, Value)} & set(cells)


def stored(**change: Any) -> Any:
    config = copy.deepcopy(STORED)
    config["config"]["table"] |= change
    return config


def test_stored_tensors_are_read() -> None:
    table = read_stored(STORED, "weight_", "r")["table"]
    assert (table.type, table.sizes, table.strides, table.offset) == ("float32", (10, 4), (4, 1), 0)
    assert table.last_element() == 40
    meta = STORED["config"]["table"]["tensor_meta"]
    empty = read_stored(stored(tensor_meta={**meta, "sizes": [{"as_int": 0}, {"as_int": 4}]}), "weight_", "r")["table"]
    assert empty.last_element() == 0


META = STORED["config"]["table"]["tensor_meta"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (stored(use_pickle=True), "'weight_0' is a pickle"),
        (stored(use_pickle=0), "is a pickle"),
        (stored(path_name="tensor_0"), "'tensor_0' is no stored tensor"),
        (stored(path_name="weight_"), "is no stored tensor"),
        (stored(path_name="weight_²"), "is no stored tensor"),
        (stored(path_name="weight_../x"), "is no stored tensor"),
        (stored(tensor_meta=None), "None is no object"),
        (stored(tensor_meta={**META, "layout": 1}), "only strided tensors"),
        (stored(tensor_meta={**META, "dtype": 29}), "element type or shape cannot be read"),
        (stored(tensor_meta={**META, "strides": []}), "element type or shape cannot be read"),
        (stored(tensor_meta={**META, "sizes": [{"as_int": -1}, {"as_int": 4}]}), "-1 is no integer from 0"),
        (stored(tensor_meta={**META, "storage_offset": {"as_expr": {}}}), "must be known"),
        ({}, "'config' is missing"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(config: Any, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read_stored(config, "weight_", "r")
    assert text in str(caught.value)


def test_constants_have_their_own_records() -> None:
    constants = json.loads(records(small())[CONSTANTS_CONFIG])
    assert read_stored(constants, "tensor_", "r")["factor"].record == "tensor_0"


def edited(*path: Any, to: Any) -> Any:
    """The valid program with one value replaced; `...` removes it."""
    parsed = copy.deepcopy(VALID)
    holder = parsed
    for key in path[:-1]:
        holder = holder[key]
    if to is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = to
    return parsed


GRAPH = ("graph_module", "graph")
SPECS = ("graph_module", "signature")
NODE = (*GRAPH, "nodes", 0)
TENSOR = (*GRAPH, "tensor_values", "sigmoid")


@pytest.mark.parametrize(
    ("parsed", "text"),
    [
        ([], "r: [] is no object"),
        (edited("schema_version", "major", to=9), "schema version 9.20; this server reads 8.0 to 8.20"),
        (edited("schema_version", "minor", to=21), "schema version 8.21"),
        (edited(*GRAPH, to=...), "'graph' is missing"),
        (edited(*SPECS, "output_specs", to=[]), "the program has no output"),
        (
            edited(*SPECS, "output_specs", 0, to={"buffer_mutation": {}}),
            "'buffer_mutation' cannot be served: the program may only",
        ),
        (edited(*SPECS, "output_specs", 0, "user_output", "arg", to={"as_int": 1}), "output 0: 'as_int' is no tensor"),
        (
            edited(*SPECS, "output_specs", 0, "user_output", "arg", to={"as_tensor": {"name": "no"}}),
            "'no' is read but not made before",
        ),
        (edited(*SPECS, "input_specs", 0, to={"custom_obj": {}}), "input 0: 'custom_obj' cannot be served"),
        (edited(*SPECS, "input_specs", 0, to={"token": {}}), "'token' cannot be served"),
        (edited(*SPECS, "input_specs", 1, to=VALID["graph_module"]["signature"]["input_specs"][0]), "is made twice"),
        (edited(*GRAPH, "inputs", to=[]), "the graph has 0 inputs and its signature 6"),
        (edited(*TENSOR, to=...), "'sigmoid' has no element type"),
        (edited(*TENSOR, "dtype", to=9), "'sigmoid' has no element type"),
        (edited(*TENSOR, "sizes", 0, to={"as_expr": {"expr_str": "exit()"}}), "tensor 'sigmoid': 'exit()' is no arithmetic"),
        (edited(*TENSOR, "sizes", 0, to={"as_name": "s0"}), "'as_name' is no kind of size"),
        (edited(*TENSOR, "strides", 0, to={"as_expr": {"expr_str": "exit()"}}), "is no arithmetic"),
        (edited(*GRAPH, "sym_int_values", to={"a": {"as_expr": {"expr_str": "exit()"}}}), "sym_int_values 'a': 'exit()'"),
        (edited(*GRAPH, "sym_float_values", to={"a": {"as_float": 1.0}, "b": {"as_int": "x"}}), "sym_float_values 'b'"),
        (edited("range_constraints", to={"os": {}}), "range of 'os': no name of a size"),
        (edited("range_constraints", to={"s0": {"min_val": "1"}}), "range of 's0': '1' is no integer"),
        (edited(*GRAPH, "nodes", to=[{}] * 100_001), "100001 nodes; at most 100000"),
        (edited(*NODE, "target", to=...), "nodes[0]: 'target' is missing"),
        (edited(*NODE, "inputs", to=VALID["graph_module"]["graph"]["nodes"][0]["inputs"] * 2), "an argument is given twice"),
    ],
)
def test_programs_that_are_not_understood_are_refused(parsed: Any, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read_program(parsed, "r")
    assert text in str(caught.value)


def test_inputs_that_the_exporter_fixed_are_no_inputs() -> None:
    parsed = edited(*SPECS, "input_specs", to=[*VALID["graph_module"]["signature"]["input_specs"], {"constant_input": {}}])
    parsed["graph_module"]["graph"]["inputs"].append({"as_none": True})
    assert len(read_program(parsed, "r").inputs) == 2
    transient = edited(*SPECS, "input_specs", 2, "buffer", "persistent", to=False)
    assert read_program(transient, "r").weights[2].is_constant
