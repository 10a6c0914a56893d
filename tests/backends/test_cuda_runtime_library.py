"""libcudart by ctypes, against a double of it that is as strict as it is, and the real one as far as it goes without a GPU."""

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.backends import cudart
from server.backends.cudart import Cudart, candidates, load
from server.core.errors import DeviceLost, SharedMemoryFailed, Unsupported
from tests import perf_analyzer
from tests.cudart import Allocation, Double

ROOT = Path(__file__).parents[2]


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Double:
    made = Double(tmp_path / "double")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def cuda(double: Double) -> Iterator[Cudart]:
    yield load(str(double.path))
    assert double.open_handles() == []


@pytest.fixture
def memory() -> Iterator[Allocation]:
    """100 bytes on the second device, so that the first one, where a thread begins, is the wrong one."""
    made = Allocation(100, 1, bytes(range(100)))
    yield made
    made.free()


def test_memory_is_read_and_written_where_it_is(cuda: Cudart, memory: Allocation) -> None:
    assert cuda.device_count() == 2
    address, size = cuda.open(1, memory.handle)
    assert size == 100
    assert cuda.read(1, address + 10, 3) == bytes([10, 11, 12])
    assert cuda.read(1, address, 0) == b""
    cuda.write(1, address + 98, b"xy")
    # not staged: it is there when the call has returned
    assert memory.data[97:] == b"\x61xy"
    cuda.write(1, address, b"")
    assert cuda.close(1, address)


def test_a_handle_opened_twice_has_one_address_and_is_closed_twice(cuda: Cudart, memory: Allocation) -> None:
    (first, _), (second, _) = (cuda.open(1, memory.handle) for _ in range(2))
    assert first == second
    assert cuda.close(1, first)
    assert cuda.read(1, second, 1) == b"\0"
    assert cuda.close(1, second)
    assert not cuda.close(1, second)
    with pytest.raises(SharedMemoryFailed, match=r"^invalid argument \(CUDA error 1\)$"):
        cuda.read(1, second, 1)


def test_each_thread_has_its_own_device(cuda: Cudart, memory: Allocation) -> None:
    other = Allocation(8, 0, b"ABCDEFGH")
    addresses = {device: cuda.open(device, each.handle)[0] for device, each in ((1, memory), (0, other))}
    found: list[bytes] = []

    def elsewhere() -> None:
        for _ in range(50):
            found.append(cuda.read(1, addresses[1], 2))
            found.append(cuda.read(0, addresses[0], 2))

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(found)) == [b"\0\1", b"AB"]
    assert len(found) == 400
    # closed by a thread that has used neither
    closer = threading.Thread(target=lambda: [cuda.close(device, address) for device, address in addresses.items()])
    closer.start()
    closer.join()
    other.free()


@pytest.mark.parametrize("handle", [b"0:podium-none".ljust(64, b"\0"), b"\xff" * 64, bytes(64)])
def test_what_is_no_handle_opens_nothing(cuda: Cudart, double: Double, handle: bytes) -> None:
    with pytest.raises(SharedMemoryFailed, match=r"^invalid resource handle \(CUDA error 400\)$"):
        cuda.open(0, handle)
    # torch asks for a thread's last error after its own launches: it must not find ours
    assert double.last_error() == 0
    with pytest.raises(SharedMemoryFailed, match="invalid device ordinal"):
        cuda.open(2, handle)
    assert double.last_error() == 0


@pytest.mark.parametrize("call", ["cuMemGetAddressRange", "cudaGetDriverEntryPoint", "no_range"])
def test_what_does_not_say_how_large_it_is_is_closed_again(cuda: Cudart, double: Double, memory: Allocation, call: str) -> None:
    double.fails(call, 1)
    with pytest.raises(SharedMemoryFailed):
        cuda.open(1, memory.handle)
    assert double.opened() == 1
    assert double.open_handles() == []


def test_an_error_of_one_call_is_nobody_elses(cuda: Cudart, double: Double, memory: Allocation) -> None:
    address, _ = cuda.open(1, memory.handle)
    for call, attempt in (
        ("to_host", lambda: cuda.read(1, address, 1)),
        ("to_device", lambda: cuda.write(1, address, b"x")),
        ("cudaStreamSynchronize", lambda: cuda.write(1, address, b"x")),
        ("cudaSetDevice", lambda: cuda.read(1, address, 1)),
    ):
        double.fails(call, 1)
        with pytest.raises(SharedMemoryFailed, match=r"^invalid argument \(CUDA error 1\)$"):
            attempt()
        assert double.last_error() == 0
        double.works()
        assert cuda.read(1, address, 1) in (b"\0", b"x")
    with pytest.raises(SharedMemoryFailed, match="invalid argument"):
        cuda.read(1, address + 99, 2)
    with pytest.raises(SharedMemoryFailed, match="invalid argument"):
        cuda.write(1, address - 1, b"x")
    double.fails("cudaIpcCloseMemHandle", 999)
    assert not cuda.close(1, address)
    double.works()
    assert cuda.close(1, address)


