from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.backends import base
from server.backends.first_answer import FirstAnswer
from server.core.clock import Clock
from server.core.errors import BackendFailed, LoadFailed, RegistryError
from server.core.settings import ModelSettings, TensorSettings
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.features.interface import Features, Joined
from server.lifecycle.accounts import Accounts
from server.lifecycle.ledger import Holding
from server.lifecycle.loader import BindFeatures, Loader, ReadBaseline, run_golden
from server.lifecycle.replica import Loaded
from tests.lifecycle import test_accounts as accounts
from tests.lifecycle.doubles import SETTINGS, Backend, Backends, Golden, HandClock, Leases, Manifest, Version

KEY = VersionKey("m", 1)


@dataclass
class Examples:
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def compare(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    rtol: float,
    atol: float,
    specs: Sequence[TensorSpec],
) -> str | None:
    equal = all(np.allclose(expected[name], got[name], rtol, atol) for name in expected)
    return None if equal else f"output '{specs[0].name}' differs"


class Scene:
    def __init__(self) -> None:
        self.backends = Backends()
        self.golden = Examples({"x": np.ones((3, 2), np.float32)}, {"y": np.full((3, 2), 2, np.float32)})
        self.golden_paths: list[Path] = []
        self.warmed: list[tuple[tuple[int, ...], int]] = []
        self.corrupt = ""
        self.leases = Leases()
        self.warm_fault: Exception | None = None
        self.tried: base.Backend | None = None
        self.known: dict[str, Backends] = {"fake": self.backends}
        self.bind_features: BindFeatures | None = None
        self.accounts: Accounts | None = None
        self.read_baseline: ReadBaseline | None = None

    def verify(self, found: Any) -> None:
        # nothing of a version is read before it is leased
        assert self.leases.out[-1] == found.folder
        if self.corrupt:
            raise RegistryError(self.corrupt)

    def warm(self, backend: base.Backend, buckets: Sequence[int], runs: int, clock: Clock) -> tuple[int, ...]:
        self.tried = backend
        self.warmed.append((tuple(buckets), runs))
        if self.warm_fault is not None:
            raise self.warm_fault
        return tuple(bucket * 10 for bucket in buckets)

    def load_golden(self, path: Path) -> Examples:
        self.golden_paths.append(path)
        return self.golden

    def read_labels(self, folder: Path, file: str) -> tuple[str, ...]:
        if file == "lost.txt":
            raise RegistryError(f"labels '{file}' are neither in the version's folder nor in the model's")
        return (folder.name, file)

    def load(self, found: Version, settings: ModelSettings = SETTINGS, **lost: str) -> Loaded:
        loader = Loader(
            verify=self.verify,
            backends=self.known,
            warm=self.warm,
            load_golden=self.load_golden,
            compare_golden=compare,
            read_labels=self.read_labels,
            clock=HandClock(),
            lease=self.leases,
            bind_features=self.bind_features,
            accounts=self.accounts,
            read_baseline=self.read_baseline,
        )
        return loader.load(found, settings, {device.replace("_", ":"): why for device, why in lost.items()})


def test_a_load_warms_every_bucket_and_proves_the_examples() -> None:
    scene = Scene()
    found = Version(KEY, manifest=Manifest(Golden("g.npz")), folder=Path("somewhere"))
    loaded = scene.load(found)
    assert loaded.buckets == (1, 2, 4)
    assert loaded.costs_ns == (10, 20, 40)
    assert loaded.backend is scene.backends.opened[0]
    assert scene.warmed == [((1, 2, 4), 3)]
    assert scene.golden_paths == [Path("somewhere/g.npz")]
    assert scene.backends.opened[0].ran == [(3, 2)]
    task = scene.backends.tasks[0]
    assert (task.key, task.folder, task.settings) == (KEY, Path("somewhere"), SETTINGS)


def test_a_version_is_leased_for_as_long_as_it_is_in_memory() -> None:
    scene = Scene()
    loaded = scene.load(Version(KEY, folder=Path("somewhere")))
    assert scene.leases.out == [Path("somewhere")]
    assert loaded.lease is not None
    loaded.lease.release()
    assert scene.leases.out == []


def test_a_version_that_cannot_be_leased_is_not_read() -> None:
    scene = Scene()
    scene.leases.fault = "version 1 was removed"
    with pytest.raises(LoadFailed, match=r"^lease: version 1 was removed$"):
        scene.load(Version(KEY))
    assert scene.backends.tasks == []


