"""What a torch program accepts and answers, and the sizes it was exported for. **Pure.** Floor 2, beside its one user.

The file decides, as for ONNX files; no batch and no free dimension leaves the range that the exporter was told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.backends.onnx_signature import read_signature, without_batching
from server.backends.pt2_program import Program, ProgramTensor
from server.core.errors import InputsUnfit, LoadFailed
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import Array

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "bytes": "BYTES",
}
"""torch's words and the protocol's; "bytes" is an integer input with a vocabulary."""


_SMALLEST_RANGE = 2
"""torch writes 2 as the least size wherever it did not look at smaller ones; it is no promise that they fail."""

Ranges = Mapping[str, tuple[int, int | None]]


@dataclass(frozen=True, slots=True)
class FreeDim:
    """A dimension that is free per request, its symbol, and the sizes that the program was exported for."""

    name: str
    axis: int
    symbol: str
    least: int
    most: int | None


def program_signature(
    model: str,
    inputs: Sequence[ProgramTensor],
    outputs: Sequence[ProgramTensor],
    settings: ModelSettings,
    ranges: Ranges,
    file: str,
) -> Signature:
    """As for ONNX files; and no batch is larger than the program was exported for.

    Raises: LoadFailed where the settings contradict the program.
    """
    signature = read_signature(model, inputs, outputs, settings, file, DATATYPES)
    if not signature.max_batch:
        return signature
    symbols = {tensor.shape[0] for tensor in inputs}
    limits = [ranges[symbol] for symbol in symbols if isinstance(symbol, str) and symbol in ranges]
    least = max((limit[0] for limit in limits), default=0)
    most = min((limit[1] for limit in limits if limit[1] is not None), default=signature.max_batch)
    if settings.max_batch is not None:
        if least > _SMALLEST_RANGE or most < signature.max_batch:
            raise LoadFailed(
                f"model.toml states max_batch = {settings.max_batch}, but the program takes {least} to {most} rows"
            )
        return signature
    if least > _SMALLEST_RANGE or most < 1:
        return without_batching(signature)
    return replace(signature, max_batch=min(signature.max_batch, most))


def free_dims(signature: Signature, program: Program) -> tuple[FreeDim, ...]:
    """Every dimension of an input that is free per request, the batch dimension left out."""
    first = 1 if signature.max_batch else 0
    found = []
    for spec, tensor in zip(signature.inputs, program.inputs, strict=True):
        for axis, dim in enumerate(tensor.shape[first:], first):
            if isinstance(dim, str):
                least, most = program.ranges.get(dim, (0, None))
                found.append(FreeDim(spec.name, axis, dim, 0 if least <= _SMALLEST_RANGE else least, most))
    return tuple(found)


def check_sizes(free: tuple[FreeDim, ...], inputs: Mapping[str, Array]) -> None:
    """Raises: InputsUnfit for a size outside its range, or unlike others of the same symbol."""
    sizes: dict[str, int] = {}
    for dim in free:
        size = inputs[dim.name].shape[dim.axis]
        if size != sizes.setdefault(dim.symbol, size):
            raise InputsUnfit(f"dimension {dim.axis} of input '{dim.name}' is {size}; others like it are {sizes[dim.symbol]}")
        if size < dim.least or (dim.most is not None and size > dim.most):
            most = "any size" if dim.most is None else str(dim.most)
            raise InputsUnfit(f"dimension {dim.axis} of input '{dim.name}' is {size}; the program takes {dim.least} to {most}")
