from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.backends import base
from server.core.clock import Clock
from server.core.errors import BackendFailed, LoadFailed, RegistryError
from server.core.settings import ModelSettings
from server.core.tensors import Array, TensorSpec
from server.core.versions import VersionKey
from server.lifecycle.loader import Loader, run_golden
from server.lifecycle.replica import Loaded
from tests.lifecycle.doubles import SETTINGS, Backend, Backends, Golden, HandClock, Manifest, Version

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
        self.warm_fault: Exception | None = None
        self.known: dict[str, Backends] = {"fake": self.backends}

    def verify(self, found: Any) -> None:
        if self.corrupt:
            raise RegistryError(self.corrupt)

    def warm(self, backend: base.Backend, buckets: Sequence[int], runs: int, clock: Clock) -> tuple[int, ...]:
        self.warmed.append((tuple(buckets), runs))
        if self.warm_fault is not None:
            raise self.warm_fault
        return tuple(bucket * 10 for bucket in buckets)

    def load_golden(self, path: Path) -> Examples:
        self.golden_paths.append(path)
        return self.golden

    def load(self, found: Version, settings: ModelSettings = SETTINGS) -> Loaded:
        loader = Loader(
            verify=self.verify,
            backends=self.known,
            warm=self.warm,
            load_golden=self.load_golden,
            compare_golden=compare,
            clock=HandClock(),
        )
        return loader.load(found, settings)


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


@pytest.mark.parametrize("manifest", [None, Manifest(None)])
def test_examples_are_optional(manifest: Manifest | None) -> None:
    scene = Scene()
    assert scene.load(Version(KEY, manifest=manifest)).backend.device == "cpu"
    assert scene.golden_paths == []


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


def test_a_backend_that_cannot_even_be_closed_does_not_hide_why_the_load_failed(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    def fail_and_jam(backend: base.Backend, buckets: Sequence[int], runs: int, clock: Clock) -> tuple[int, ...]:
        scene.backends.opened[0].close_fault = RuntimeError("stuck")
        raise BackendFailed("no kernel")

    scene.warm = fail_and_jam  # type: ignore[method-assign] # this scene's warm-up alone
    with pytest.raises(LoadFailed, match=r"^warm up: no kernel$"):
        scene.load(Version(KEY))
    assert "stuck" in caplog.text


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