def test_without_anybody_who_prunes_nothing_is_leased() -> None:
    scene = Scene()
    loader = Loader(
        verify=lambda found: None,
        backends=scene.known,
        warm=scene.warm,
        load_golden=scene.load_golden,
        compare_golden=compare,
        read_labels=scene.read_labels,
        clock=HandClock(),
    )
    assert loader.load(Version(KEY), SETTINGS).lease is None


@pytest.mark.parametrize("manifest", [None, Manifest(None)])
def test_examples_are_optional(manifest: Manifest | None) -> None:
    scene = Scene()
    assert scene.load(Version(KEY, manifest=manifest)).backend.device == "cpu"
    assert scene.golden_paths == []


def labelled(file: str) -> ModelSettings:
    return ModelSettings.model_validate(SETTINGS.model_dump() | {"outputs": [{"name": "y", "labels": file}, {"name": "z"}]})


def test_the_baseline_is_read_with_the_version() -> None:
    scene, found = Scene(), Version(KEY, folder=Path("somewhere"))
    assert scene.load(found).baseline is None
    scene.read_baseline = lambda folder: ("baseline of", folder)
    loaded = scene.load(found)
    assert loaded.baseline == ("baseline of", Path("somewhere"))
    unwatched = ModelSettings.model_validate(SETTINGS.model_dump() | {"monitoring": {"enabled": False}})
    assert scene.load(found, unwatched).baseline is None


def test_a_malformed_baseline_fails_the_load_and_closes_what_was_opened() -> None:
    scene = Scene()

    def read(folder: Path) -> Any:
        raise LoadFailed("baseline.json: rows: no integer")

    scene.read_baseline = read
    with pytest.raises(LoadFailed, match=r"^baseline: baseline\.json: rows: no integer$"):
        scene.load(Version(KEY))
    assert [backend.closed for backend in scene.backends.opened] == [1]


def test_labels_are_read_with_the_version() -> None:
    scene = Scene()
    found = Version(KEY, folder=Path("somewhere"))
    assert scene.load(found, labelled("names.txt")).labels == {"y": ("somewhere", "names.txt")}
    assert scene.load(found).labels == {}
    with pytest.raises(LoadFailed, match=r"^labels: labels 'lost.txt' are neither in the version's folder nor in the model's$"):
        scene.load(found, labelled("lost.txt"))
    assert scene.backends.opened[-1].closed == 1


def constrained(**stated: Any) -> ModelSettings:
    return ModelSettings.model_validate(SETTINGS.model_dump() | {"validation": {"inputs": [stated]}})


def test_constraints_are_compiled_with_the_version() -> None:
    scene = Scene()
    assert scene.load(Version(KEY)).constraints is None
    constraints = scene.load(Version(KEY), constrained(name="x", column=1, at_least=0)).constraints
    assert constraints is not None
    assert [check.stream for check in constraints.checks] == ["x[1]"]
    with pytest.raises(LoadFailed, match=r"^validation: 'z' is neither an input nor a feature; inputs are x$"):
        scene.load(Version(KEY), constrained(name="z", at_least=0))
    assert scene.backends.opened[-1].closed == 1


def test_every_failure_names_its_step_and_closes_what_was_opened() -> None:
    found = Version(KEY, manifest=Manifest(Golden()))
    scene = Scene()
    scene.corrupt = "model.onnx: digest differs"
    with pytest.raises(LoadFailed, match=r"^verify digests: model\.onnx: digest differs$"):
        scene.load(found)
    assert scene.backends.tasks == []

    scene = Scene()
    scene.known = {}
    with pytest.raises(LoadFailed, match=r"^choose backend: backend 'fake' is not part of this installation$"):
        scene.load(found)

    scene = Scene()
    scene.backends.faults[KEY] = "model.onnx: not a model"
    with pytest.raises(LoadFailed, match=r"^open: model\.onnx: not a model$"):
        scene.load(found)

    scene = Scene()
    scene.warm_fault = MemoryError("out of memory")
    with pytest.raises(LoadFailed, match=r"^warm up: MemoryError: out of memory$"):
        scene.load(found)
    assert scene.backends.opened[0].closed == 1

    scene = Scene()
    scene.golden.outputs["y"] += 1
    with pytest.raises(LoadFailed, match=r"^golden examples: output 'y' differs$"):
        scene.load(found)
    assert scene.backends.opened[0].closed == 1


