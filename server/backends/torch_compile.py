"""A bound program, compiled by torch for the shapes it is prepared for. Floor 2.

Its steps become a graph of torch.fx, and that a kernel or a few. Compiling takes seconds to minutes for each shape; results are
kept on disk where TORCHINDUCTOR_CACHE_DIR says. Graphs are captured around it by `torch_graphs`, so torch's own are left off.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from server.backends.pt2_graph import Result, Value
from server.backends.torch_bound import BoundProgram, Call

MODES = {"default": None, "max_autotune": "max-autotune-no-cudagraphs"}
Key = tuple[tuple[tuple[int, ...], Any], ...]


class Compiled:
    """A program that is called as `BoundProgram` is: compiled for the shapes it was prepared for, step by step for others."""

    def __init__(self, bound: BoundProgram, mode: str) -> None:
        """`mode`: a key of `MODES`."""
        self._bound = bound
        self._mode = MODES[mode]
        self._made: dict[Key, Callable[..., Any]] = {}

    def prepare(self, inputs: Sequence[Any]) -> None:
        """Compile for the shapes of these tensors, which are executed once. Raises: whatever torch says."""
        made = torch.compile(as_module(self._bound), mode=self._mode, dynamic=False, fullgraph=True)
        with torch.inference_mode():
            made(*inputs)
        self._made[_key(inputs)] = made

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """See `BoundProgram.__call__`."""
        made = self._made.get(_key(inputs))
        return self._bound(inputs) if made is None else list(made(*inputs))


def _key(inputs: Sequence[Any]) -> Key:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)


def as_module(bound: BoundProgram) -> Any:
    """The program as a module of torch.fx, from the inputs' tensors to a tuple of the outputs'."""
    root, graph = torch.nn.Module(), fx.Graph()
    nodes: list[Any] = [None] * len(bound.start)
    for cell, weight in enumerate(bound.start):
        if weight is not None:
            root.register_buffer(f"cell_{cell}", weight)
            nodes[cell] = graph.get_attr(f"cell_{cell}")
    for place, cell in enumerate(bound.inputs):
        nodes[cell] = graph.call_function(_cast, (graph.placeholder(f"input_{place}"), bound.types))
    for call in bound.calls:
        _add(graph, call, nodes)
    graph.output(tuple(nodes[cell] for cell in bound.outputs))
    return fx.GraphModule(root, graph)


def _cast(tensor: Any, types: dict[Any, Any]) -> Any:
    return tensor.to(types[tensor.dtype]) if tensor.dtype in types else tensor


def _add(graph: fx.Graph, call: Call, nodes: list[Any]) -> None:
    arguments = list(call.arguments)
    for position, cell in call.fills:
        arguments[position] = nodes[cell]
    for position, items in call.lists:
        arguments[position] = [nodes[item.cell] if type(item) is Value else item for item in items]
    keywords = call.keywords | {name: nodes[cell] for name, cell in call.named_fills}
    answer = graph.call_function(call.function, tuple(arguments), keywords)
    if call.cell is not None:
        nodes[call.cell] = answer
        return
    for index, result in enumerate(call.results):
        given = answer if len(call.results) == 1 else graph.call_function(operator.getitem, (answer, index))
        _spread(graph, result, given, nodes)


def _spread(graph: fx.Graph, result: Result, given: Any, nodes: list[Any]) -> None:
    if result.is_list:
        for place, cell in enumerate(result.cells):
            nodes[cell] = graph.call_function(operator.getitem, (given, place))
    elif result.cells:
        nodes[result.cells[0]] = given
