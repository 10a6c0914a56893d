"""Golden examples: any tensor of the protocol survives the file, and nothing is ever unpickled."""

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.core.errors import RegistryError
from server.core.tensors import NUMPY_DTYPES, Array
from server.registry.golden import load_golden, save_golden

NUMBERS = st.sampled_from([dtype for dtype in NUMPY_DTYPES.values() if dtype.kind != "O"])
TENSORS = hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, min_side=0)) | hnp.arrays(
    object, hnp.array_shapes(min_dims=0, min_side=0, max_side=3), elements=st.binary(max_size=5)
)
NAMES = st.text(min_size=1, max_size=8) | st.sampled_from(["file", "x", "x.npy", "inputs_0", "../x", "index", "a/b"])
SETS = st.dictionaries(NAMES, TENSORS, min_size=1, max_size=4)


@given(SETS, SETS)
def test_what_is_saved_is_loaded(inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "golden.npz"
        save_golden(path, inputs, outputs)
        loaded = load_golden(path)
    for given_side, loaded_side in ((inputs, loaded.inputs), (outputs, loaded.outputs)):
        assert list(loaded_side) == list(given_side)
        for name, array in given_side.items():
            assert loaded_side[name].dtype == array.dtype
            assert loaded_side[name].shape == array.shape
            assert loaded_side[name].tolist() == array.tolist() or np.array_equal(loaded_side[name], array, equal_nan=True)


def test_the_same_examples_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_golden(tmp_path / name, {"x": np.arange(3)}, {"y": np.ones(2)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_arrays_that_no_tensor_can_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="golden inputs: 'x' has dtype complex128"):
        save_golden(tmp_path / "g.npz", {"x": np.ones(1, complex)}, {"y": np.ones(1)})
    with pytest.raises(RegistryError, match="golden outputs: 'y' has dtype <U1"):
        save_golden(tmp_path / "g.npz", {}, {"y": np.array(["a"])})
    with pytest.raises(RegistryError, match="at least one expected output"):
        save_golden(tmp_path / "g.npz", {"x": np.ones(1)}, {})
    assert not list(tmp_path.iterdir())


class Trap:
    """Leaves a trace when it is unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[object, ...]:
        return (setattr, (Trap, "sprung", True))


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    bare, inside = tmp_path / "bare.npz", tmp_path / "inside.npz"
    bare.write_bytes(pickle.dumps(Trap()))
    trapped = np.empty(1, object)
    trapped[0] = Trap()
    np.savez(inside, index=trapped)
    for path in (bare, inside):
        with pytest.raises(RegistryError, match="not golden examples"):
            load_golden(path)
    assert not Trap.sprung


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with pytest.raises(RegistryError, match=r"golden\.npz: not golden examples"):
        load_golden(path)
    save_golden(path, {"x": np.arange(100)}, {"y": np.array([b"a" * 50], object)})
    whole = path.read_bytes()
    broken = {"empty": b"", "text": b"hello", "half": whole[: len(whole) // 2], "flipped": whole.replace(b"a" * 50, b"b" * 50)}
    for name, data in broken.items():
        path.write_bytes(data)
        with pytest.raises(RegistryError, match="not golden examples"):
            load_golden(path)
        assert path.exists(), name
    np.savez(path, y=np.ones(1))
    with pytest.raises(RegistryError, match="not golden examples"):
        load_golden(path)
    np.save(tmp_path / "plain.npy", np.ones(1))
    with pytest.raises(RegistryError, match="not golden examples"):
        load_golden(tmp_path / "plain.npy")