class Found:
    """Features that are never joined: a load only finds them."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.names: tuple[str, ...] = ("f",)

    def check(self, given: frozenset[str]) -> None:
        raise AssertionError

    def join(self, inputs: Mapping[str, Array], rows: int, budget_s: float) -> Joined:
        raise AssertionError


def test_features_are_bound_to_the_models_own_signature_and_warm_up_stays_the_models() -> None:
    scene, asked = Scene(), []

    def bind(key: VersionKey, folder: Path, settings: ModelSettings, signature: Signature) -> Features | None:
        # opened, and nothing of it has run
        assert scene.warmed == []
        asked.append((key, folder, settings, signature))
        return Found(replace(signature, inputs=()))

    scene.bind_features = bind
    loaded = scene.load(Version(KEY, manifest=Manifest(Golden()), folder=Path("somewhere")))
    signature = scene.backends.opened[0].signature
    assert asked == [(KEY, Path("somewhere"), SETTINGS, signature)]
    assert loaded.features is not None
    assert loaded.features.signature.inputs == ()
    assert loaded.backend.signature == signature
    assert scene.tried is loaded.backend
    assert scene.backends.opened[0].ran == [(3, 2)]


def test_a_version_without_features_has_none() -> None:
    scene = Scene()
    scene.bind_features = lambda key, folder, settings, signature: None
    assert scene.load(Version(KEY)).features is None


def test_features_that_do_not_fit_fail_the_load() -> None:
    scene = Scene()

    def bind(*given: object) -> None:
        raise LoadFailed("the views differ")

    scene.bind_features = bind
    with pytest.raises(LoadFailed, match=r"^features: the views differ$"):
        scene.load(Version(KEY))
    assert (scene.backends.opened[0].closed, scene.leases.out, scene.warmed) == (1, [], [])


@pytest.mark.parametrize("step", ["verify", "choose", "open", "warm", "golden"])
def test_a_failed_load_leaves_no_lease(step: str) -> None:
    scene = Scene()
    if step == "verify":
        scene.corrupt = "digest differs"
    elif step == "choose":
        scene.known = {}
    elif step == "open":
        scene.backends.faults[KEY] = "not a model"
    elif step == "warm":
        scene.warm_fault = MemoryError("out of memory")
    else:
        scene.golden.outputs["y"] += 1
    with pytest.raises(LoadFailed):
        scene.load(Version(KEY, manifest=Manifest(Golden())))
    assert (len(scene.leases.taken), scene.leases.out) == (1, [])


def test_a_backend_that_cannot_even_be_closed_does_not_hide_why_the_load_failed(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    def fail_and_jam(backend: base.Backend, buckets: Sequence[int], runs: int, clock: Clock) -> tuple[int, ...]:
        scene.backends.opened[0].close_fault = RuntimeError("stuck")
        raise BackendFailed("no kernel")

    scene.warm = fail_and_jam  # type: ignore[method-assign] # this scene's warm-up alone
    with pytest.raises(LoadFailed, match=r"^warm up: no kernel$"):
        scene.load(Version(KEY))
    assert "stuck" in caplog.text
    assert scene.leases.out == []


def test_the_file_names_the_backend_where_settings_do_not(tmp_path: Path) -> None:
    scene = Scene()
    bare = ModelSettings()
    found = replace(Version(KEY), folder=tmp_path)
    with pytest.raises(LoadFailed, match=r"holds none of model\.onnx, program\.pt2, fake\.json; set 'backend'"):
        scene.load(found, bare)
    (tmp_path / "fake.json").touch()
    assert scene.load(found, bare).buckets == (1, 2, 4)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(LoadFailed, match=r"holds model\.onnx and fake\.json; set 'backend'"):
        scene.load(found, bare)
    assert scene.load(found, SETTINGS).buckets == (1, 2, 4)


def test_a_tokenizer_beside_a_model_file_takes_texts_to_the_device_of_that_model(tmp_path: Path) -> None:
    scene = Scene()
    scene.known = {"text": scene.backends}
    found = replace(Version(KEY), folder=tmp_path)
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "program.pt2").touch()
    assert scene.load(found, ModelSettings()).buckets == (1, 2, 4)
    placed = {"torch": {"device": "cuda", "device_id": 3}, "onnx": {"providers": ["cuda"], "device_id": 1}}
    for chosen, device in ((None, "cuda_3"), ("torch", "cuda_3"), ("onnx", "cuda_1")):
        settings = ModelSettings.model_validate(placed | {"text": {"backend": chosen}})
        with pytest.raises(LoadFailed, match="it is broken"):
            scene.load(found, settings, **{device: "it is broken"})
        assert scene.load(found, settings, cuda_7="it is broken").buckets == (1, 2, 4)


def test_examples_run_in_batches_the_model_accepts() -> None:
    backend = Backend(KEY, max_batch=4)
    inputs = np.arange(20, dtype=np.float32).reshape(10, 2)
    got = run_golden(backend, {"x": inputs})
    assert np.array_equal(got["y"], inputs * 2)
    assert backend.ran == [(4, 2), (4, 2), (2, 2)]


def test_examples_of_a_model_without_batches() -> None:
    backend = Backend(KEY, max_batch=0)
    inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(run_golden(backend, {"x": inputs})["y"], inputs * 2)
    assert backend.ran == [(2,), (2,), (2,)]
    assert np.array_equal(run_golden(backend, {"x": inputs[0]})["y"], inputs[0] * 2)


class OnlyArrays(Backend):
    """Refuses numpy's scalars, as ONNX Runtime does."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert all(isinstance(array, np.ndarray) for array in inputs.values())
        return super().run(inputs)


