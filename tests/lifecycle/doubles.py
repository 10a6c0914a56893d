"""Small in-memory doubles of what the lifecycle works with: registry, backends, data plane, telemetry, clock."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from server.backends.base import LoadTask
from server.core.clock import NS_PER_S
from server.core.errors import LoadFailed, RegistryError
from server.core.placement import device_of
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import Batch, QueueRules, QueueSnapshot
from server.lifecycle.replica import Replica

SETTINGS = ModelSettings(backend="fake", max_batch=4)


@dataclass(frozen=True)
class Golden:
    file: str = "golden.npz"
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True)
class Manifest:
    golden: Golden | None = None


@dataclass(frozen=True)
class Version:
    key: VersionKey
    stamp: str = "a"
    problem: str | None = None
    settled: bool = True
    manifest: Manifest | None = None
    folder: Path = Path("nowhere")
    size_bytes: int = 100


@dataclass(frozen=True)
class Model:
    name: str
    settings: ModelSettings | None = SETTINGS
    versions: Mapping[int, Version] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None


def model(name: str = "m", *versions: int | Version, settings: ModelSettings | None = SETTINGS, **aliases: int) -> Model:
    """A model with these versions; numbers are versions without fault."""
    found = [Version(VersionKey(name, each)) if isinstance(each, int) else each for each in versions]
    return Model(name, settings, {each.key.version: each for each in found}, aliases)


def version(number: int, stamp: str = "a", problem: str | None = None, settled: bool = True, name: str = "m") -> Version:
    return Version(VersionKey(name, number), stamp, problem, settled)


class Given:
    """A model whose files came with its Load, without any files."""

    def __init__(self, found: Model) -> None:
        self.found = found
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Repository:
    """A `Source` whose contents a test changes between scans."""

    def __init__(self, *models: Model) -> None:
        self.models = {each.name: each for each in models}
        self.corrupt: set[VersionKey] = set()
        self.fault: Exception | None = None
        self.scans = 0

    def put(self, *models: Model) -> None:
        self.models = self.models | {each.name: each for each in models}

    def remove(self, name: str) -> None:
        self.models = {other: each for other, each in self.models.items() if other != name}

    def scan(self) -> dict[str, Model]:
        self.scans += 1
        if self.fault is not None:
            raise self.fault
        return dict(self.models)

    def verify(self, found: Any, /) -> None:
        if found.key in self.corrupt:
            raise RegistryError(f"{found.key}: digest differs")


class Backend:
    """Doubles its input. `close_fault` is raised by `close`."""

    def __init__(self, key: VersionKey, max_batch: int = 4, shape: tuple[int, ...] = (2,)) -> None:
        self.signature = Signature(key.model, (TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", shape),), max_batch)
        self.platform = "fake"
        self.device = "cpu"
        self.key = key
        self.closed = 0
        self.ran: list[tuple[int, ...]] = []
        self.fault: Exception | None = None
        self.close_fault: Exception | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.ran.append(inputs["x"].shape)
        if self.fault is not None:
            raise self.fault
        return {"y": np.asarray(inputs["x"], np.float32) * np.float32(2)}

    def memory_bytes(self) -> int:
        return 1000

    def close(self) -> None:
        self.closed += 1
        if self.close_fault is not None:
            raise self.close_fault


class Leases:
    """Leases of version folders; `out` are those that were not given back."""

    def __init__(self) -> None:
        self.taken: list[Path] = []
        self.out: list[Path] = []
        self.fault = ""

    def __call__(self, folder: Path) -> "Leased":
        if self.fault:
            raise RegistryError(self.fault)
        self.taken.append(folder)
        self.out.append(folder)
        return Leased(self, folder)


@dataclass
class Leased:
    leases: Leases
    folder: Path

    def release(self) -> None:
        self.leases.out.remove(self.folder)


class Backends:
    """A `BackendFactory` that keeps what it opened; `faults` says which versions cannot be opened and why."""

    def __init__(self) -> None:
        self.opened: list[Backend] = []
        self.tasks: list[LoadTask] = []
        self.faults: dict[VersionKey, str] = {}
        self.on_open: Callable[[LoadTask], None] = lambda task: None

    def __call__(self, task: LoadTask) -> Backend:
        self.tasks.append(task)
        self.on_open(task)
        if task.key in self.faults:
            raise LoadFailed(self.faults[task.key])
        backend = Backend(task.key)
        backend.device = device_of("fake", task.settings)
        self.opened.append(backend)
        return backend

    def alive(self) -> list[VersionKey]:
        return sorted(backend.key for backend in self.opened if not backend.closed)


class Plane:
    """A `DataPlane` whose requests are a number per queue, and which writes down what it is told."""

    kind = "double"

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.rules: dict[int, QueueRules] = {}
        self.closed: set[int] = set()
        self.moved: list[int] = []
        self.executing: dict[int, int] = {}
        self.story: list[tuple[str, VersionKey]] = []
        self.on_open: Callable[[QueueRules], None] = lambda rules: None

    def open(self, rules: QueueRules) -> None:
        self.on_open(rules)
        if rules.queue_id in self.rules:
            raise ValueError("open already")
        self.rules[rules.queue_id] = rules
        self.story.append(("open", rules.key))

    def close(self, queue_id: int, *, move: bool = False) -> None:
        if move:
            self.moved.append(queue_id)
        if queue_id in self.rules and queue_id not in self.closed:
            self.closed.add(queue_id)
            self.story.append(("close", self.rules[queue_id].key))

    def fail(self, queue_id: int, reason: str) -> None:
        if queue_id in self.rules:
            self.closed.add(queue_id)
            self.story.append((f"fail: {reason}", self.rules[queue_id].key))

    def wait_idle(self, queue_id: int, timeout_s: float) -> bool:
        assert queue_id in self.closed, "what is open is never idle"
        with self.changed:
            if not self.changed.wait_for(lambda: not self.executing.get(queue_id), timeout_s):
                return False
        rules = self.rules.pop(queue_id, None)
        if rules is not None:
            self.story.append(("idle", rules.key))
        return True

    def begin(self, queue_id: int) -> None:
        self.executing[queue_id] = self.executing.get(queue_id, 0) + 1

    def end(self, queue_id: int) -> None:
        with self.changed:
            self.executing[queue_id] -= 1
            self.changed.notify_all()

    def take(self, device: str) -> Batch | None:
        return None

    def finish(self, batch: Batch, parts: Any, *, ran_rows: int, ran_ns: int) -> Any:
        raise AssertionError("the lifecycle finishes no batch")

    def enter_device(self, batch: Batch) -> None:
        raise AssertionError("the lifecycle executes nothing")

    leave_device = enter_device

    def respond(self, batch: Batch, outputs: Any) -> bool:
        raise AssertionError("the lifecycle answers nobody")

    def snapshot(self, queue_id: int) -> QueueSnapshot | None:
        return None

    def stop(self) -> None: ...


class Recorder:
    def __init__(self) -> None:
        self.memory_bytes = 0

    def hold_memory(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes


class Metrics:
    """Like the telemetry's: `mark_ready` refuses versions that were not added."""

    def __init__(self) -> None:
        self.recorders: dict[VersionKey, Recorder] = {}
        self.ready: set[VersionKey] = set()
        self.loads: list[tuple[VersionKey, float, bool]] = []

    def add(self, key: VersionKey) -> Recorder:
        return self.recorders.setdefault(key, Recorder())

    def remove(self, key: VersionKey) -> None:
        self.recorders.pop(key, None)
        self.ready.discard(key)

    def mark_ready(self, key: VersionKey, ready: bool) -> None:
        if key not in self.recorders:
            raise KeyError(key)
        (self.ready.add if ready else self.ready.discard)(key)

    def record_load(self, key: VersionKey, seconds: float, ok: bool) -> None:
        self.loads.append((key, seconds, ok))


class HandClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += int(seconds * NS_PER_S)


def replica(key: VersionKey, queue_id: int = 1, settings: ModelSettings = SETTINGS) -> Replica:
    backend = Backend(key)
    return Replica(queue_id, key, backend, backend.signature, settings, (1, 2, 4), (5, 6, 7), "cpu", Recorder(), "a")


def with_policy(**policy: Any) -> ModelSettings:
    return ModelSettings.model_validate(SETTINGS.model_dump() | {"versions": policy})


def changed(found: Version, **fields: Any) -> Version:
    return replace(found, **fields)
