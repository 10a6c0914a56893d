"""Programs that `torch.export.save` wrote (`program.pt2`), executed by torch: here on the CPU. Floor 2.

torch itself is never given the file: `torch.export.load` runs code that a file may bring along. `pt2_archive.py` and
`pt2_program.py` read it as data; its steps are bound to operators by name and called one after the other, or compiled where
settings say so. Never keeps a caller's arrays, and never shows paths of this machine to a caller.

What a batch costs (torch 2.13 and onnxruntime 1.31 on CPU, the flight delay model, one thread, us per call with 1/16/64 rows;
2026-11-21, a shared machine): torch 257/288/331, onnxruntime 52/66/116. Fifty small operators cost 4 to 5 us each to call from
Python; a program of few large ones is as fast as torch is. Importing torch takes 1.7 s, once; reading this program 8 ms.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from server.backends.base import Backend, LoadTask
from server.backends.batching import check_rows, decide_batching
from server.backends.memory import give_back
from server.backends.pt2_archive import OWN, PROGRAM, Pt2Archive
from server.backends.pt2_program import Program, ProgramTensor, read_program
from server.backends.pt2_signature import free_dims, program_signature
from server.backends.torch_bound import BoundProgram
from server.backends.torch_compile import Compiled
from server.backends.torch_cuda import line_of
from server.backends.torch_device import DeviceTorchBackend
from server.backends.torch_errors import failure
from server.backends.torch_model import Input, Output, TorchModel
from server.backends.torch_prepare import compile_for
from server.backends.torch_weights import load_weights, rounded
from server.backends.vocabulary import ProgramNames, read_names, renamed, vocabularies
from server.core.errors import LoadFailed
from server.core.signature import Signature
from server.core.tensors import Array

FILE = "program.pt2"
_ROUNDINGS: Mapping[str, Mapping[Any, Any]] = {
    "as_saved": {},
    "bf16": {torch.float32: torch.bfloat16},
    "fp16": {torch.float32: torch.float16},
}
"""Element types that others stand in for, in weights, in values and where the program names one: as `module.to(dtype)` does."""


def open_backend(task: LoadTask) -> Backend:
    """Load `program.pt2`.

    As for ONNX files, a batch dimension that was only read off the file is tried first (`probe.rows_mix`).

    Raises: LoadFailed.
    """
    settings = task.settings.torch
    line = None
    if settings.device != "cpu":
        line = line_of(settings.device_id, shared=task.settings.instances == 1)
    device = torch.device("cpu") if line is None else torch.device("cuda", settings.device_id)
    try:
        with Pt2Archive(task.folder / FILE) as archive:
            program = read_program(archive.json(PROGRAM), f"record '{PROGRAM}'")
            names = read_names(archive.json(OWN), OWN) if archive.has(OWN) else ProgramNames()
            weights = load_weights(archive, program, device)
        signature, model = model_of(task, program, names, weights, device)
    except LoadFailed as error:
        raise LoadFailed(f"{FILE}: {error}") from error
    backend: Backend
    if line is None:
        backend = TorchBackend(signature, model, settings.intra_op_threads or len(os.sched_getaffinity(0)))
    else:
        backend = DeviceTorchBackend(signature, model, line, graphs=settings.cuda_graphs)
    decide_batching(backend, task, FILE)
    return backend


def model_of(
    task: LoadTask, program: Program, names: ProgramNames, weights: Mapping[int, Any], device: Any
) -> tuple[Signature, TorchModel]:
    """The program as clients see it, on a device. Raises: LoadFailed."""
    settings = task.settings.torch
    inputs = _renamed(program.inputs, names.inputs, "input")
    outputs = _renamed(program.outputs, names.outputs, "output")
    tables = vocabularies(names, {tensor.name: tensor.type for tensor in inputs}, OWN)
    offered = [replace(tensor, type="bytes") if tensor.name in tables else tensor for tensor in inputs]
    signature = program_signature(task.key.model, offered, outputs, task.settings, program.ranges, FILE)
    types = _ROUNDINGS[settings.precision]
    if types or settings.channels_last:
        weights = rounded(weights, types, channels_last=settings.channels_last)
    bound = BoundProgram(program, weights, device, types)
    model = TorchModel(
        call=bound if settings.compile == "off" else Compiled(bound, settings.compile),
        inputs=tuple(
            Input(tensor.name, getattr(torch, tensor.type), np.dtype(tensor.type) if tensor.name in tables else None)
            for tensor in inputs
        ),
        outputs=tuple(Output(tensor.name, getattr(torch, tensor.type)) for tensor in outputs),
        tables=tables,
        free=free_dims(signature, program),
        weights=weights,
        folder=task.folder,
        rounding=settings.precision if types else "",
    )
    return signature, model


class TorchBackend:
    """One program on the CPU."""

    platform = "pytorch_libtorch"
    device = "cpu"

    def __init__(self, signature: Signature, model: TorchModel, threads: int) -> None:
        self.signature = signature
        self._model = model
        self._threads = threads
        storages = model.storages()
        self._weight_storages = frozenset(storages)
        self._bytes = sum(storages.values())
        self._notes: tuple[str, ...] = ()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. BYTES inputs are looked up in the file's vocabularies."""
        try:
            # the setting belongs to the thread that executes, whichever version ran there before
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            tensors = self._tensors(self._model.coded(inputs))
            borrowed = {*self._weight_storages, *(tensor.data_ptr() for tensor in tensors)}
            results = self._model.execute(tensors)
            outputs = {item.name: _array(tensor, borrowed) for item, tensor in zip(self._model.outputs, results, strict=True)}
        except Exception as error:
            raise failure(error, self.signature.model, self.device, self._model.folder) from error
        if self.signature.max_batch:
            check_rows(self.signature.model, inputs, outputs)
        return outputs

    def prepare(self, buckets: Sequence[int]) -> None:
        """Compile for batches of these rows, where settings say so. Raises: BackendDead."""
        compiled = self._model.call
        if isinstance(compiled, Compiled):
            self._notes = compile_for(self.signature, self._model, compiled, buckets, self._tensors)

    def notes(self) -> tuple[str, ...]:
        """How it is executed, for its operator."""
        return self._notes

    def memory_bytes(self) -> int:
        """Bytes of the weights; what torch allocates beside them is not visible on a CPU."""
        return self._bytes

    def close(self) -> None:
        """Drop the weights and hand the memory back to the system (see `OnnxBackend.close`)."""
        del self._model
        give_back()

    def _tensors(self, coded: Mapping[str, Array]) -> list[Any]:
        """Views of arrays; copies of those that torch would warn about, though no operator here writes to its arguments."""
        tensors = []
        for item in self._model.inputs:
            array = coded[item.name]
            tensor = torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
            tensors.append(tensor if tensor.dtype == item.type else tensor.view(item.type))
        return tensors


def _array(tensor: Any, borrowed: set[int]) -> Array:
    """An output as an array of its own: neither the caller's inputs nor the weights can be reached through it."""
    tensor = tensor.contiguous()
    if tensor.untyped_storage().data_ptr() in borrowed:
        tensor = tensor.clone()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _renamed(tensors: tuple[ProgramTensor, ...], given: list[str], kind: str) -> list[ProgramTensor]:
    names = renamed([tensor.name for tensor in tensors], given, kind, OWN)
    return [replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True)]
