"""Parts of the assembly whose packages are heavy, or not installed everywhere: loaded by name when they are first needed.

Roof: a server pays for what it serves, and what is missing is missed by name.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Literal, Protocol

from server.backends.base import Backend, BackendFactory, LoadTask
from server.backends.cudart import Cudart, load
from server.backends.warm import warm
from server.core.clock import Clock, monotonic_ns
from server.core.errors import LoadFailed, PodiumError, Unsupported
from server.core.feature_settings import FeatureStoreSettings
from server.core.settings import ModelSettings, ServerSettings, TraceSettings
from server.core.signature import Signature
from server.core.versions import VersionKey
from server.dataplane.interface import DataPlane, QueueSnapshot
from server.dataplane.limit import InflightLimit
from server.dataplane.python.answers import Answer
from server.dataplane.python.plane import PythonPlane
from server.features.interface import Features
from server.features.readings import FeatureReading
from server.features.without import NoFeatures
from server.lifecycle.accounts import Accounts
from server.lifecycle.found import Lease
from server.lifecycle.loader import BindFeatures, Loader
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import BASELINE_FILE, MAX_BYTES, from_document
from server.registry.gates import compare_golden
from server.registry.golden import load_golden
from server.registry.labels import read_labels
from server.service.predict import Submitting
from server.telemetry.readings import DeviceReading
from server.telemetry.trace_file import TraceFile
from server.telemetry.trace_writer import TraceSink
from server.transport.listen import Door, GrpcioDoor
from server.transport.status import Trailing, ending_for

_BACKENDS = {
    "onnx": "server.backends.onnx_session",
    "torch": "server.backends.torch_program",
    "text": "server.backends.text",
    "fake": "server.backends.fake",
}

_NATIVE_PLANE = "server.dataplane.native.plane"
"""Importing it imports the compiled module."""

PlaneKind = Literal["native", "python"]


def backend_factory(name: str) -> BackendFactory:
    """The factory of a backend, whose heavy package is imported at the first load: a server pays for what it serves."""

    def open_backend(task: LoadTask) -> Backend:
        if name == "onnx" and len(installed := _onnxruntimes()) > 1:
            raise LoadFailed(f"{' and '.join(installed)} are both installed and overwrite each other's files: keep one")
        try:
            module = importlib.import_module(_BACKENDS[name])
        except ImportError as error:
            raise LoadFailed(f"backend '{name}' is not installed here: {error}") from error
        # texts are executed by the backend of the model file beside the tokenizer
        backend: Backend = module.open_backend(task, backend_factory) if name == "text" else module.open_backend(task)
        return backend

    return open_backend


def loader_over(
    verify: Callable[[Any], None],
    lease: Callable[[Path], Lease] | None,
    bind_features: BindFeatures | None = None,
    accounts: Accounts | None = None,
) -> Loader:
    """A loader with every backend of this installation: what a server loads with, and what proves a rebuilt version."""
    return Loader(
        verify=verify,
        backends={name: backend_factory(name) for name in _BACKENDS},
        warm=warm,
        load_golden=load_golden,
        compare_golden=compare_golden,
        read_labels=read_labels,
        clock=monotonic_ns,
        lease=lease,
        bind_features=bind_features,
        accounts=accounts,
        read_baseline=read_baseline,
    )


def read_baseline(folder: Path) -> Baseline | None:
    """The baseline of a version; see `server.lifecycle.loader.ReadBaseline`."""
    try:
        with (folder / BASELINE_FILE).open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # one more than it may have is told from none too many
    except FileNotFoundError:
        return None
    try:
        return from_document(data)
    except ValueError as error:
        raise LoadFailed(f"{BASELINE_FILE}: {error}") from None


def _onnxruntimes() -> list[str]:
    """Which of the distributions that bring the package `onnxruntime` are installed."""
    return [name for name in ("onnxruntime", "onnxruntime-gpu") if any(Distribution.discover(name=name))]


def device_readings() -> Callable[[], Sequence[DeviceReading]]:
    """Readings of the GPUs in this machine, or of none where NVIDIA's library or driver is not there."""
    try:
        readings: Callable[[], Sequence[DeviceReading]] = importlib.import_module(
            "server.telemetry.device_metrics"
        ).open_devices()
    except (ImportError, Unsupported):
        return tuple
    return readings


