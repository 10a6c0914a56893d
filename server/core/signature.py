"""What a version accepts and answers, and the check of one request against it. **Pure.**

A request is checked *alone*, before it may join a batch: nothing a caller sends can disturb a neighbour's answer. The order
of the checks and the texts are NVIDIA Triton's, because clients match on them (triton-inference-server/core,
`InferenceRequest::Normalize`).
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.core.errors import InvalidRequest
from server.core.requests import InferRequest, WireTensor
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec, byte_size, element_count, split_bytes

ShapeKey = tuple[tuple[str, tuple[int, ...]], ...]
"""Inputs by name, each with its dimensions behind the rows, as they are executed."""

_BATCH_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each"
    " input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting"
    " max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and the largest batch of one version.

    Units: `max_batch` in rows; 0 means the model has no batch dimension and every request runs by itself.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int

    @cached_property
    def input_names(self) -> dict[str, TensorSpec]:
        """Inputs by name."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def output_names(self) -> dict[str, TensorSpec]:
        """Outputs by name."""
        return {spec.name: spec for spec in self.outputs}

    @cached_property
    def required_count(self) -> int:
        """Number of inputs a request must bring."""
        return sum(not spec.optional for spec in self.inputs)

    @cached_property
    def padded_inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs whose free dimensions are padded."""
        return tuple(spec for spec in self.inputs if spec.pad_to)

    @cached_property
    def pad_sizes(self) -> tuple[int, ...]:
        """Every size that any free dimension is padded to, ascending: one size class each. Empty where nothing is padded."""
        return tuple(sorted({size for spec in self.padded_inputs for size in spec.pad_to}))

    def size_class(self, shapes: ShapeKey) -> int:
        """The size class of a batch of such rows: where in `pad_sizes` the largest size is that a dimension is padded to."""
        if not self.pad_sizes:
            return 0
        padded = {spec.name: spec.shape for spec in self.padded_inputs}
        sizes = [
            dim
            for name, dims in shapes
            if name in padded
            for stated, dim in zip(padded[name], dims, strict=True)
            if stated == -1
        ]
        return bisect_left(self.pad_sizes, max(sizes, default=0))

    def full_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """A tensor's shape as metadata shows it: with the -1 batch dimension where the model batches."""
        return (-1, *spec.shape) if self.max_batch else spec.shape


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """A request that fits its version.

    Shapes: each array is `[rows, *shape]` for batching models, else the model's own shape (and `rows` is 1).
    `shape_key` is equal for two requests exactly when their rows may be concatenated: once they are padded, where they are.
    """

    arrays: dict[str, Array]
    rows: int
    shape_key: ShapeKey
    size_class: int = 0


class _UnknownTensor(InvalidRequest):
    """A name the model does not have: the one kind of refusal whose text Triton does not begin with the request's id."""


def check(request: InferRequest, signature: Signature) -> CheckedRows:
    """Check one request against its version and turn its inputs into arrays.

    Ownership: arrays of raw contents are read-only views of the request's bytes, except BYTES, and BOOL with bytes above 1.
    Raises: InvalidRequest, with Triton's text, for the first rule that is broken.
    """
    try:
        _check_outputs(request, signature)
        _check_names(request, signature)
        rows = _check_batch(request.inputs, signature)
        for tensor in request.inputs:
            _check_datatype(tensor, signature)
        for tensor in request.inputs:
            _check_shape(tensor, signature)
        arrays = {tensor.name: _to_array(tensor, signature) for tensor in request.inputs}
    except _UnknownTensor as error:
        raise InvalidRequest(str(error)) from None
    except InvalidRequest as error:
        raise InvalidRequest(f"[request id: {request.id or '<id_unknown>'}] {error}") from None
    start = 1 if signature.max_batch else 0
    # the names belong to the key: with optional inputs, two requests may bring different sets
    specs = signature.input_names
    key = tuple(sorted((name, specs[name].padded(array.shape[start:])) for name, array in arrays.items()))
    return CheckedRows(arrays, rows, key, signature.size_class(key))


def _check_outputs(request: InferRequest, signature: Signature) -> None:
    for name in request.outputs:
        if name not in signature.output_names:
            raise _UnknownTensor(f"unexpected inference output '{name}' for model '{signature.model}'")
    for first, second in pairwise(sorted(request.outputs)):
        if first == second:
            raise InvalidRequest(f"output '{first}' already exists in request")


def _check_names(request: InferRequest, signature: Signature) -> None:
    given = [tensor.name for tensor in request.inputs]
    for first, second in pairwise(sorted(given)):
        if first == second:
            raise InvalidRequest(f"input '{first}' already exists in request")
    most, least = len(signature.inputs), signature.required_count
    missing = [spec.name for spec in signature.inputs if not spec.optional and spec.name not in given]
    if len(given) > most or len(given) < least or (missing and all(name in signature.input_names for name in given)):
        expected = f"{most}" if most == least else f"number of inputs between {least} and {most}"
        counted = (
            f"{expected} inputs but got {len(given)} inputs" if most == least else f"{expected} but got {len(given)} inputs"
        )
        raise InvalidRequest(
            f"expected {counted} for model '{signature.model}'. Got input(s) {_quoted(given)}, but missing required"
            f" input(s) {_quoted(missing)}. Please provide all required input(s)."
        )
    for name in given:
        if name not in signature.input_names:
            raise _UnknownTensor(f"unexpected inference input '{name}' for model '{signature.model}'")


