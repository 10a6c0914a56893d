"""ONNX files opened: on the CPU, or on a device with what its execution provider can do there. Floor 2.

Opens `model.onnx` of a version's folder (external data beside it included). Never falls back silently: a provider that was
asked for and cannot be had is an error, and what a device could not be given (graphs, overlapping copies) is in the notes.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.backends.base import LoadTask
from server.backends.batching import decide_batching
from server.backends.onnx_backend import OnnxBackend, PipelinedOnnx
from server.backends.onnx_cudart import CudaMemory, find_library
from server.backends.onnx_device import sizes
from server.backends.onnx_errors import reason
from server.backends.onnx_memory import DeviceMemory
from server.backends.onnx_options import (
    NO_GRAPH,
    PROVIDERS,
    executes_on,
    graph_obstacle,
    host_tensor,
    profiles,
    provider_options,
)
from server.backends.onnx_runtime import FILE, available_providers, open_session, run_options
from server.backends.onnx_signature import read_signature
from server.core.errors import BackendFailed, DeviceLost, LoadFailed
from server.core.placement import device_of
from server.core.settings import OnnxSettings, buckets_for
from server.core.signature import Signature


def open_backend(task: LoadTask) -> "OnnxBackend":
    """Load `model.onnx`.

    A model whose batch dimension was only read off the file is tried first (`probe.rows_mix`); where rows would change
    each other's answers it does not batch, and a warning says so. Settings that state `max_batch` are taken at their word.

    Raises: LoadFailed.
    """
    onnx = task.settings.onnx
    _check_available(onnx)
    if executes_on(onnx) != "cpu":
        library = find_library()
        return open_on_device(task, None if library is None else lambda: CudaMemory(onnx.device_id, library))
    session = _open(task, onnx)
    backend = OnnxBackend(session, _signature(task, session), task.folder, "cpu")
    decide_batching(backend, task, FILE)
    return backend


def open_on_device(task: LoadTask, open_memory: Callable[[], DeviceMemory] | None) -> "OnnxBackend":
    """Load `model.onnx` for the device of its settings, with CUDA graphs where these ask for them and the file allows them.

    `open_memory`: the device's memory; None where its library is not there, so that onnxruntime has to make all copies.
    Raises: LoadFailed.
    """
    onnx = task.settings.onnx
    signature, notes = _profiled(task) if executes_on(onnx) == "tensorrt" else (None, [])
    if onnx.cuda_graphs and open_memory is not None:
        backend = None
        try:
            backend = _open_once(task, open_memory, signature, notes, graphs=True)
            return _captured(backend, task)
        except (LoadFailed, BackendFailed) as error:
            if backend is not None:
                backend.close()
            if isinstance(error, DeviceLost):
                raise LoadFailed(f"{FILE}: {error}") from error
            notes = [*notes, f"no CUDA graphs: {error}"]
    backend = _open_once(task, open_memory, signature, notes, graphs=False)
    if open_memory is None and onnx.cuda_graphs:
        backend.say("no CUDA graphs: libcudart was not found")
    return backend


def _open_once(
    task: LoadTask,
    open_memory: Callable[[], DeviceMemory] | None,
    known: Signature | None,
    notes: Sequence[str],
    *,
    graphs: bool,
) -> OnnxBackend:
    """`known`: the signature, where it was found out before."""
    onnx, device = task.settings.onnx, device_of("onnx", task.settings)
    memory = None
    try:
        memory = open_memory() if open_memory is not None else None
        stream = 0 if memory is None else memory.compute_stream
        session = _open(task, onnx, stream=stream, graphs=graphs, known=known)
        signature = known or _signature(task, session)
        backend = _on_device(session, task, signature, device, memory, graphs=graphs)
    except Exception as error:
        if memory is not None:
            with suppress(RuntimeError):
                memory.close()
        if isinstance(error, LoadFailed):
            raise
        raise LoadFailed(f"{FILE}: {reason(str(error), task.folder)}") from error
    for note in notes:
        backend.say(note)
    if known is None:
        decide_batching(backend, task, FILE)
    return backend


def _on_device(
    session: Any, task: LoadTask, signature: Signature, device: str, memory: DeviceMemory | None, *, graphs: bool
) -> OnnxBackend:
    text = host_tensor(signature)
    if memory is not None and not text:
        return PipelinedOnnx(session, task, signature, device, memory, graphs=graphs)
    options = run_options(task.settings.onnx, NO_GRAPH, graphs=graphs)
    backend = OnnxBackend(session, signature, task.folder, device, memory=memory, run_options=options)
    backend.say(f"copies do not overlap executions: {text or 'libcudart was not found'}")
    return backend


def _captured(backend: OnnxBackend, task: LoadTask) -> OnnxBackend:
    """Raises: BackendFailed; then it is to be opened without graphs."""
    obstacle = host_tensor(backend.signature) or graph_obstacle(backend.signature, task.settings.onnx)
    if obstacle or not isinstance(backend, PipelinedOnnx):
        backend.say(f"no CUDA graphs: {obstacle}")
        return backend
    buckets = buckets_for(backend.signature.max_batch, task.settings.batching)
    backend.capture(buckets)
    backend.say(f"CUDA graphs for batches of {sizes(buckets)}" if backend.signature.max_batch else "a CUDA graph")
    return backend


def _profiled(task: LoadTask) -> tuple[Signature | None, list[str]]:
    """What TensorRT must know before it opens a file, read on the CPU; None where the CPU cannot open it."""
    try:
        session = _open(task, OnnxSettings())
        backend = OnnxBackend(session, _signature(task, session), task.folder, "cpu")
        del session  # the backend's alone, to be freed with it
        decide_batching(backend, task, FILE)
    except LoadFailed as error:
        return None, [f"no TensorRT profile: {error}"]
    signature = backend.signature
    backend.close()
    if profiles(signature, buckets_for(signature.max_batch, task.settings.batching)):
        return signature, [f"a TensorRT profile for 1 to {signature.max_batch} rows"]
    return signature, ["no TensorRT profile: engines are built when sizes are first seen"]


def _signature(task: LoadTask, session: Any) -> Signature:
    return read_signature(task.key.model, session.get_inputs(), session.get_outputs(), task.settings, FILE)


def _check_available(settings: OnnxSettings) -> None:
    available = available_providers()
    for name in settings.providers:
        if PROVIDERS[name] not in available:
            raise LoadFailed(f"provider '{name}' is not in this build of onnxruntime, which has {', '.join(available)}")


def _open(
    task: LoadTask, settings: OnnxSettings, *, stream: int = 0, graphs: bool = False, known: Signature | None = None
) -> Any:
    """A session. `known`: what TensorRT may be told of the sizes that come. Raises: LoadFailed."""
    if not (task.folder / FILE).is_file():
        raise LoadFailed(f"{FILE} is missing from the version's folder")
    wanted = []
    for name in dict.fromkeys(settings.providers or ("cpu",)):
        shapes = {} if known is None else profiles(known, buckets_for(known.max_batch, task.settings.batching))
        engines = _engines(task.folder, settings) if name == "tensorrt" else ""
        options = provider_options(name, settings, stream=stream, graphs=graphs, profiles=shapes, engines=engines)
        wanted.append((PROVIDERS[name], options))
    return open_session(task.folder, settings, wanted)


def _engines(folder: Path, settings: OnnxSettings) -> str:
    """The folder for what TensorRT builds of this very file, "" for none.

    Named by a digest: TensorRT's own names say nothing about weights, so that another version of the same network would get
    this one's engine.
    """
    if not settings.tensorrt_cache:
        return ""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    engines = Path(settings.tensorrt_cache) / digest.hexdigest()[:32]
    try:
        engines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoadFailed(f"tensorrt_cache cannot be written to: {error.strerror}") from error
    return str(engines)