def test_a_sticky_error_takes_one_device_away_and_says_so(double: Double, memory: Allocation) -> None:
    cuda = load(str(double.path))
    other = Allocation(8, 0, b"ABCDEFGH")
    address, _ = cuda.open(1, memory.handle)
    kept, _ = cuda.open(0, other.handle)
    double.fails("to_device", 700)
    lost = r"^cuda:1 is lost to this process: an illegal memory access was encountered \(CUDA error 700\)$"
    with pytest.raises(DeviceLost, match=lost):
        cuda.write(1, address, b"x")
    double.works()
    for attempt in (lambda: cuda.read(1, address, 1), lambda: cuda.open(1, memory.handle)):
        with pytest.raises(DeviceLost, match=lost):
            attempt()
    assert not cuda.close(1, address)
    assert cuda.read(0, kept, 8) == b"ABCDEFGH"
    assert cuda.close(0, kept)
    other.free()


def test_an_older_library_finds_the_drivers_function_by_its_older_name(
    tmp_path: Path, memory: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = Double(tmp_path / "old", "-DBEFORE_12_5")
    monkeypatch.setenv("CUDART_DOUBLE", str(double.folder))
    cuda = load(str(double.path))
    address, size = cuda.open(1, memory.handle)
    assert size == 100
    assert cuda.close(1, address)


def test_a_machine_without_a_gpu_says_so(cuda: Cudart, double: Double) -> None:
    double.fails("cudaGetDeviceCount", 35)
    with pytest.raises(Unsupported, match=r"^CUDA driver version is insufficient for CUDA runtime version \(CUDA error 35\)$"):
        cuda.device_count()
    double.fails("cudaGetDeviceCount", 9999)
    with pytest.raises(Unsupported, match=r"^unknown error \(CUDA error 9999\)$"):
        cuda.device_count()
    double.works()
    (double.folder / "no-devices").touch()
    with pytest.raises(Unsupported, match=r"^no GPU is there$"):
        cuda.device_count()


def test_where_the_library_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    for name in (
        "nvidia/cuda_runtime/lib/libcudart.so.12",
        "nvidia/cu13/lib/libcudart.so.13",
        "nvidia/cudnn/lib/libcudnn.so.9",
    ):
        path = site / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert list(candidates([str(tmp_path), str(site)])) == [
        str(site / "nvidia/cu13/lib/libcudart.so.13"),
        str(site / "nvidia/cuda_runtime/lib/libcudart.so.12"),
        "libcudart.so.13",
        "libcudart.so.12",
    ]
    # files that are no libraries, and a library that is another one, are passed over
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(cudart, "_LOADER_NAMES", ("libc.so.6", "libm-podium-none.so"))
    with pytest.raises(Unsupported, match=r"^libcudart cannot be loaded: .*file too short.*it lacks a function: .*libm-podium"):
        load()
    with pytest.raises(Unsupported, match=r"^libcudart cannot be loaded: .*nowhere\.so: cannot open shared object file"):
        load(str(tmp_path / "nowhere.so"))


REAL = [*candidates(sys.path), str(perf_analyzer.HOME / "libcudart.so.12")]


def loadable(path: str) -> bool:
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("path", ["double", *sorted(filter(loadable, REAL))])
def test_every_library_here_has_all_that_is_called(path: str, double: Double) -> None:
    """The double, and the real ones that there are: prototypes are set on their functions, and none shows a device."""
    code = (
        "import json, sys\n"
        "from server.backends.cudart import load\n"
        "from server.core.errors import SharedMemoryFailed, Unsupported\n"
        "cuda = load(sys.argv[1])\n"
        "said = []\n"
        "for ask in (cuda.device_count, lambda: cuda.open(0, bytes(64))):\n"
        "    try:\n"
        "        ask()\n"
        "    except (Unsupported, SharedMemoryFailed) as error:\n"
        "        said.append(str(error))\n"
        "print(json.dumps(said))\n"
    )
    (double.folder / "no-devices").touch()
    run = subprocess.run(
        [sys.executable, "-c", code, str(double.path) if path == "double" else path],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "", **double.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = json.loads(run.stdout)
    assert len(said) == 2
    assert "(CUDA error " in said[1], said
