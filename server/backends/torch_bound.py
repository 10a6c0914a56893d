"""The steps of a program, bound to torch's operators and called one after the other. Floor 2.

Operators are found by the names that the allow-list has, and by no other way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from server.backends.pt2_graph import Argument, Result, Step, TorchWord, Value, drops
from server.backends.pt2_guards import guarded
from server.backends.pt2_operators import NUMBERS
from server.backends.pt2_program import Program
from server.core.errors import LoadFailed


@dataclass(frozen=True, slots=True)
class Call:
    """A step, bound. `fills` and `lists` say where values of the run go; `drops` are read here for the last time."""

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    fills: tuple[tuple[int, int], ...]
    lists: tuple[tuple[int, tuple[Any, ...]], ...]
    named_fills: tuple[tuple[str, int], ...]
    results: tuple[Result, ...]
    drops: tuple[int, ...]
    cell: int | None
    """Where the answer goes, if it is one tensor."""


class BoundProgram:
    """A program on one device, from tensors to tensors. Used by one thread at a time."""

    def __init__(
        self, program: Program, weights: Mapping[int, Any], device: Any, types: Mapping[Any, Any] | None = None
    ) -> None:
        """`weights`: by cell. `types`: element types that others stand in for, wherever the program names one.

        Raises: LoadFailed for operators that torch does not have, or that do more than answer.
        """
        keep = {*weights, *(tensor.cell for tensor in (*program.inputs, *program.outputs))}
        gone = drops(program.steps, keep)
        binding = _Binding(device, types or {})
        self.calls = [binding.call(step, cells) for step, cells in zip(program.steps, gone, strict=True)]
        self.start = [weights.get(cell) for cell in range(program.cells)]
        self.inputs = [tensor.cell for tensor in program.inputs]
        self.outputs = [tensor.cell for tensor in program.outputs]
        self.types = types or {}

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs, in the program's order; they may share memory with inputs and weights."""
        values = self.start.copy()
        for cell, tensor in zip(self.inputs, inputs, strict=True):
            values[cell] = tensor.to(self.types[tensor.dtype]) if tensor.dtype in self.types else tensor
        for call in self.calls:
            _step(call, values)
        return [values[cell] for cell in self.outputs]


def _step(call: Call, values: list[Any]) -> None:
    arguments, keywords = call.arguments, call.keywords
    if call.fills or call.lists:
        arguments = arguments.copy()
        for position, cell in call.fills:
            arguments[position] = values[cell]
        for position, items in call.lists:
            arguments[position] = [values[item.cell] if type(item) is Value else item for item in items]
    if call.named_fills:
        keywords = keywords | {name: values[cell] for name, cell in call.named_fills}
    answer = call.function(*arguments, **keywords)
    if call.cell is not None:
        values[call.cell] = answer
    else:
        _spread(answer, call.results, values)
    for cell in call.drops:
        values[cell] = None


def _spread(answer: Any, results: tuple[Result, ...], values: list[Any]) -> None:
    answers = (answer,) if len(results) == 1 else answer or ()
    for result, given in zip(results, answers, strict=True):
        if result.is_list:
            for cell, item in zip(result.cells, given, strict=True):
                values[cell] = item
        elif result.cells:
            if result.number and not isinstance(given, int | float):
                raise TypeError("the program takes a tensor for a number")
            values[result.cells[0]] = given


@dataclass(frozen=True, slots=True)
class _Binding:
    """How the file's words become torch's."""

    device: Any
    types: Mapping[Any, Any]

    def call(self, step: Step, gone: tuple[int, ...]) -> Call:
        """A step, ready to be called. Raises: LoadFailed."""
        function = NUMBERS[step.operator] if step.is_number else _aten(step)
        arguments: list[Any] = []
        fills, lists, named_fills = [], [], []
        keywords: dict[str, Any] = {}
        for position, (_, argument) in enumerate(step.positional):
            arguments.append(self.constant(argument))
            if isinstance(argument, Value):
                fills.append((position, argument.cell))
            elif isinstance(argument, tuple) and any(isinstance(item, Value) for item in argument):
                lists.append((position, argument))
        for name, argument in step.keywords:
            if isinstance(argument, Value):
                named_fills.append((name, argument.cell))
            elif isinstance(argument, tuple) and any(isinstance(item, Value) for item in argument):
                raise LoadFailed(f"{step.operator}: '{name[:40]}' is a list of values given by keyword, which is not read")
            else:
                keywords[name] = self.constant(argument)
        results = step.results
        plain = len(results) == 1 and len(results[0].cells) == 1 and not results[0].is_list and not results[0].number
        cell = results[0].cells[0] if plain else None
        return Call(function, arguments, keywords, tuple(fills), tuple(lists), tuple(named_fills), results, gone, cell)

    def constant(self, argument: Argument) -> Any:
        """The argument as torch takes it; values of a run are filled in later."""
        if isinstance(argument, tuple):
            return [self.constant(item) for item in argument]
        if isinstance(argument, TorchWord):
            # a program goes where the version goes, whatever device it was exported on
            word = self.device if argument.kind == "device" else getattr(torch, argument.name)
            return self.types.get(word, word) if argument.kind == "dtype" else word
        return None if isinstance(argument, Value) else argument


def _aten(step: Step) -> Any:
    """The operator of an allowed name, if it only reads and takes its arguments in the order that the file says.

    The order matters: what an argument must be was checked by its name.
    """
    name, _, overload = step.operator.partition(".")
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        raise LoadFailed(f"torch {torch.__version__} has no operator aten.{step.operator[:80]}")
    operator = getattr(packet, overload)
    names = [argument.name for argument in operator._schema.arguments]
    if operator._schema.is_mutable or overload.endswith("out"):
        raise LoadFailed(f"aten.{step.operator} writes into its arguments; call program.run_decompositions({{}}) before saving")
    if [given for given, _ in step.positional] != names[: len(step.positional)]:
        raise LoadFailed(f"aten.{step.operator} takes {', '.join(names)}, in this order")
    return guarded(step.operator, operator)
