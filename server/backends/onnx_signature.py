"""What an ONNX file or a torch program accepts and answers, merged with what `model.toml` states. **Pure.** Floor 2.

The file decides; settings may narrow it (fix a free dimension, name the largest batch) but never contradict it. Graph inputs
that have an initializer are weights with a default (files before IR version 4 list every weight so); they are not offered.
Never opens a file: it reads the names, types and shapes that a session reports.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from server.core.errors import LoadFailed
from server.core.settings import DEFAULT_MAX_BATCH, ModelSettings, TensorSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
"""onnxruntime's type words and the protocol's datatypes; whatever is not listed cannot be served."""


class FileTensor(Protocol):
    """An input or output as onnxruntime's `NodeArg` shows it, or `pt2_program.ProgramTensor`.

    Shapes: a free dimension is its symbol, or None without one. `[]` is a scalar *or* a tensor of unknown rank:
    onnxruntime does not tell the two apart.
    """

    @property
    def name(self) -> str:
        """Its name in the graph."""
        ...

    @property
    def type(self) -> str:
        """onnxruntime's word for its type, such as `tensor(float)`."""
        ...

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its dimensions."""
        ...


def read_signature(
    model: str,
    inputs: Sequence[FileTensor],
    outputs: Sequence[FileTensor],
    settings: ModelSettings,
    file: str,
    datatypes: Mapping[str, str] = DATATYPES,
) -> Signature:
    """The signature of a file under its settings, in the file's order of tensors. `datatypes`: by the file's word for a type.

    `settings.max_batch` None: batching exactly when every input and output has a free first dimension, no two inputs name
    theirs differently, and the batch's symbol names no other dimension. 0: no batching. Above 0: the file must allow it.

    Raises: LoadFailed for types that cannot be served, and where file and settings contradict each other.
    """
    stated_inputs = _stated("input", inputs, settings.inputs, file)
    stated_outputs = _stated("output", outputs, settings.outputs, file)
    stated_shapes = {name for name, tensor in (stated_inputs | stated_outputs).items() if tensor.shape is not None}
    max_batch = _max_batch(inputs, outputs, settings, stated_shapes, file)
    return Signature(
        model,
        tuple(_spec("input", tensor, stated_inputs.get(tensor.name), max_batch > 0, file, datatypes) for tensor in inputs),
        tuple(_spec("output", tensor, stated_outputs.get(tensor.name), max_batch > 0, file, datatypes) for tensor in outputs),
        max_batch,
    )


def without_batching(signature: Signature) -> Signature:
    """The same tensors with their full shapes, every request by itself."""

    def full(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=signature.full_shape(spec)) for spec in specs)

    return Signature(signature.model, full(signature.inputs), full(signature.outputs), 0)


def _stated(kind: str, tensors: Sequence[FileTensor], stated: Sequence[TensorSettings], file: str) -> dict[str, TensorSettings]:
    names = [tensor.name for tensor in tensors]
    by_name: dict[str, TensorSettings] = {}
    for tensor in stated:
        if tensor.name not in names:
            raise LoadFailed(f"model.toml states {kind} '{tensor.name}', but {file} has the {kind}s {names}")
        if tensor.name in by_name:
            raise LoadFailed(f"model.toml states {kind} '{tensor.name}' twice; {file} has it once")
        by_name[tensor.name] = tensor
    return by_name


def _max_batch(
    inputs: Sequence[FileTensor], outputs: Sequence[FileTensor], settings: ModelSettings, stated: set[str], file: str
) -> int:
    if settings.max_batch == 0:
        return 0
    if settings.max_batch is None:
        free = _obstacle(inputs, outputs, set()) is None
        return DEFAULT_MAX_BATCH if free and _symbols_agree(inputs, outputs) else 0
    obstacle = _obstacle(inputs, outputs, stated)
    if obstacle is not None:
        raise LoadFailed(
            f"model.toml states max_batch = {settings.max_batch}, but in {file} {obstacle};"
            " set max_batch = 0 to serve it with full shapes, each request by itself"
        )
    return settings.max_batch


def _obstacle(inputs: Sequence[FileTensor], outputs: Sequence[FileTensor], stated: set[str]) -> str | None:
    """What keeps rows from being put together, or None. `stated`: names whose shape the settings give."""
    if not inputs:
        return "there is no input to carry rows"
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if not tensor.shape:
                if tensor.name in stated:
                    continue
                return f"{kind} '{tensor.name}' has no dimensions, or none that the file states"
            if _fixed(tensor.shape[0]):
                return f"{kind} '{tensor.name}' has its first dimension fixed at {tensor.shape[0]}"
    return None


def _symbols_agree(inputs: Sequence[FileTensor], outputs: Sequence[FileTensor]) -> bool:
    first = {tensor.shape[0] for tensor in inputs if isinstance(tensor.shape[0], str)}
    elsewhere = {dim for tensor in (*inputs, *outputs) for dim in tensor.shape[1:]}
    return len(first) <= 1 and not first & elsewhere


def _fixed(dim: int | str | None) -> bool:
    return isinstance(dim, int) and dim >= 0


def _spec(
    kind: str, tensor: FileTensor, stated: TensorSettings | None, batching: bool, file: str, datatypes: Mapping[str, str]
) -> TensorSpec:
    datatype = datatypes.get(tensor.type)
    if datatype is None:
        raise LoadFailed(f"{kind} '{tensor.name}' of {file} is a {tensor.type}, which cannot be served")
    full = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in tensor.shape)
    shape = full[1:] if batching else full
    if stated is None:
        return TensorSpec(tensor.name, datatype, shape)
    if stated.optional:
        raise LoadFailed(f"model.toml calls {kind} '{tensor.name}' optional, but {file} always has it")
    if stated.datatype not in (None, datatype):
        raise LoadFailed(f"model.toml states {stated.datatype} for {kind} '{tensor.name}', but in {file} it is {datatype}")
    if stated.shape is None:
        return TensorSpec(tensor.name, datatype, shape)
    if tensor.shape and not _narrows(stated.shape, shape):
        note = " (without the batch dimension; max_batch = 0 states full shapes)" if batching else ""
        raise LoadFailed(
            f"model.toml states shape {list(stated.shape)} for {kind} '{tensor.name}', but in {file} it is {list(shape)}{note}"
        )
    return TensorSpec(tensor.name, datatype, stated.shape)


def _narrows(stated: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(stated) == len(shape) and all(dim in (-1, want) for want, dim in zip(stated, shape, strict=True))
