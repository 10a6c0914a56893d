"""The steps of an exported program: from the nodes of its graph to calls that may be made. **Pure.** Floor 2.

A program is a straight list of steps: each names an operator of the allow-list, values made before it, and plain constants.
Anything else that torch's format can hold (graphs within the graph, custom objects, operators named at run time) is refused.
Never calls anything: `torch_program.py` does, and it finds operators by these names only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.backends.pt2_json import field, mapping, real, refuse, sequence, text, truth, variant, whole
from server.backends.pt2_operators import HARMLESS_IF_ABSENT, IGNORED, MUST_BE, NUMBERS, aten_name

_MISSING = object()
SCALAR_TYPES: Mapping[int, str] = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    34: "uint32",
    35: "uint64",
}
"""The file's numbers for element types, as torch's names; types that no client can send are not among them."""
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7
_BY_KEYWORD = 2
_MOST_STEPS = 100_000

Constant = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Value:
    """A value of this run, by its cell."""

    cell: int


@dataclass(frozen=True, slots=True)
class TorchWord:
    """A word of torch's own: `kind` is "dtype", "memory_format", "layout" or "device" (which has no name: the version's)."""

    kind: str
    name: str = ""


Item = Constant | Value | TorchWord
Argument = Item | tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """Where what a step answers goes. `cells`: one, or those of a list. `number`: it must be a plain number."""

    cells: tuple[int, ...]
    is_list: bool = False
    number: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One call. `operator` is "name.overload" of aten, or a key of `NUMBERS`; arguments carry the operator's own names."""

    operator: str
    positional: tuple[tuple[str, Argument], ...]
    keywords: tuple[tuple[str, Argument], ...]
    results: tuple[Result, ...]
    is_number: bool


class Cells:
    """Names of values and where they are kept, tensors and numbers apart: each is written once, before it is read."""

    def __init__(self) -> None:
        self._tensors: dict[str, int] = {}
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._tensors) + len(self._numbers)

    def add(self, name: object, where: str, *, number: bool = False) -> int:
        """A new cell for a name. Raises: LoadFailed for a name that has one."""
        named = text(name, where)
        if named in self._tensors or named in self._numbers:
            refuse(where, f"the value '{named}' is made twice")
        cell = len(self)
        (self._numbers if number else self._tensors)[named] = cell
        return cell

    def tensor(self, argument: object, where: str) -> Value:
        """The tensor that `{"name": …}` means. Raises: LoadFailed for one that is not made yet."""
        return self._find(self._tensors, field(argument, "name", where), where)

    def number(self, name: object, where: str) -> Value:
        """The number of a name. Raises: LoadFailed for one that is not made yet."""
        return self._find(self._numbers, name, where)

    def is_number(self, argument: Argument) -> bool:
        """Whether an argument is a number, now or when it was made."""
        if isinstance(argument, Value):
            return argument.cell in self._numbers.values()
        return isinstance(argument, int | float)

    def _find(self, names: Mapping[str, int], name: object, where: str) -> Value:
        found = names.get(text(name, where))
        return refuse(where, f"the value {name!r} is read but not made before") if found is None else Value(found)


def read_steps(nodes: object, cells: Cells, where: str) -> tuple[Step, ...]:
    """Every node as a step, in order; `cells` knows the inputs, and every value afterwards. Raises: LoadFailed."""
    listed = sequence(nodes, where)
    if len(listed) > _MOST_STEPS:
        refuse(where, f"{len(listed)} nodes; at most {_MOST_STEPS} are read")
    steps = []
    for index, node in enumerate(listed):
        target = text(field(node, "target", f"{where}[{index}]"), f"{where}[{index}]")
        if target not in IGNORED:
            steps.append(_step(target, node, cells, f"{where}[{index}] ({target[:80]})"))
    return tuple(steps)


def drops(steps: Sequence[Step], keep: Collection[int]) -> list[tuple[int, ...]]:
    """For every step, the cells that nobody reads after it: what lies there may go. `keep`: cells that stay."""
    gone: list[tuple[int, ...]] = []
    seen = set(keep)
    for step in reversed(steps):
        touched = {cell for result in step.results for cell in result.cells}
        for _, argument in (*step.positional, *step.keywords):
            items = argument if isinstance(argument, tuple) else (argument,)
            touched |= {item.cell for item in items if isinstance(item, Value)}
        gone.append(tuple(sorted(touched - seen)))
        seen |= touched
    return gone[::-1]