def test_golden_scalars_stay_arrays() -> None:
    inputs = np.arange(3, dtype=np.float32)
    assert np.array_equal(run_golden(OnlyArrays(KEY, max_batch=0, shape=()), {"x": inputs})["y"], inputs * 2)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"z": (3, 2)}, "'z' is not an input"),
        ({}, "there are none"),
        ({"x": (2,)}, r"do not fit the model or each other: 'x' \[2\]"),
        ({"x": (0, 2)}, "do not fit"),
        ({"x": (1, 1, 2)}, "do not fit"),
    ],
)
def test_examples_that_do_not_fit(inputs: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(LoadFailed, match=text):
        run_golden(Backend(KEY), {name: np.zeros(shape, np.float32) for name, shape in inputs.items()})


def test_a_backend_that_fails_on_an_example_fails_the_load() -> None:
    scene = Scene()
    scene.golden.inputs = {"x": np.ones((1, 2), np.float32)}

    def poison(task: base.LoadTask) -> None:
        scene.golden.inputs = {"nobody": np.ones((1, 2), np.float32)}

    scene.backends.on_open = poison
    with pytest.raises(LoadFailed, match=r"^golden examples: the golden input 'nobody'"):
        scene.load(Version(KEY, manifest=Manifest(Golden())))
    backend = Backend(KEY)
    backend.fault = BackendFailed("no kernel")
    with pytest.raises(BackendFailed, match="no kernel"):
        run_golden(backend, {"x": np.ones((1, 2), np.float32)})


class Decoupled(Backend):
    """Answers twice, the second time otherwise than its examples say."""

    def stream(self, inputs: Mapping[str, Array]) -> Generator[dict[str, Array], None, None]:
        yield self.run(inputs)
        yield {}


def test_a_decoupled_version_is_warmed_and_proven_by_its_first_answer() -> None:
    scene = Scene()
    opened: list[Decoupled] = []

    def open_backend(task: base.LoadTask) -> base.Backend:
        opened.append(Decoupled(task.key))
        return opened[0]

    scene.known = {"fake": open_backend}  # type: ignore[dict-item]
    loaded = scene.load(Version(KEY, manifest=Manifest(Golden())), SETTINGS.model_copy(update={"decoupled": True}))
    assert isinstance(scene.tried, FirstAnswer)
    assert loaded.backend is opened[0]
    assert opened[0].ran == [(3, 2)]


def test_a_backend_that_gives_one_answer_cannot_be_decoupled() -> None:
    scene = Scene()
    with pytest.raises(
        LoadFailed, match="open: 'decoupled' is set, but a model of platform 'fake' gives each request one answer"
    ):
        scene.load(Version(KEY), SETTINGS.model_copy(update={"decoupled": True}))
    assert scene.backends.opened[0].closed
    assert scene.warmed == []


GPU = ModelSettings.model_validate({"backend": "onnx", "max_batch": 2, "onnx": {"providers": ["cuda"]}})
MIB = 2**20


class OnDevice:
    """A scene whose versions go to a GPU of 1000 MiB and take `took` there when they are opened."""

    def __init__(self, took: int) -> None:
        self.scene, self.books = Scene(), accounts.Scene()
        self.scene.accounts = self.books.accounts
        self.scene.known = {"onnx": self.scene.backends}
        self.reserved_at_open: list[tuple[Holding, ...]] = []
        self.took = took
        self.scene.backends.on_open = self.open

    def open(self, task: base.LoadTask) -> None:
        self.reserved_at_open.append(self.books.ledger.reading.holdings)
        self.books.used += self.took

    def load(self, settings: ModelSettings = GPU) -> Loaded:
        return self.scene.load(Version(KEY), settings)


def test_memory_is_reserved_before_a_version_is_opened_and_measured_once_it_is_proven() -> None:
    device = OnDevice(30 * MIB)
    loaded = device.load()
    (at_open,) = device.reserved_at_open
    assert [(each.reserved_bytes > 0, each.measured_bytes) for each in at_open] == [(True, 0)]
    assert loaded.reservation is not None
    assert loaded.reservation.measured_bytes == 30 * MIB
    kept = device.books.documents["kind of cuda:0", "onnx"]
    assert (kept.memory_bytes, kept.costs_ns) == (30 * MIB, {1: 10, 2: 20, 4: 40})


def test_what_does_not_fit_is_never_opened() -> None:
    device = OnDevice(0)
    device.books.used = 990 * MIB
    with pytest.raises(LoadFailed, match=r"^reserve memory: cuda:0 has no room for it"):
        device.load()
    assert device.scene.backends.tasks == []
    assert device.scene.leases.out == []


def test_all_instances_are_one_reservation() -> None:
    device = OnDevice(30 * MIB)
    loaded = device.load(GPU.model_copy(update={"instances": 3}))
    assert loaded.reservation is not None
    assert loaded.reservation.measured_bytes == 90 * MIB


@pytest.mark.parametrize("left", [0, 30 * MIB])
def test_a_load_that_fails_returns_its_memory(left: int, caplog: pytest.LogCaptureFixture) -> None:
    device = OnDevice(left)
    device.scene.warm_fault = BackendFailed("no")
    with pytest.raises(LoadFailed, match=r"^warm up: no"):
        device.load()
    # the double gives nothing back when it is closed
    assert device.scene.backends.opened[0].closed
    assert (f"its failed load left {30 * MIB} bytes of cuda:0 in use" in caplog.text) == bool(left)
    assert device.books.ledger.reading.holdings == ()
    assert device.books.ledger.reading.budgets[0].unreturned_bytes == left
    assert device.books.documents == {}


def test_a_version_that_took_more_than_there_was_is_closed_again() -> None:
    device = OnDevice(1001 * MIB)
    with pytest.raises(LoadFailed, match=r"^measure: it took"):
        device.load()
    assert device.scene.backends.opened[0].closed
    assert device.books.ledger.reading.holdings == ()


def padded_scene(output: tuple[int, ...]) -> Scene:
    """A model whose rows have any length, and `output` for an answer."""
    scene = Scene()

    def open_backend(task: base.LoadTask) -> Backend:
        backend = scene.backends(task)
        backend.signature = Signature("m", (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", output),), 4)
        return backend

    scene.known = {"fake": open_backend}  # type: ignore[dict-item]  # as good a factory as the double
    return scene


PADDED = SETTINGS.model_copy(update={"inputs": (TensorSettings(name="x", pad_to=(8, 16), pad_value=1),)})


def test_every_instance_has_the_sizes_that_settings_state() -> None:
    scene = padded_scene((2,))
    loaded = scene.load(Version(KEY), PADDED.model_copy(update={"instances": 2}))
    expected = (TensorSpec("x", "FP32", (-1,), pad_to=(8, 16), pad_value=1),)
    assert [backend.signature.inputs for backend in scene.backends.opened] == [expected] * 2
    assert loaded.backend.signature.inputs == expected
    assert scene.tried is not None
    assert scene.tried.signature.pad_sizes == (8, 16)


def test_sizes_that_do_not_fit_fail_the_load() -> None:
    scene = padded_scene((-1,))
    with pytest.raises(LoadFailed, match=r"^open: output 'y' has the shape \[-1\]: with pad_to every dimension"):
        scene.load(Version(KEY), PADDED)
    assert [backend.closed for backend in scene.backends.opened] == [1]
