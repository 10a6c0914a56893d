"""ONNX files, executed by ONNX Runtime. Floor 2: the one file that imports onnxruntime.

Opens `model.onnx` of a version's folder (external data beside it included). Never falls back silently: a provider that was
asked for and cannot be had is an error. Never keeps a caller's arrays, and never shows paths of this machine to a caller.

Which way in and out (onnxruntime 1.31 on CPU, an MLP 16-64-64-1, one thread, us per call with 1/16/64 rows; 2026-11-21):
`run` 5.4/6.9/10.6; an IO binding kept and cleared 5.4/6.8/10.5; a fresh binding 7.7/9.3/13.6; OrtValues 34/36/40. So the CPU
uses `run`, and a binding serves on CUDA devices and for BF16 outputs, which `run` cannot convert.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.backends.base import LoadTask
from server.backends.batching import check_rows, decide_batching
from server.backends.memory import give_back
from server.backends.onnx_errors import is_fatal, reason
from server.backends.onnx_signature import read_signature
from server.core.errors import BackendDead, BackendFailed, InputsUnfit, LoadFailed
from server.core.placement import device_of
from server.core.settings import OnnxSettings
from server.core.signature import Signature
from server.core.tensors import Array

FILE = "model.onnx"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16: numpy has no type that onnxruntime would read it from."""
_SILENT = 4
"""Log severity "fatal": whatever fails is raised, and one caller's bad index must not write to the server's log."""


def open_backend(task: LoadTask) -> "OnnxBackend":
    """Load `model.onnx`.

    A model whose batch dimension was only read off the file is tried first (`probe.rows_mix`); where rows would change
    each other's answers it does not batch, and a warning says so. Settings that state `max_batch` are taken at their word.

    Raises: LoadFailed.
    """
    settings = task.settings
    session = _open_session(task.folder, settings.onnx)
    signature = read_signature(task.key.model, session.get_inputs(), session.get_outputs(), settings, FILE)
    backend = OnnxBackend(session, signature, task.folder, device_of("onnx", settings))
    decide_batching(backend, task, FILE)
    return backend


