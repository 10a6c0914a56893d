"""Where one batch of an ONNX version lies on a device while it is on its way: its inputs, its answers, its binding. Floor 2.

A slot belongs to one batch at a time. Its buffers keep their addresses as long as their sizes are known beforehand, which is
what captured graphs need. Never imports onnxruntime: a session is given to it.
"""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from server.backends.onnx_memory import DeviceMemory, HostPool
from server.backends.onnx_options import fixed_shape
from server.backends.onnx_values import BFLOAT16
from server.core.errors import BackendFailed
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec


class Slot:
    """Used by whoever took it: `load` and `fetch` on the caller's thread, `bind` on the one that executes."""

    def __init__(self, index: int, memory: DeviceMemory, pool: HostPool, binding: Any) -> None:
        self.index = index
        self.binding = binding
        self.stream = memory.open_stream()
        self.frozen = False
        """Addresses must not change any more."""
        self._memory = memory
        self._pool = pool
        self._buffers: dict[str, tuple[int, int]] = {}
        self._staging: dict[str, Array] = {}
        self._bound: tuple[int, Mapping[str, tuple[int, ...]]] | None = None

    def takes(self, inputs: Mapping[str, Array]) -> bool:
        """Whether the batch fits without a buffer that would have to move."""
        return not self.frozen or all(array.nbytes <= self._buffers.get(name, (0, 0))[1] for name, array in inputs.items())

    def load(self, signature: Signature, inputs: Mapping[str, Array]) -> None:
        """Begin to copy the inputs to the device. Ownership: they stay as they are until the batch has executed.

        Raises: BackendFailed, RuntimeError in CUDA's words.
        """
        for spec in signature.inputs:
            array = np.asarray(inputs[spec.name], order="C")
            if array.dtype != NUMPY_DTYPES[spec.datatype]:
                raise BackendFailed(f"input '{spec.name}' of model '{signature.model}' is {array.dtype}, not {spec.datatype}")
            to = self._room(spec, array.nbytes, signature.max_batch)
            if array.nbytes:
                self._memory.upload(to, self._near(spec.name, array), array.nbytes, self.stream)

    def bind(self, signature: Signature, shapes: Mapping[str, tuple[int, ...]], rows: int) -> None:
        """Tell the session where everything is. `rows` 0: a model without batching.

        Raises: RuntimeError, and what onnxruntime raises.
        """
        if self._bound == (rows, shapes):
            return
        self._bound = None
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        place = (self._memory.kind, self._memory.number)
        for spec in signature.inputs:
            self.binding.bind_input(spec.name, *place, _element(spec), shapes[spec.name], self._buffers[spec.name][0])
        known = True
        for spec in signature.outputs:
            shape = fixed_shape(spec, rows)
            if shape is None:
                self.binding.bind_output(spec.name, *place)
                known = False
            else:
                to = self._room(spec, _nbytes(spec, shape), signature.max_batch)
                self.binding.bind_output(spec.name, *place, _element(spec), shape, to)
        if known:
            self._bound = (rows, dict(shapes))

    def fetch(self, signature: Signature, rows: int) -> dict[str, Array]:
        """The answers, in host memory. Ownership: the caller's. Raises: RuntimeError in CUDA's words."""
        made = (
            {} if self._bound else dict(zip((spec.name for spec in signature.outputs), self.binding.get_outputs(), strict=True))
        )
        answers: dict[str, Array] = {}
        for spec in signature.outputs:
            value = made.get(spec.name)
            shape = fixed_shape(spec, rows) if value is None else tuple(value.shape())
            if shape is None:
                raise BackendFailed(f"output '{spec.name}' of model '{signature.model}' was not made")
            source = self._buffers[spec.name][0] if value is None else value.data_ptr()
            answer = answers[spec.name] = self._pool.array(shape, NUMPY_DTYPES[spec.datatype])
            if answer.nbytes:
                self._memory.download(answer.ctypes.data, source, answer.nbytes, self.stream)
        self._memory.finish(self.stream)
        if made:
            self.binding.clear_binding_outputs()  # onnxruntime's own memory, not needed while the slot is idle
        return answers

    def memory_bytes(self) -> int:
        """Of its buffers on the device."""
        return sum(nbytes for _, nbytes in self._buffers.values())

    def close(self) -> None:
        """Give everything back, as far as a lost device can."""
        self._staging.clear()
        with suppress(RuntimeError):
            self._memory.close_stream(self.stream)
        for address, _ in self._buffers.values():
            with suppress(RuntimeError):
                self._memory.free(address)
        self._buffers.clear()

    def _near(self, name: str, array: Array) -> int:
        """The address of an input in memory that can be copied from while the caller goes on."""
        source = array.ctypes.data
        if self._pool.holds(source, array.nbytes):
            return source
        staging = self._staging.get(name)
        if staging is None or staging.nbytes < array.nbytes:
            staging = self._staging[name] = self._pool.array((array.nbytes,), np.dtype(np.uint8))
        # ctypes' copies let the interpreter go
        ctypes.memmove(staging.ctypes.data, source, array.nbytes)
        return staging.ctypes.data

    def _room(self, spec: TensorSpec, nbytes: int, max_batch: int) -> int:
        """The address of a buffer for a tensor: for the largest batch, where that is known."""
        address, size = self._buffers.get(spec.name, (0, 0))
        if address and size >= nbytes:
            return address
        largest = fixed_shape(spec, max_batch)
        size = max(1, nbytes, 0 if largest is None else _nbytes(spec, largest))
        self._bound = None
        if address:
            del self._buffers[spec.name]
            self._memory.free(address)
        address = self._memory.allocate(size)
        self._buffers[spec.name] = (address, size)
        return address


def _element(spec: TensorSpec) -> Any:
    return BFLOAT16 if spec.datatype == "BF16" else NUMPY_DTYPES[spec.datatype]


def _nbytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * NUMPY_DTYPES[spec.datatype].itemsize
