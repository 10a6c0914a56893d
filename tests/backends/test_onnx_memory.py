import ctypes
import gc
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.onnx_cudart import CudaMemory, find_library
from server.backends.onnx_memory import DeviceMemory, HostMemory, HostPool
from server.core.tensors import Array
from tests.backends.cudart import FakeCudart

FLOAT = np.dtype(np.float32)


def test_what_is_lent_comes_back_with_its_last_view() -> None:
    pool = HostPool(HostMemory())
    first = pool.array((4, 3), FLOAT)
    address = first.ctypes.data
    assert (first.shape, first.dtype, first.flags.writeable) == ((4, 3), FLOAT, True)
    assert pool.holds(address, first.nbytes)
    view = first[1:2, :]
    del first
    assert pool.array((4, 3), FLOAT).ctypes.data != address
    view[:] = 7.0
    del view
    gc.collect()
    assert pool.array((2, 2), FLOAT).ctypes.data == address


def test_only_what_was_lent_is_near() -> None:
    pool = HostPool(HostMemory())
    lent, other = pool.array((4,), FLOAT), np.zeros(4, np.float32)
    assert not pool.holds(other.ctypes.data, other.nbytes)
    assert not pool.holds(lent.ctypes.data, 2**20)
    assert not pool.holds(lent[1:].ctypes.data, 4)


def test_ordinary_memory_beyond_the_limit_and_for_what_is_no_number() -> None:
    pool = HostPool(HostMemory(), most_lent_bytes=8192)
    lent = [pool.array((10,), FLOAT) for _ in range(3)]
    assert [pool.holds(array.ctypes.data, array.nbytes) for array in lent] == [True, True, False]
    assert pool.array((2,), np.dtype(object)).dtype == object
    assert pool.array((0, 5), FLOAT).shape == (0, 5)


def test_a_closed_pool_frees_what_comes_back_later() -> None:
    library = FakeCudart()
    memory = CudaMemory(0, library)
    pool = HostPool(memory)
    kept, idle = pool.array((4,), FLOAT), pool.array((4,), FLOAT)
    del idle
    gc.collect()
    pool.close()
    assert len(library.host) == 1
    kept[:] = 1.0
    assert kept.tolist() == [1.0] * 4
    assert not pool.holds(pool.array((4,), FLOAT).ctypes.data, 1)
    del kept
    gc.collect()
    memory.close()
    assert library.nothing_left()


def test_a_lost_device_gives_nothing_back_and_nobody_fails() -> None:
    library = FakeCudart()
    pool = HostPool(CudaMemory(0, library))
    kept, idle = pool.array((4,), FLOAT), pool.array((4,), FLOAT)
    del idle
    gc.collect()
    library.broken = True
    pool.close()
    del kept
    gc.collect()
    assert len(library.host) == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5000)), max_size=60))
def test_no_two_arrays_share_memory(steps: list[tuple[int, int]]) -> None:
    """Each holds what was written into it for as long as somebody has it."""
    pool = HostPool(HostMemory())
    kept: dict[int, Array] = {}
    for number, (place, size) in enumerate(steps):
        kept.pop(place, None)
        array = kept[place] = pool.array((size,), np.dtype(np.int64))
        array[:] = number
        for other in kept.values():
            assert (other == other[0]).all()
        assert len({int(other[0]) for other in kept.values()}) == len(kept)


@pytest.mark.parametrize("library", [None, FakeCudart()])
def test_a_way_there_and_back(library: FakeCudart | None) -> None:
    memory: DeviceMemory = HostMemory() if library is None else CudaMemory(0, library)
    stream = memory.open_stream()
    sent, back = np.arange(5, dtype=np.int64), np.zeros(5, np.int64)
    address = memory.allocate(sent.nbytes)
    with memory.exclusive():
        memory.upload(address, sent.ctypes.data, sent.nbytes, stream)
    memory.order(stream)
    memory.download(back.ctypes.data, address, back.nbytes, stream)
    memory.finish(stream)
    assert back.tolist() == sent.tolist()
    memory.free(address)
    memory.close_stream(stream)
    memory.close()
    assert library is None or library.nothing_left()


def test_errors_are_in_cudas_words() -> None:
    library = FakeCudart(limit_bytes=100)
    memory = CudaMemory(0, library)
    with pytest.raises(RuntimeError, match=r"^CUDA failure 2: out of memory \(cudaMalloc\)$"):
        memory.allocate(101)
    library.broken = True
    with pytest.raises(RuntimeError, match=r"^CUDA failure 700: an illegal memory access was encountered \(cudaMalloc\)$"):
        memory.allocate(1)


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(f"7f0-7f1 r-xp 00000000 08:01 1 {tmp_path}/libcudart.so.12\n")
    assert find_library(maps, ("libcudart-not-there.so",)) is None
    assert find_library(tmp_path / "nothing", ("libc.so.6",)) is None  # a library, but not this one


def test_the_library_that_is_loaded_already_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0-7f1 r-xp 00000000 08:01 1 /lib/libc.so.6\n7f2-7f3 r-xp 00000000 08:01 2 /venv/cuda runtime/libcudart.so.12\n"
    )
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        if name.startswith("/"):
            raise OSError(name)
        return MagicMock()

    monkeypatch.setattr(ctypes, "CDLL", load)
    library = find_library(maps, ("libcudart.so.13",))
    assert library is not None
    assert asked == ["/venv/cuda runtime/libcudart.so.12", "libcudart.so.13"]
    maps.write_text("")
    asked.clear()
    monkeypatch.setattr("sys.path", [])
    find_library(maps)
    assert asked == ["libcudart.so.13"]
    assert library.cudaMemcpyAsync.argtypes[2] is ctypes.c_size_t
