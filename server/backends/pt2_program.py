"""What `models/model.json` of an exported program says: inputs, weights, steps and outputs. **Pure.** Floor 2.

Reads the parsed JSON of torch's schema 8 and nothing else of the archive; every name must be made before it is read, every
expression must be arithmetic. What a server has no use for is not looked at: sample inputs, tree specifications, guards,
stack traces. Never changes what it reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.backends.pt2_expressions import is_symbol, symbol
from server.backends.pt2_graph import SCALAR_TYPES, Cells, Step, read_steps
from server.backends.pt2_json import field, mapping, refuse, sequence, text, variant, whole
from server.core.errors import LoadFailed

MAJOR, NEWEST_MINOR = 8, 20
"""The schema versions this reader knows (torch 2.13 writes 8.20)."""
_WEIGHTS = {"parameter": "parameter_name", "buffer": "buffer_name"}
_STRIDED = 7

Dim = int | str | None


@dataclass(frozen=True, slots=True)
class ProgramTensor:
    """An input or output. `type`: torch's word. Shapes: a free dimension is its symbol, one to be computed is None."""

    name: str
    type: str
    shape: tuple[Dim, ...]
    cell: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that is stored: `key` names it within the weights, or within the constants."""

    key: str
    is_constant: bool
    cell: int


@dataclass(frozen=True, slots=True)
class Program:
    """All that is executed. `ranges`: smallest and largest size of a symbol; a largest of None is none."""

    inputs: tuple[ProgramTensor, ...]
    outputs: tuple[ProgramTensor, ...]
    weights: tuple[Weight, ...]
    steps: tuple[Step, ...]
    cells: int
    ranges: Mapping[str, tuple[int, int | None]]


def read_program(parsed: object, where: str) -> Program:
    """The program of the parsed JSON; `where` is the record's name, for errors.

    Raises: LoadFailed, naming the place, for anything that this reader does not know or will not execute.
    """
    _check_version(field(parsed, "schema_version", where), where)
    module = field(parsed, "graph_module", where)
    graph, signature = field(module, "graph", where), field(module, "signature", where)
    shapes = _shapes(graph, where)
    cells = Cells()
    inputs, weights = _inputs(graph, signature, shapes, cells, where)
    steps = read_steps(field(graph, "nodes", where), cells, f"{where}: nodes")
    outputs = tuple(
        _tensor(_only(item, "user_output", f"{where}: output {index}"), shapes, cells, f"{where}: output {index}")
        for index, item in enumerate(sequence(field(signature, "output_specs", where), where))
    )
    if not outputs:
        refuse(where, "the program has no output")
    return Program(inputs, outputs, weights, steps, len(cells), _ranges(mapping(parsed, where), where))


def _check_version(version: object, where: str) -> None:
    major, minor = (whole(field(version, part, where), where) for part in ("major", "minor"))
    if major != MAJOR or not 0 <= minor <= NEWEST_MINOR:
        refuse(where, f"schema version {major}.{minor}; this server reads {MAJOR}.0 to {MAJOR}.{NEWEST_MINOR}")


def _shapes(graph: object, where: str) -> dict[str, tuple[str, tuple[Dim, ...]]]:
    """Type and dimensions of every tensor of the graph; each expression anywhere in it is checked on the way."""
    for kind in ("sym_int_values", "sym_bool_values", "sym_float_values"):
        for name, value in mapping(mapping(graph, where).get(kind, {}), where).items():
            _dim(value, f"{where}: {kind} '{name[:80]}'")
    found = {}
    for name, meta in mapping(field(graph, "tensor_values", where), where).items():
        place = f"{where}: tensor '{name[:80]}'"
        dims = tuple(_dim(size, place) for size in sequence(field(meta, "sizes", place), place))
        for stride in (*sequence(field(meta, "strides", place), place), field(meta, "storage_offset", place)):
            _dim(stride, place)
        found[name] = (SCALAR_TYPES.get(whole(field(meta, "dtype", place), place), ""), dims)
    return found


def _dim(value: object, where: str) -> Dim:
    kind, content = variant(value, where)
    match kind:
        case "as_int":
            return whole(content, where)
        case "as_expr":
            expression = text(field(content, "expr_str", where), where)
            try:
                return symbol(expression)
            except LoadFailed as error:
                refuse(where, str(error))
        case "as_bool" | "as_float":
            return None
    return refuse(where, f"{kind[:40]!r} is no kind of size")


def _inputs(
    graph: object, signature: object, shapes: Mapping[str, tuple[str, tuple[Dim, ...]]], cells: Cells, where: str
) -> tuple[tuple[ProgramTensor, ...], tuple[Weight, ...]]:
    inputs: list[ProgramTensor] = []
    weights: list[Weight] = []
    for index, item in enumerate(sequence(field(signature, "input_specs", where), where)):
        place = f"{where}: input {index}"
        kind, spec = variant(item, place)
        if kind == "user_input":
            argument = field(spec, "arg", place)
            cells.add(_tensor_name(argument, place), place)
            inputs.append(_tensor(argument, shapes, cells, place))
        elif kind in _WEIGHTS or kind == "tensor_constant":
            cell = cells.add(field(field(spec, "arg", place), "name", place), place)
            key = text(field(spec, _WEIGHTS.get(kind, "tensor_constant_name"), place), place)
            weights.append(Weight(key, _is_constant(kind, mapping(spec, place)), cell))
        elif kind != "constant_input":  # a Python constant that was given to the exporter; it is in the steps already
            refuse(place, f"{kind[:40]!r} cannot be served; tensors, weights and constants can")
    expected = len(sequence(field(graph, "inputs", where), where))
    listed = len(sequence(field(signature, "input_specs", where), where))
    if expected != listed:
        refuse(where, f"the graph has {expected} inputs and its signature {listed}")
    return tuple(inputs), tuple(weights)


def _is_constant(kind: str, spec: Mapping[str, Any]) -> bool:
    # buffers that are in no state_dict are stored beside the constants
    return kind == "tensor_constant" or (kind == "buffer" and spec.get("persistent") is False)


def _only(item: object, wanted: str, where: str) -> object:
    kind, spec = variant(item, where)
    if kind != wanted:
        refuse(where, f"{kind[:40]!r} cannot be served: the program may only answer, and change nothing")
    return field(spec, "arg", where)


def _tensor_name(argument: object, where: str) -> str:
    kind, content = variant(argument, where)
    if kind != "as_tensor":
        refuse(where, f"{kind[:40]!r} is no tensor")
    return text(field(content, "name", where), where)


def _tensor(argument: object, shapes: Mapping[str, tuple[str, tuple[Dim, ...]]], cells: Cells, where: str) -> ProgramTensor:
    name = _tensor_name(argument, where)
    cell = cells.tensor({"name": name}, where).cell
    if name not in shapes or not shapes[name][0]:
        refuse(where, f"'{name[:80]}' has no element type that can be served")
    return ProgramTensor(name, *shapes[name], cell)


def _ranges(parsed: Mapping[str, Any], where: str) -> dict[str, tuple[int, int | None]]:
    found = {}
    for name, limits in mapping(parsed.get("range_constraints", {}), where).items():
        place = f"{where}: range of {name[:40]!r}"
        least, most = (mapping(limits, place).get(part) for part in ("min_val", "max_val"))
        found[name] = (0 if least is None else whole(least, place), None if most is None else whole(most, place))
        if not is_symbol(name):
            refuse(place, "no name of a size")
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """How a weight lies in its record. Units: sizes, strides and offset in elements."""

    record: str
    type: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def last_element(self) -> int:
        """One more than the highest element that is read; 0 where there is none."""
        if 0 in self.sizes:
            return 0
        return self.offset + 1 + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))


def read_stored(config: object, prefix: str, where: str) -> dict[str, Stored]:
    """The weights that a config record lists, by key. Raises: LoadFailed for pickles and for records of other names."""
    found = {}
    for key, entry in mapping(field(config, "config", where), where).items():
        place = f"{where}: '{key[:80]}'"
        record = text(field(entry, "path_name", place), place)
        if field(entry, "use_pickle", place) is not False:
            refuse(place, f"'{record[:80]}' is a pickle; save the program with plain tensors")
        number = record.removeprefix(prefix)
        if number == record or not (number.isascii() and number.isdigit()):
            refuse(place, f"'{record[:80]}' is no stored tensor")
        meta = field(entry, "tensor_meta", place)
        if field(meta, "layout", place) != _STRIDED:
            refuse(place, "only strided tensors are read")
        type_ = SCALAR_TYPES.get(whole(field(meta, "dtype", place), place))
        sizes, strides = (_whole_numbers(field(meta, part, place), place) for part in ("sizes", "strides"))
        if type_ is None or len(sizes) != len(strides):
            refuse(place, "its element type or shape cannot be read")
        (offset,) = _whole_numbers([field(meta, "storage_offset", place)], place)
        found[key] = Stored(record, type_, sizes, strides, offset)
    return found


def _whole_numbers(items: Sequence[object], where: str) -> tuple[int, ...]:
    numbers = []
    for item in sequence(items, where):
        kind, content = variant(item, where)
        if kind != "as_int":
            refuse(where, f"{kind[:40]!r} where the size of a stored tensor must be known")
        numbers.append(whole(content, where, least=0))
    return tuple(numbers)
