"""One load, step by step: nothing is published that has not been verified, opened, warmed and proven.

Floor 4: a recipe over hands that are given to it (digests, backends, warm-up, golden examples). It knows no states and
publishes nothing. Whatever it opened is closed again when a step fails.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from server.backends.base import Backend, BackendFactory, DecoupledBackend, LoadTask
from server.backends.first_answer import FirstAnswer
from server.backends.instances import instances_of
from server.core.clock import Clock
from server.core.errors import DeviceLost, LoadFailed, PodiumError
from server.core.padding import with_pad_sizes
from server.core.placement import CPU, device_of
from server.core.settings import ModelSettings, buckets_for, placed
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.validation import Constraints, constraints_of
from server.core.versions import VersionKey
from server.features.interface import Features
from server.lifecycle.accounts import Account, Accounts
from server.lifecycle.found import FoundVersion, GoldenRef, Lease
from server.lifecycle.replica import Loaded, OnDevice

MODEL_FILES: Mapping[str, str] = {"model.onnx": "onnx", "program.pt2": "torch", "fake.json": "fake"}
"""Which file in a version's folder says which backend, where settings do not."""

TOKENIZER_FILE = "tokenizer.json"
"""Beside a model file it says that the version takes texts."""

BindFeatures = Callable[[VersionKey, Path, ModelSettings, Signature], Features | None]
"""The features of a version, by its folder, its settings and its model's own signature; None where it was trained on none.
Raises: LoadFailed where it was, and cannot have them."""

ReadBaseline = Callable[[Path], Any]
"""The baseline in a version's folder, for whoever monitors it; None where there is none. Raises: LoadFailed for a file that is
none."""

_NONE_LOST: Mapping[str, str] = {}

_log = logging.getLogger(__name__)


