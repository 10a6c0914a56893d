"""A program with the names, texts and shapes that clients use: what the CPU and devices execute alike. Floor 2."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.backends.pt2_signature import FreeDim, check_sizes
from server.backends.torch_bound import BoundProgram
from server.backends.torch_compile import Compiled
from server.backends.vocabulary import Vocabulary
from server.core.errors import BackendFailed
from server.core.tensors import Array


@dataclass(frozen=True, slots=True)
class Input:
    """One input as the program takes it. `codes`: the dtype that texts are looked up as, None for plain tensors."""

    name: str
    type: Any
    codes: np.dtype[Any] | None


@dataclass(frozen=True, slots=True)
class Output:
    """One output as clients are promised it."""

    name: str
    type: Any


@dataclass(frozen=True, slots=True)
class TorchModel:
    """One program. `call` takes and gives tensors in the program's order."""

    call: BoundProgram | Compiled
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    tables: Mapping[str, Vocabulary]
    free: tuple[FreeDim, ...]
    weights: Mapping[int, Any]
    folder: Path
    rounding: str
    """Which precision stands in for FP32; empty where the program runs as it was saved."""

    def coded(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every input as numbers, in the program's order. Raises: InputsUnfit for sizes that it does not take."""
        if self.free:
            check_sizes(self.free, inputs)
        return {
            item.name: inputs[item.name]
            if item.codes is None
            else self.tables[item.name].look_up(inputs[item.name], item.codes)
            for item in self.inputs
        }

    def execute(self, tensors: list[Any]) -> list[Any]:
        """The outputs of tensors on the program's device, of the promised types. Raises: BackendFailed for any other."""
        with torch.inference_mode():
            results = self.call(tensors)
            return [self._promised(tensor, output) for tensor, output in zip(results, self.outputs, strict=True)]

    def _promised(self, tensor: Any, output: Output) -> Any:
        if tensor.dtype != output.type:
            if not (self.rounding and tensor.dtype.is_floating_point):
                found = str(tensor.dtype).removeprefix("torch.")
                raise BackendFailed(f"output '{output.name}' is {found}, which the file does not say")
            tensor = tensor.to(output.type)
        return tensor.resolve_conj().resolve_neg()

    def storages(self) -> dict[int, int]:
        """Bytes of the weights' memory, by where it begins."""
        held = [tensor.untyped_storage() for tensor in self.weights.values()]
        return {storage.data_ptr(): int(storage.nbytes()) for storage in held}
