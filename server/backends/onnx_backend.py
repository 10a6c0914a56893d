"""A loaded ONNX file as a backend: from host memory to host memory, or through the slots of a device. Floor 2.

Never keeps a caller's arrays, and never shows paths of this machine to a caller. Sessions are given to it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from server.backends.base import LoadTask
from server.backends.batching import check_rows
from server.backends.memory import give_back
from server.backends.onnx_device import DeviceBatch, DeviceRunner, allocated, turns_of
from server.backends.onnx_errors import is_fatal, is_out_of_memory, reason
from server.backends.onnx_memory import DeviceMemory
from server.backends.onnx_options import NO_GRAPH
from server.backends.onnx_runtime import FILE, bfloat16_value, run_options
from server.backends.onnx_values import BFLOAT16, from_value, to_bytes, to_text
from server.backends.samples import Attempt, sample_inputs, worth_trying
from server.core.errors import BackendDead, BackendFailed, DeviceLost, LoadFailed, OutOfDeviceMemory
from server.core.signature import Signature
from server.core.tensors import Array

_ATTEMPTS: tuple[Attempt, ...] = (("zeros", 1), ("ones", 1), ("varied", 1))
"""What executions are captured with, as in `warm.py`."""


class OnnxBackend:
    """One ONNX file on one device, executed from host memory to host memory."""

    platform = "onnxruntime_onnx"

    def __init__(
        self,
        session: Any,
        signature: Signature,
        folder: Path,
        device: str,
        *,
        memory: DeviceMemory | None = None,
        run_options: Any = None,
    ) -> None:
        """`memory`: what the session computes in, closed after it."""
        self._bfloat16_inputs = [spec.name for spec in signature.inputs if spec.datatype == "BF16"]
        self._text_inputs = [spec.name for spec in signature.inputs if spec.datatype == "BYTES"]
        self._text_outputs = [spec.name for spec in signature.outputs if spec.datatype == "BYTES"]
        bfloat16_out = any(spec.datatype == "BF16" for spec in signature.outputs)
        if bfloat16_out and self._text_inputs:
            raise LoadFailed(f"{FILE} has BYTES inputs and BF16 outputs, which onnxruntime's Python cannot carry together")
        self.signature = signature
        self.device = device
        self._session = session
        self._folder = folder
        self._memory = memory
        self._run_options = run_options
        self._notes: list[str] = []
        self._names = [spec.name for spec in signature.outputs]
        self._binding = session.io_binding() if bfloat16_out else None
        self._bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. BYTES must be UTF-8, as ONNX strings are."""
        try:
            outputs = self._run_host(inputs)
        except BackendFailed:
            raise
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise self._failure(error) from error
        if self.signature.max_batch:
            check_rows(self.signature.model, inputs, outputs)
        return outputs

    def notes(self) -> tuple[str, ...]:
        """What an operator should know about how it executes, one line each; none on a CPU."""
        return tuple(self._notes)

    def say(self, note: str) -> None:
        """One note more."""
        self._notes.append(note)

    def memory_bytes(self) -> int:
        """Bytes of the version's files when it was loaded; what onnxruntime allocates beside the weights is not visible."""
        return self._bytes

    def close(self) -> None:
        """Free the session and hand the memory back to the system.

        Without the trim glibc keeps freed weights: 30 to 75 MB of a 20 MB model, moving with every reload (onnxruntime 1.31,
        2026-11-21); with it, memory after unload is flat from the first cycle. Session options made no difference.
        """
        self._drop_session()
        if self._memory is not None:
            with suppress(RuntimeError):  # of a lost device
                self._memory.close()
        give_back()

    def _drop_session(self) -> None:
        self._binding = None
        self._session = None

    def _run_host(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed: dict[str, Any] = dict(inputs)
        for name in self._text_inputs:
            feed[name] = to_text(name, inputs[name])
        outputs = self._run_plain(feed) if self._binding is None else self._run_bound(feed)
        for name in self._text_outputs:
            outputs[name] = to_bytes(outputs[name])
        return outputs

    def _run_plain(self, feed: dict[str, Any]) -> dict[str, Array]:
        for name in self._bfloat16_inputs:
            feed[name] = bfloat16_value(feed[name])
        return dict(zip(self._names, self._session.run(self._names, feed, self._run_options), strict=True))

    def _run_bound(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        binding: Any = self._binding
        kept = []  # the binding refers to bfloat16 memory without owning it
        try:
            for name, array in inputs.items():
                if name in self._bfloat16_inputs:
                    array = np.asarray(array, order="C")
                    kept.append(array)
                    binding.bind_input(name, "cpu", 0, BFLOAT16, array.shape, array.ctypes.data)
                else:
                    binding.bind_cpu_input(name, array)
            for name in self._names:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding, self._run_options)
            # not copy_outputs_to_cpu: onnxruntime 1.31 crashes the process there on a string output
            values = binding.get_outputs()
            return {name: from_value(value) for name, value in zip(self._names, values, strict=True)}
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()

    def _failure(self, error: Exception) -> BackendFailed:
        said = str(error)
        kind: type[BackendFailed] = BackendFailed
        if is_fatal(said) or type(error).__name__ == "DeviceReset":
            kind = BackendDead if self.device == "cpu" else DeviceLost
        elif self.device != "cpu" and is_out_of_memory(said):
            kind = OutOfDeviceMemory
        return kind(f"executing model '{self.signature.model}' failed: {reason(said, self._folder)}")


class PipelinedOnnx(OnnxBackend):
    """One ONNX file on a device that works by itself; see `PipelinedBackend`."""

    def __init__(
        self, session: Any, task: LoadTask, signature: Signature, device: str, memory: DeviceMemory, *, graphs: bool
    ) -> None:
        onnx = task.settings.onnx
        without = run_options(onnx, NO_GRAPH, graphs=graphs)
        super().__init__(session, signature, task.folder, device, memory=memory, run_options=without)
        self._runner = DeviceRunner(
            session,
            memory,
            run_plain=self._run_host,
            run_options=lambda graph_id: run_options(onnx, graph_id, graphs=graphs),
            failure=self._failure,
            # several instances are asked for so that several of its batches execute at once
            turns=turns_of(device) if task.settings.instances == 1 else None,
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        return self._runner.run(self.signature, inputs)

    def arrays(self, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, Array]:
        """See `PipelinedBackend.arrays`: page-locked memory."""
        return allocated(self._runner.pool, shapes)

    def begin(self, inputs: Mapping[str, Array]) -> DeviceBatch:
        """See `PipelinedBackend.begin`."""
        return self._runner.begin(self.signature, inputs)

    def capture(self, buckets: Sequence[int]) -> None:
        """Capture every batch size as a CUDA graph, before anybody calls `begin`.

        Raises: BackendFailed where no harmless inputs execute, or onnxruntime cannot capture.
        """
        failed = BackendFailed("nothing was tried")
        for attempt in worth_trying(self.signature, _ATTEMPTS):
            try:
                self._runner.run(self.signature, sample_inputs(self.signature, buckets[0], *attempt))
            except BackendDead:
                raise
            except BackendFailed as error:
                failed = error
                continue
            self._runner.capture(self.signature, buckets, partial(_sample, self.signature, attempt))
            return
        raise failed

    def memory_bytes(self) -> int:
        """Bytes of the version's files, and of the slots on the device; onnxruntime's arena is not visible."""
        return self._bytes + self._runner.memory_bytes()

    def close(self) -> None:
        """See `Backend.close`."""
        self._runner.close(self._drop_session)
        self._memory = None  # the runner's, closed with it
        super().close()


def _sample(signature: Signature, attempt: Attempt, rows: int) -> dict[str, Array]:
    return sample_inputs(signature, rows, *attempt)