class GoldenExamples(Protocol):
    """Inputs and the outputs they must give. Shapes: as the backend takes and gives them."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """By name."""
        ...

    @property
    def outputs(self) -> Mapping[str, Array]:
        """By name; outputs that are absent are not compared."""
        ...


class Warm(Protocol):
    """`server.backends.warm.warm`."""

    def __call__(self, backend: Backend, buckets: Sequence[int], runs: int, clock: Clock, /) -> tuple[int, ...]:
        """Run every bucket, of every size class; the cost of each in ns, 0 where it could not be measured."""
        ...


class CompareGolden(Protocol):
    """`server.registry.gates.compare_golden`."""

    def __call__(
        self,
        expected: Mapping[str, Array],
        got: Mapping[str, Array],
        rtol: float,
        atol: float,
        specs: Sequence[TensorSpec],
        /,
    ) -> str | None:
        """None if every expected output is there and close enough, else what is wrong."""
        ...


@dataclass(slots=True)
class _Place:
    """One device of a load, and what the load has there. `named`: what steps add to say where they are."""

    device: str
    named: str
    settings: ModelSettings
    opened: list[Backend] = field(default_factory=list)
    account: Account | None = field(default=None)


@dataclass(slots=True)
class _Progress:
    """Where a load is, so that a failure can say so and give back what was opened. `device`: the one it deals with."""

    step: str = "lease"
    lease: Lease | None = field(default=None)
    places: list[_Place] = field(default_factory=list)
    device: str = ""


class Loader:
    """Brings one version into memory. Used by one thread at a time.

    `backends` has a factory per name of `ModelSettings.backend`. `lease` keeps a folder from being pruned before anything of
    it is read, for as long as the version is in memory; without it nothing does. `bind_features` finds a version's features;
    without it versions are loaded as bare models, whatever they were trained on: what proves their files needs no store.
    `accounts` reserves memory and keeps what was measured; without it neither is done. `read_baseline` reads what a version is
    monitored by; without it, and where its settings turn monitoring off, it has none.
    """

    def __init__(
        self,
        *,
        verify: Callable[[Any], None],
        backends: Mapping[str, BackendFactory],
        warm: Warm,
        load_golden: Callable[[Path], GoldenExamples],
        compare_golden: CompareGolden,
        read_labels: Callable[[Path, str], Sequence[str]],
        clock: Clock,
        lease: Callable[[Path], Lease] | None = None,
        bind_features: BindFeatures | None = None,
        accounts: Accounts | None = None,
        read_baseline: ReadBaseline | None = None,
    ) -> None:
        self._verify = verify
        self._backends = backends
        self._warm = warm
        self._load_golden = load_golden
        self._compare_golden = compare_golden
        self._read_labels = read_labels
        self._clock = clock
        self._lease = lease
        self._bind_features = bind_features
        self._accounts = accounts
        self._read_baseline = read_baseline
        self._abandoned: list[Backend] = []

    def load(self, found: FoundVersion, settings: ModelSettings, lost: Mapping[str, str] = _NONE_LOST) -> Loaded:
        """Lease, verify, reserve memory, open, bind features, compile constraints, read labels and the baseline, warm
        every batch bucket, compare golden examples, measure.

        Warm-up and golden examples are of the model itself, with its own inputs, on each of its devices.

        `lost`: devices that nothing can be loaded on in this process, and why. They are not touched.

        Raises: LoadFailed with the step that failed and why; nothing stays open or leased, except what is on a lost device:
        freeing it could hang or end the process, whose end frees it.
        """
        progress = _Progress()
        try:
            return self._load(found, settings, progress, lost)
        except Exception as error:
            device_lost = progress.device if _of_lost_device(error) else ""
            for place in progress.places:
                if place.device == device_lost:
                    self._abandoned += place.opened
                else:
                    _give_back(found, place)
            if progress.lease is not None:
                progress.lease.release()
            # what is not in the words of the domain is at least named by its type
            why = str(error) if isinstance(error, PodiumError) else f"{type(error).__name__}: {error}"
            raise LoadFailed(f"{progress.step}: {why}", device_lost) from error

    def _load(self, found: FoundVersion, settings: ModelSettings, progress: _Progress, lost: Mapping[str, str]) -> Loaded:
        if self._lease is not None:
            progress.lease = self._lease(found.folder)
        progress.step = "verify digests"
        self._verify(found)
        progress.step = "choose backend"
        name, open_backend = self._backend_for(found.folder, settings)
        progress.places = _places(name, settings)
        for place in progress.places:
            progress.device = place.device
            if place.device in lost:
                raise DeviceLost(f"{lost[place.device]}: only a new process can use it again")
        for place in progress.places:
            self._open(found, name, open_backend, place, progress)
        progress.step = "features"
        signature = progress.places[0].opened[0].signature
        bind = self._bind_features
        features = None if bind is None else bind(found.key, found.folder, settings, signature)
        progress.step = "validation"
        constraints = _constraints(settings, signature, features)
        progress.step = "labels"
        named = {spec.name: spec.labels for spec in settings.outputs if spec.labels is not None}
        labels = {output: self._read_labels(found.folder, file) for output, file in named.items()}
        progress.step = "baseline"
        read = self._read_baseline if settings.monitoring.enabled else None
        baseline = None if read is None else read(found.folder)
        buckets = buckets_for(signature.max_batch, settings.batching)
        first, *further = [self._ready(found, place, buckets, progress) for place in progress.places]
        return Loaded(
            first.backend,
            buckets,
            first.costs_ns,
            labels,
            progress.lease,
            features,
            first.reservation,
            constraints,
            tuple(further),
            baseline,
        )

    def _open(self, found: FoundVersion, name: str, open_backend: BackendFactory, place: _Place, progress: _Progress) -> None:
        """Every instance on one device."""
        progress.device = place.device
        progress.step = f"reserve memory{place.named}"
        if self._accounts is not None:
            place.account = self._accounts.open(found, place.settings, name)
        progress.step = f"open{place.named}"
        task = LoadTask(found.key, found.folder, place.settings)
        for _ in range(place.settings.instances):
            place.opened.append(open_backend(task))
        for member in place.opened:
            member.signature = with_pad_sizes(member.signature, place.settings.inputs)
            _as_one_answer(member, place.settings)  # what can never serve is not warmed first

    def _ready(self, found: FoundVersion, place: _Place, buckets: Sequence[int], progress: _Progress) -> OnDevice:
        """Every instance on one device, warm, proven and measured."""
        progress.device = place.device
        tried = [_as_one_answer(member, place.settings) for member in place.opened]
        progress.step = f"warm up{place.named}"
        for member in place.opened:
            getattr(member, "prepare", _nothing)(buckets)
        for member in tried:
            costs_ns = self._warm(member, buckets, place.settings.warmup.runs, self._clock)
        progress.step = f"golden examples{place.named}"
        golden = None if found.manifest is None else found.manifest.golden
        if golden is not None:
            for member in tried:
                self._prove(member, found.folder, golden)
        backend = place.opened[0] if len(place.opened) == 1 else instances_of(place.opened)
        progress.step = f"measure{place.named}"
        account = place.account
        if self._accounts is not None and account is not None:
            self._accounts.settle(account, backend, buckets, costs_ns[-len(buckets) :])  # of the largest size
        return OnDevice(backend, costs_ns, None if account is None else account.reservation)

    def _backend_for(self, folder: Path, settings: ModelSettings) -> tuple[str, BackendFactory]:
        name: str | None = settings.backend
        if name is None and (folder / TOKENIZER_FILE).is_file():
            name = "text"
        elif name is None:
            present = [file for file in MODEL_FILES if (folder / file).is_file()]
            if len(present) != 1:
                seen = " and ".join(present) if present else f"none of {', '.join(MODEL_FILES)}"
                raise LoadFailed(f"{folder.name} holds {seen}; set 'backend' in model.toml or keep exactly one")
            name = MODEL_FILES[present[0]]
        if name not in self._backends:
            raise LoadFailed(f"backend '{name}' is not part of this installation")
        return _executes(name, folder, settings), self._backends[name]

    def _prove(self, backend: Backend, folder: Path, golden: GoldenRef) -> None:
        examples = self._load_golden(folder / golden.file)
        got = run_golden(backend, examples.inputs)
        fault = self._compare_golden(examples.outputs, got, golden.rtol, golden.atol, backend.signature.outputs)
        if fault is not None:
            raise LoadFailed(fault)


def _constraints(settings: ModelSettings, model: Signature, features: Features | None) -> Constraints | None:
    """What requests must bring beside types and shapes. Raises: LoadFailed where that does not fit the version."""
    try:
        if features is None:
            return constraints_of(settings.validation, model, model)
        packed = {} if settings.features is None else {each.name: each.columns for each in settings.features.inputs}
        return constraints_of(settings.validation, features.signature, model, features.names, packed)
    except ValueError as unfit:
        raise LoadFailed(str(unfit)) from unfit


def _places(backend: str, settings: ModelSettings) -> list[_Place]:
    """Where a version goes. Raises: LoadFailed where it is to be on several devices of which there is one."""
    if not settings.devices:
        return [_Place(device_of(backend, settings), "", settings)]
    each = [placed(settings, number) for number in settings.devices]
    places = [_Place(device, f" on {device}", own) for own in each for device in [device_of(backend, own)]]
    if places[0].device == CPU:
        raise LoadFailed(
            "'devices' is set, but this model runs on the CPU: its backend's settings name no other kind of device"
        )
    return places


def _as_one_answer(backend: Backend, settings: ModelSettings) -> Backend:
    """What warm-up and golden examples run. Raises: LoadFailed for a backend that cannot be decoupled."""
    if not settings.decoupled:
        return backend
    if not callable(getattr(backend, "stream", None)):
        raise LoadFailed(f"'decoupled' is set, but a model of platform '{backend.platform}' gives each request one answer")
    return FirstAnswer(cast(DecoupledBackend, backend))


def _executes(name: str, folder: Path, settings: ModelSettings) -> str:
    """The backend that has a device: of texts, the one of the model file beside the tokenizer."""
    if name != "text":
        return name
    if settings.text.backend is not None:
        return settings.text.backend
    return next((backend for file, backend in MODEL_FILES.items() if (folder / file).is_file()), name)


def _nothing(buckets: Sequence[int]) -> None:
    """What most backends get ready with."""


def _give_back(found: FoundVersion, place: _Place) -> None:
    """Close what a load that failed has opened on a device, and return its memory."""

    def close() -> None:
        for backend in place.opened:
            _close(found, backend)

    account = place.account
    if account is None or account.reservation is None:
        close()
        return
    unreturned = account.reservation.release(close)
    if unreturned:
        _log.warning("%s: its failed load left %d bytes of %s in use", found.key, unreturned, account.device)


def _of_lost_device(error: BaseException | None) -> bool:
    """Whether a lost device is behind it: some say no more than at which step a load failed, and why in its cause."""
    while error is not None and not isinstance(error, DeviceLost):
        error = error.__cause__
    return error is not None


def _close(found: FoundVersion, backend: Backend) -> None:
    try:
        backend.close()
    except Exception:  # noqa: BLE001 - the failure that led here is the one to report
        _log.exception("%s: closing its backend failed", found.key)


def run_golden(backend: Backend, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The backend's outputs for golden inputs, in batches it accepts.

    Shapes: `[N, *shape]` for batching models. Models without a batch dimension take `[*shape]`, one example, or
    `[N, *shape]`, which run one by one.
    Raises: LoadFailed for examples that do not fit the signature, BackendFailed.
    """
    signature = backend.signature
    ranks = set()
    for name, array in inputs.items():
        spec = signature.input_names.get(name)
        if spec is None:
            raise LoadFailed(f"the golden input '{name}' is not an input of the model")
        ranks.add(array.ndim - len(spec.shape))
    if ranks == {0} and not signature.max_batch:
        return backend.run(inputs)
    counts = {len(array) for array in inputs.values() if array.ndim}
    if ranks != {1} or len(counts) != 1 or counts == {0}:
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in inputs.items())
        raise LoadFailed(f"golden inputs do not fit the model or each other: {shapes or 'there are none'}")
    count = counts.pop()
    if signature.max_batch:
        size = signature.max_batch
        runs = [
            backend.run({name: array[first : first + size] for name, array in inputs.items()})
            for first in range(0, count, size)
        ]
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    # the ellipsis keeps a scalar an array
    runs = [backend.run({name: array[index, ...] for name, array in inputs.items()}) for index in range(count)]
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}