def _step(target: str, node: object, cells: Cells, where: str) -> Step:
    aten = aten_name(target)
    if aten is None and target not in NUMBERS:
        refuse(
            where,
            "this operator is not among those that a served program may use"
            " (operators that write in place go by program.run_decompositions({}) before saving)",
        )
    positional: list[tuple[str, Argument]] = []
    keywords: list[tuple[str, Argument]] = []
    for named in sequence(field(node, "inputs", where), where):
        name = text(field(named, "name", where), where)
        argument = _argument(field(named, "arg", where), cells, where)
        by_keyword = aten is not None and mapping(named, where).get("kind") in (None, _BY_KEYWORD)
        (keywords if by_keyword else positional).append((name, argument))
    names = [name for name, _ in (*positional, *keywords)]
    if len(set(names)) != len(names):
        refuse(where, "an argument is given twice")
    results = tuple(_result(output, cells, where) for output in sequence(field(node, "outputs", where), where))
    if aten is None:
        if any(not cells.is_number(argument) for _, argument in positional):
            refuse(where, "arithmetic takes numbers only")
        if len(results) != 1 or not results[0].number:
            refuse(where, "arithmetic gives one number")
        return Step(target, tuple(positional), (), results, True)
    _check_constants(aten.partition(".")[0], dict((*positional, *keywords)), where)
    return Step(aten, tuple(positional), tuple(keywords), results, False)


def _check_constants(name: str, arguments: Mapping[str, Argument], where: str) -> None:
    if name in MUST_BE:
        argument, wanted = MUST_BE[name]
        if argument not in arguments and name in HARMLESS_IF_ABSENT:
            return
        given = arguments.get(argument, _MISSING)
        if type(given) is not type(wanted) or given != wanted:
            refuse(where, f"'{argument}' must be {wanted}: anything else answers by chance or writes into the weights")


def _argument(value: object, cells: Cells, where: str) -> Argument:
    kind, content = variant(value, where)
    match kind:
        case "as_tensor":
            return cells.tensor(content, where)
        case "as_optional_tensor":
            return _optional(content, cells, where)
        case "as_tensors":
            return tuple(cells.tensor(item, where) for item in sequence(content, where))
        case "as_optional_tensors":
            return tuple(_optional(item, cells, where) for item in sequence(content, where))
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _number(content, cells, where)
        case "as_sym_ints" | "as_sym_floats":
            return tuple(_number(item, cells, where) for item in sequence(content, where))
        case "as_scalar_type":
            return _word("dtype", SCALAR_TYPES, content, where)
        case "as_memory_format":
            return _word("memory_format", _MEMORY_FORMATS, content, where)
        case "as_layout":
            return _word("layout", {_STRIDED: "strided"}, content, where)
        case "as_device":
            mapping(content, where)  # which one is not the file's to say
            return TorchWord("device")
    return _constant(kind, content, where)


def _constant(kind: str, content: object, where: str) -> Argument:
    match kind:
        case "as_none":
            return None
        case "as_int":
            return whole(content, where)
        case "as_float":
            return real(content, where)
        case "as_bool":
            return truth(content, where)
        case "as_string":
            return text(content, where)
        case "as_ints":
            return tuple(whole(item, where) for item in sequence(content, where))
        case "as_floats":
            return tuple(real(item, where) for item in sequence(content, where))
        case "as_bools":
            return tuple(truth(item, where) for item in sequence(content, where))
    return refuse(where, f"an argument of the kind {kind[:40]!r} is not among those that a served program may have")


def _optional(value: object, cells: Cells, where: str) -> Value | None:
    kind, content = variant(value, where)
    return None if kind == "as_none" else cells.tensor(content, where)


def _number(value: object, cells: Cells, where: str) -> Item:
    kind, content = variant(value, where)
    match kind:
        case "as_name":
            return cells.number(content, where)
        case "as_int":
            return whole(content, where)
        case "as_float":
            return real(content, where)
        case "as_bool":
            return truth(content, where)
    return refuse(where, f"{kind[:40]!r} is no kind of number")


def _word(kind: str, words: Mapping[int, str], content: Any, where: str) -> TorchWord:
    number = whole(content, where)
    return TorchWord(kind, words[number]) if number in words else refuse(where, f"{kind} {number} cannot be served")


def _result(value: object, cells: Cells, where: str) -> Result:
    kind, content = variant(value, where)
    match kind:
        case "as_tensor":
            return Result((cells.add(field(content, "name", where), where),))
        case "as_tensors":
            return Result(_all(sequence(content, where), cells, where), is_list=True)
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return Result((cells.add(field(content, "as_name", where), where, number=True),), number=True)
        case "as_none":
            return Result(())
    return refuse(where, f"a result of the kind {kind[:40]!r} is not among those that a served program may have")


def _all(items: Sequence[object], cells: Cells, where: str) -> tuple[int, ...]:
    return tuple(cells.add(field(item, "name", where), where) for item in items)