def _check_batch(inputs: tuple[WireTensor, ...], signature: Signature) -> int:
    """Return the number of rows; negative dimensions are refused here, before any arithmetic with them."""
    for tensor in inputs:
        if any(dim < 0 for dim in tensor.shape):
            raise InvalidRequest(
                f"input '{tensor.name}' for model '{signature.model}' has a negative dimension in shape {_dims(tensor.shape)}"
            )
    if not signature.max_batch:
        return 1
    rows: int | None = None
    for tensor in inputs:
        if not tensor.shape:
            raise InvalidRequest(
                f"input '{tensor.name}' has no shape but model requires batch dimension for '{signature.model}'"
            )
        if rows is None:
            rows = tensor.shape[0]
        elif tensor.shape[0] != rows:
            raise InvalidRequest(f"input '{tensor.name}' batch size does not match other inputs for '{signature.model}'")
    if rows is None:
        return 1
    if rows < 1:
        raise InvalidRequest(f"inference request batch-size must be >= 1 for '{signature.model}'")
    if rows > signature.max_batch:
        raise InvalidRequest(f"inference request batch-size must be <= {signature.max_batch} for '{signature.model}'")
    return rows


def _check_datatype(tensor: WireTensor, signature: Signature) -> None:
    expected = signature.input_names[tensor.name].datatype
    if tensor.datatype != expected:
        raise InvalidRequest(
            f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{signature.model}'"
            f" expects '{expected}'"
        )


def _check_shape(tensor: WireTensor, signature: Signature) -> None:
    spec = signature.input_names[tensor.name]
    expected = signature.full_shape(spec)
    fits = len(expected) == len(tensor.shape) and all(
        want in (-1, got) for want, got in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        note = _BATCH_NOTE if signature.max_batch else ""
        raise InvalidRequest(
            f"unexpected shape for input '{tensor.name}' for model '{signature.model}'. Expected {_dims(expected)},"
            f" got {_dims(tensor.shape)}.{note}"
        )
    if spec.pad_to:
        _check_sizes(tensor, zip(expected, tensor.shape, strict=True), spec.pad_to[-1], signature)


def _check_sizes(tensor: WireTensor, dims: Iterable[tuple[int, int]], largest: int, signature: Signature) -> None:
    """No free dimension is larger than what it can be padded to. `dims`: as stated and as given, all of the tensor."""
    for axis, (stated, given) in enumerate(dims):
        if stated == -1 and given > largest and (axis or not signature.max_batch):
            raise InvalidRequest(
                f"input '{tensor.name}' has size {given} in shape {_dims(tensor.shape)}, but its size must be <= {largest}"
                f" for '{signature.model}'"
            )


def _to_array(tensor: WireTensor, signature: Signature) -> Array:
    where = f"inference input '{tensor.name}' for model '{signature.model}'"
    flat: Array
    if tensor.datatype == "BYTES":
        flat = _to_texts(tensor, where)
    else:
        got = tensor.data.nbytes if isinstance(tensor.data, np.ndarray | memoryview) else len(tensor.data)
        expected = byte_size(tensor.datatype, tensor.shape)
        if got != expected:
            raise InvalidRequest(
                f"input byte size mismatch for input '{tensor.name}' for model '{signature.model}'."
                f" Expected {expected}, got {got}"
            )
        flat = _to_numbers(tensor.data, NUMPY_DTYPES[tensor.datatype])
    try:
        if not flat.size and signature.max_batch:
            np.empty((signature.max_batch, *tensor.shape[1:]), flat.dtype)  # it must fit with the rows of others, too
        return flat.reshape(tensor.shape)
    except ValueError:
        # no element at all, but other dimensions whose product no address space holds: [0,2**62,2**62]
        raise InvalidRequest(f"shape {_dims(tensor.shape)} of {where} is larger than an array can be") from None


def _to_texts(tensor: WireTensor, where: str) -> NDArray[np.object_]:
    count = element_count(tensor.shape)
    if isinstance(tensor.data, np.ndarray):
        elements = list(tensor.data)
    else:
        try:
            elements = split_bytes(tensor.data, count)
        except InvalidRequest as error:
            raise InvalidRequest(f"{error} for {where}") from None
    if len(elements) > count:
        raise InvalidRequest(f"unexpected number of string elements {len(elements)} for {where}, expecting {count}")
    if len(elements) < count:
        raise InvalidRequest(f"expected {count} string elements for {where}, got {len(elements)}")
    # filled element by element: numpy would turn equally long bytes into a fixed-width type
    flat = np.empty(count, dtype=object)
    flat[:] = elements
    return flat


def _to_numbers(data: bytes | memoryview | Array, dtype: np.dtype[Any]) -> Array:
    if isinstance(data, np.ndarray):
        return data.astype(dtype, copy=False)
    flat: Array = np.frombuffer(data, dtype)
    if dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        # what a bool of 2 means is undefined, in numpy as in C++: whatever is not zero is true
        flat = np.not_equal(flat.view(np.uint8), 0)
    return flat


def _dims(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _quoted(names: list[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