def cuda_for_sharing(settings: ServerSettings) -> Cudart | None:
    """CUDA for memory that callers share, where that is allowed. Raises: Unsupported, with why, where there is no GPU."""
    if not settings.allow_client_shm:
        return None
    cuda = load(settings.libcudart)
    cuda.device_count()
    return cuda


def open_trace_sink(settings: TraceSettings) -> TraceSink | None:
    """Where traces go; None where nobody said. Raises: Unsupported for what cannot work on this machine."""
    if settings.mode == "opentelemetry":
        try:
            module = importlib.import_module("server.telemetry.otel")
        except ImportError as error:
            raise Unsupported(f"mode 'opentelemetry' needs the extra 'tracing', which is not installed: {error}") from error
        sink: TraceSink = module.open_sink(settings)
        return sink
    if not settings.file:
        return None
    path = Path(settings.file)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise Unsupported(f"'{path}' cannot be written")
    return TraceFile(path)


class InstalledFeatures(Protocol):
    """`server.features.installed.Installed`, which is loaded by name: as much of it as a server needs."""

    def bind(self, key: VersionKey, folder: Path, settings: ModelSettings, signature: Signature) -> Features | None:
        """See `BindFeatures`."""
        ...

    def readings(self) -> FeatureReading:
        """For a scrape."""
        ...

    def close(self) -> None:
        """Let go of the store and write what waits. Idempotent; no version may be in service any more."""
        ...


def open_features(settings: FeatureStoreSettings) -> InstalledFeatures | NoFeatures:
    """The features that the operator installed. Raises: Unsupported, with what is wrong, where they cannot be used."""
    if not settings.definitions:
        return NoFeatures()
    try:
        module = importlib.import_module("server.features.installed")
    except ImportError as error:
        raise Unsupported(f"definitions need packages that are not installed: {error}") from error
    installed: InstalledFeatures = module.open_installed(settings)
    return installed


def choose_plane(wanted: Literal["auto", "native", "python"]) -> tuple[PlaneKind, str]:
    """Which kind of data plane serves, and why. Raises: Unsupported where only one that is not there will do."""
    if wanted == "python":
        return "python", "it was asked for"
    try:
        importlib.import_module(_NATIVE_PLANE)
    except ImportError as error:
        if wanted == "native":
            raise Unsupported(
                f"the native one is not part of this installation ({error}); use --data-plane python, or auto"
            ) from error
        return "python", f"the native one is not part of this installation: {error}"
    return "native", "it was asked for" if wanted == "native" else "it is part of this installation"


class Plane(DataPlane, Submitting, Protocol):
    """All that a server asks of its data plane."""

    def wake(self) -> None:
        """Look at what was submitted without waking."""
        ...

    def observe_delivery(self, took_ns: int, /) -> None:
        """How long it took until the answers of a batch had left."""
        ...

    def snapshot(self, queue_id: int, /) -> QueueSnapshot | None:
        """The depth of a queue, for a scrape; None for one that is not there."""
        ...

    def stop(self) -> None:
        """Answer what waits with ShuttingDown, and end every `take`."""
        ...


def open_plane(
    kind: PlaneKind,
    clock: Clock,
    limit: InflightLimit,
    deliver: Callable[[Sequence[Answer], int | None], None],
    on_device: Callable[[str], None],
    slots: Callable[[str], int],
    *,
    density: bool,
) -> Plane:
    """The data plane that `choose_plane` chose; see `PythonPlane`."""
    if kind == "python":
        return PythonPlane(clock, limit, deliver, on_device, slots, density=density)
    made = importlib.import_module(_NATIVE_PLANE).NativePlane
    plane: Plane = made(clock, limit, deliver, on_device, slots, density=density, ending=_ending)
    return plane


def _ending(error: PodiumError) -> tuple[int, str, Trailing]:
    """How a call ends that fails, in numbers."""
    code, text, trailing = ending_for(error)
    return code.value[0], text, trailing


def open_door(settings: ServerSettings, plane: Any) -> Door:
    """The door that belongs to a data plane, on the running event loop; not bound yet.

    A native plane has what its door works on in `native`. Raises: OSError for certificates that cannot be used.
    """
    if plane.kind == "python":
        return GrpcioDoor(settings)
    door: Door = importlib.import_module("server.transport.native.open").open_native(settings, plane.native)
    return door
