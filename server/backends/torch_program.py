"""Programs that `torch.export.save` wrote (`program.pt2`), executed by torch. Floor 2: the one file that imports torch.

torch itself is never given the file: `torch.export.load` runs code that a file may bring along. `pt2_archive.py` and
`pt2_program.py` read it as data; here its steps are bound to operators by name and called one after the other. Never compiles,
never keeps a caller's arrays, and never shows paths of this machine to a caller.

What a batch costs (torch 2.13 and onnxruntime 1.31 on CPU, the flight delay model, one thread, us per call with 1/16/64 rows;
2026-11-21, a shared machine): torch 257/288/331, onnxruntime 52/66/116. Fifty small operators cost 4 to 5 us each to call from
Python; a program of few large ones is as fast as torch is. Importing torch takes 1.7 s, once; reading this program 8 ms.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.backends.base import LoadTask
from server.backends.batching import check_rows, decide_batching
from server.backends.memory import give_back
from server.backends.onnx_errors import is_fatal, reason
from server.backends.pt2_archive import CONSTANTS, CONSTANTS_CONFIG, OWN, PROGRAM, WEIGHTS, WEIGHTS_CONFIG, Pt2Archive
from server.backends.pt2_graph import Argument, Result, Step, TorchWord, Value, drops
from server.backends.pt2_guards import guarded
from server.backends.pt2_operators import NUMBERS
from server.backends.pt2_program import Program, ProgramTensor, Stored, read_program, read_stored
from server.backends.pt2_signature import check_sizes, free_dims, program_signature
from server.backends.vocabulary import ProgramNames, Vocabulary, read_names, renamed, vocabularies
from server.core.errors import BackendDead, BackendFailed, LoadFailed
from server.core.settings import TorchSettings
from server.core.signature import Signature
from server.core.tensors import Array

FILE = "program.pt2"


@dataclass(frozen=True, slots=True)
class _Call:
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


def open_backend(task: LoadTask) -> "TorchBackend":
    """Load `program.pt2`.

    As for ONNX files, a batch dimension that was only read off the file is tried first (`probe.rows_mix`).

    Raises: LoadFailed.
    """
    settings = task.settings
    device = _device(settings.torch)
    try:
        with Pt2Archive(task.folder / FILE) as archive:
            program = read_program(archive.json(PROGRAM), f"record '{PROGRAM}'")
            names = read_names(archive.json(OWN), OWN) if archive.has(OWN) else ProgramNames()
            weights = _load_weights(archive, program, device)
        backend = _bind(task, program, names, weights, device)
    except LoadFailed as error:
        raise LoadFailed(f"{FILE}: {error}") from error
    decide_batching(backend, task, FILE)
    return backend


class TorchBackend:
    """One program on one device."""

    platform = "pytorch_libtorch"

    def __init__(
        self,
        signature: Signature,
        program: Program,
        calls: list[_Call],
        weights: Mapping[int, Any],
        tables: Mapping[str, Vocabulary],
        device: Any,
        threads: int,
        folder: Path,
    ) -> None:
        self.signature = signature
        self.device = "cpu" if device.type == "cpu" else f"cuda:{device.index}"
        self._device = device
        self._threads = threads
        self._folder = folder
        self._calls = calls
        self._tables = tables
        self._start = [weights.get(cell) for cell in range(program.cells)]
        self._inputs = [
            (name.name, tensor.cell, np.dtype(tensor.type) if name.name in tables else None, name.datatype == "BF16")
            for name, tensor in zip(signature.inputs, program.inputs, strict=True)
        ]
        self._outputs = [
            (name.name, tensor.cell, getattr(torch, tensor.type), name.datatype == "BF16")
            for name, tensor in zip(signature.outputs, program.outputs, strict=True)
        ]
        self._free = free_dims(signature, program)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in weights.values()}
        self._weight_storages = frozenset(storages)
        self._bytes = int(sum(storages.values()))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. BYTES inputs are looked up in the file's vocabularies."""
        try:
            # the setting belongs to the thread that executes, whichever version ran there before
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            if self._free:
                check_sizes(self._free, inputs)
            with torch.inference_mode():
                outputs = self._execute(inputs)
        except BackendFailed:
            raise
        except Exception as error:
            raise self._failure(error) from error
        if self.signature.max_batch:
            check_rows(self.signature.model, inputs, outputs)
        return outputs

    def memory_bytes(self) -> int:
        """Bytes of the weights; what torch allocates beside them is not visible on a CPU."""
        return self._bytes

    def close(self) -> None:
        """Drop the weights and hand the memory back to the system (see `OnnxBackend.close`)."""
        self._calls, self._start = [], []
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        give_back()

    def _execute(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = self._start.copy()
        borrowed = set(self._weight_storages)
        for name, cell, codes, is_bfloat16 in self._inputs:
            array = inputs[name]
            if codes is not None:
                array = self._tables[name].look_up(array, codes)
            # torch warns about memory that may not be written to, which no operator here would do
            tensor = torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
            borrowed.add(tensor.data_ptr())
            tensor = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
            values[cell] = tensor if self.device == "cpu" else tensor.to(self._device)
        for call in self._calls:
            _step(call, values)
        return {name: _to_array(values[cell], wanted, name, half, borrowed) for name, cell, wanted, half in self._outputs}

    def _failure(self, error: Exception) -> BackendFailed:
        said = str(error) or type(error).__name__
        kind = BackendDead if is_fatal(said) else BackendFailed
        return kind(f"executing model '{self.signature.model}' failed: {reason(said, self._folder)}")


def _step(call: _Call, values: list[Any]) -> None:
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


def _to_array(tensor: Any, wanted: Any, name: str, is_bfloat16: bool, borrowed: set[int]) -> Array:
    """An output as an array of its own: neither the caller's inputs nor the weights can be reached through it."""
    if tensor.dtype != wanted:
        raise BackendFailed(f"output '{name}' is {str(tensor.dtype).removeprefix('torch.')}, which the file does not say")
    tensor = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    if tensor.untyped_storage().data_ptr() in borrowed:
        tensor = tensor.clone()
    array: Array = (tensor.view(torch.uint16) if is_bfloat16 else tensor).numpy()
    return array


def _device(settings: TorchSettings) -> Any:
    if settings.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available() or settings.device_id >= torch.cuda.device_count():
        raise LoadFailed(f"cuda:{settings.device_id} is not there: torch {torch.__version__} sees {torch.cuda.device_count()}")
    return torch.device("cuda", settings.device_id)


def _load_weights(archive: Pt2Archive, program: Program, device: Any) -> dict[int, Any]:
    """Every weight of the program by its cell; weights that share a record share memory, as when they were saved."""
    listed: dict[bool, Mapping[str, Stored]] = {
        False: read_stored(archive.json(WEIGHTS_CONFIG), "weight_", f"record '{WEIGHTS_CONFIG}'"),
        True: read_stored(archive.json(CONSTANTS_CONFIG), "tensor_", f"record '{CONSTANTS_CONFIG}'"),
    }
    flat: dict[str, Any] = {}
    found = {}
    for weight in program.weights:
        stored = listed[weight.is_constant].get(weight.key)
        if stored is None:
            raise LoadFailed(f"the weight '{weight.key[:80]}' is not stored")
        record = f"{CONSTANTS if weight.is_constant else WEIGHTS}{stored.record}"
        if record not in flat:
            content = archive.tensor_bytes(record)
            raw = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            try:
                flat[record] = raw.to(device)
            except Exception as error:  # what a full or broken device raises has no base of its own
                raise LoadFailed(f"record '{record}' does not go to the device: {reason(str(error), Path('/'))}") from error
        found[weight.cell] = _strided(flat[record], stored, record)
    return found


def _strided(raw: Any, stored: Stored, record: str) -> Any:
    dtype = getattr(torch, stored.type)
    held = raw.numel() // dtype.itemsize
    if stored.last_element() > held or _count(stored.sizes) > held or raw.numel() % dtype.itemsize:
        raise LoadFailed(f"record '{record}' has {raw.numel()} bytes, too few for {stored.type} {list(stored.sizes)[:8]}")
    return torch.as_strided(raw.view(dtype), stored.sizes, stored.strides, stored.offset)


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _bind(task: LoadTask, program: Program, names: ProgramNames, weights: Mapping[int, Any], device: Any) -> TorchBackend:
    inputs = _renamed(program.inputs, names.inputs, "input")
    outputs = _renamed(program.outputs, names.outputs, "output")
    tables = vocabularies(names, {tensor.name: tensor.type for tensor in inputs}, OWN)
    offered = [replace(tensor, type="bytes") if tensor.name in tables else tensor for tensor in inputs]
    signature = program_signature(task.key.model, offered, outputs, task.settings, program.ranges, FILE)
    keep = {*weights, *(tensor.cell for tensor in (*program.inputs, *program.outputs))}
    gone = drops(program.steps, keep)
    calls = [_call(step, device, cells) for step, cells in zip(program.steps, gone, strict=True)]
    threads = task.settings.torch.intra_op_threads or len(os.sched_getaffinity(0))
    return TorchBackend(signature, program, calls, weights, tables, device, threads, task.folder)


def _renamed(tensors: tuple[ProgramTensor, ...], given: list[str], kind: str) -> list[ProgramTensor]:
    names = renamed([tensor.name for tensor in tensors], given, kind, OWN)
    return [replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True)]


def _call(step: Step, device: Any, gone: tuple[int, ...]) -> _Call:
    function = NUMBERS[step.operator] if step.is_number else _aten(step)
    arguments: list[Any] = []
    fills, lists, named_fills = [], [], []
    keywords: dict[str, Any] = {}
    for position, (_, argument) in enumerate(step.positional):
        arguments.append(_constant(argument, device))
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
            keywords[name] = _constant(argument, device)
    results = step.results
    plain = len(results) == 1 and len(results[0].cells) == 1 and not results[0].is_list and not results[0].number
    cell = results[0].cells[0] if plain else None
    return _Call(function, arguments, keywords, tuple(fills), tuple(lists), tuple(named_fills), results, gone, cell)


def _constant(argument: Argument, device: Any) -> Any:
    """The argument as torch takes it; values of a run are filled in later."""
    if isinstance(argument, tuple):
        return [_constant(item, device) for item in argument]
    if isinstance(argument, TorchWord):
        # a program goes where the version goes, whatever device it was exported on
        return device if argument.kind == "device" else getattr(torch, argument.name)
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