class OnnxBackend:
    """One ONNX file on one device."""

    platform = "onnxruntime_onnx"

    def __init__(self, session: Any, signature: Signature, folder: Path, device: str) -> None:
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
        self._names = [spec.name for spec in signature.outputs]
        # strings cannot be bound as inputs, so `run` takes them on any device
        bound = bfloat16_out or (device != "cpu" and not self._text_inputs)
        self._binding = session.io_binding() if bound else None
        self._bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`. BYTES must be UTF-8, as ONNX strings are."""
        feed: dict[str, Any] = dict(inputs)
        for name in self._text_inputs:
            feed[name] = _to_text(name, inputs[name])
        try:
            outputs = self._run_plain(feed) if self._binding is None else self._run_bound(feed)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise self._failure(error) from error
        for name in self._text_outputs:
            outputs[name] = _to_bytes(outputs[name])
        if self.signature.max_batch:
            check_rows(self.signature.model, inputs, outputs)
        return outputs

    def memory_bytes(self) -> int:
        """Bytes of the version's files when it was loaded; what onnxruntime allocates beside the weights is not visible."""
        return self._bytes

    def close(self) -> None:
        """Free the session and hand the memory back to the system.

        Without the trim glibc keeps freed weights: 30 to 75 MB of a 20 MB model, moving with every reload (onnxruntime 1.31,
        2026-11-21); with it, memory after unload is flat from the first cycle. Session options made no difference.
        """
        self._binding = None
        self._session = None
        give_back()

    def _run_plain(self, feed: dict[str, Any]) -> dict[str, Array]:
        for name in self._bfloat16_inputs:
            feed[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.asarray(feed[name], order="C"), _BFLOAT16)
        return dict(zip(self._names, self._session.run(self._names, feed), strict=True))

    def _run_bound(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        binding: Any = self._binding
        kept = []  # the binding refers to bfloat16 memory without owning it
        try:
            for name, array in inputs.items():
                if name in self._bfloat16_inputs:
                    array = np.asarray(array, order="C")
                    kept.append(array)
                    binding.bind_input(name, "cpu", 0, _BFLOAT16, array.shape, array.ctypes.data)
                else:
                    binding.bind_cpu_input(name, array)
            for name in self._names:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            # not copy_outputs_to_cpu: onnxruntime 1.31 crashes the process there on a string output
            values = binding.get_outputs()
            return {name: _from_value(value) for name, value in zip(self._names, values, strict=True)}
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()

    def _failure(self, error: Exception) -> BackendFailed:
        kind = BackendDead if is_fatal(str(error)) or type(error).__name__ == "DeviceReset" else BackendFailed
        return kind(f"executing model '{self.signature.model}' failed: {reason(str(error), self._folder)}")


def _open_session(folder: Path, settings: OnnxSettings) -> Any:
    path = folder / FILE
    if not path.is_file():
        raise LoadFailed(f"{FILE} is missing from the version's folder")
    wanted = _wanted_providers(settings)
    try:
        session = ort.InferenceSession(str(path), _session_options(settings), providers=wanted, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise LoadFailed(f"{FILE}: {reason(str(error), folder)}") from error
    session.disable_fallback()
    running = session.get_providers()
    for provider, _ in wanted:
        # onnxruntime leaves a provider out, with no more than a log line, when its libraries do not load
        if provider not in running:
            raise LoadFailed(f"{FILE}: {provider} could not be started on this machine; started: {', '.join(running)}")
    return session


def _wanted_providers(settings: OnnxSettings) -> list[tuple[str, dict[str, str]]]:
    wanted = list(dict.fromkeys(settings.providers or ("cpu",)))
    available = ort.get_available_providers()
    for name in wanted:
        if _PROVIDERS[name] not in available:
            raise LoadFailed(f"provider '{name}' is not in this build of onnxruntime, which has {', '.join(available)}")
    return [(_PROVIDERS[name], provider_options(name, settings)) for name in wanted]


def provider_options(name: str, settings: OnnxSettings) -> dict[str, str]:
    """The options of one provider, in onnxruntime's words. CUDA's arena grows by what is asked for, not by doubling."""
    if name == "cpu":
        return {}
    options = {"device_id": str(settings.device_id)}
    if name == "cuda":
        options["arena_extend_strategy"] = "kSameAsRequested"
        if settings.gpu_memory_limit_bytes:
            options["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    return options


def _session_options(settings: OnnxSettings) -> Any:
    options = ort.SessionOptions()
    # what this process may use, not what the machine has: ONNX Runtime's own default ignores a container's CPU set
    options.intra_op_num_threads = settings.intra_op_threads or len(os.sched_getaffinity(0))
    # threads that spin between batches take the cores that the door and the engine need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = settings.inter_op_threads
    options.graph_optimization_level = _OPTIMIZATION[settings.graph_optimization]
    options.log_severity_level = _SILENT
    return options


def _to_text(name: str, array: Array) -> Array:
    # onnxruntime writes the *repr* of bytes objects into its strings, so they must be str
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.reshape(-1)[:] = [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InputsUnfit(f"input '{name}' holds bytes that are not UTF-8, as ONNX strings must be: {error.reason}") from error
    return texts


def _to_bytes(array: Array) -> Array:
    encoded = np.empty(array.shape, dtype=object)
    encoded.reshape(-1)[:] = [str(item).encode() for item in array.reshape(-1).tolist()]
    return encoded


def _from_value(value: Any) -> Array:
    """A copy of an output that lies in host memory; BF16 as its bit pattern."""
    if value.data_type() != "tensor(bfloat16)":
        return np.array(value.numpy())
    pattern = np.empty(value.shape(), dtype=np.uint16)
    ctypes.memmove(pattern.ctypes.data, value.data_ptr(), pattern.nbytes)
    return pattern
