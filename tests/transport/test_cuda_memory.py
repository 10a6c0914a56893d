"""Regions of a GPU's memory: opened whole or not at all, closed once when the last holder lets go, named as files are."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from protos import grpc_service_pb2 as pb
from server.backends.cudart import Cudart, load
from server.core.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    Overloaded,
    PodiumError,
    SharedMemoryFailed,
    Unsupported,
)
from server.core.requests import Place
from server.transport import shared_memory_calls as calls
from server.transport.cuda_memory import CudaRegion
from server.transport.places import write_all
from server.transport.shared_memory import Regions
from server.transport.waiting import WaitingThreads
from tests.cudart import Allocation, Double
from tests.server.serving import until


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Double:
    made = Double(tmp_path / "double")
    monkeypatch.setenv("CUDART_DOUBLE", str(made.folder))
    return made


@pytest.fixture
def cuda(double: Double) -> Cudart:
    return load(str(double.path))


@pytest.fixture
def memory() -> Iterator[Allocation]:
    made = Allocation(100, 1, bytes(range(100)))
    yield made
    made.free()


def regions_of(cuda: Cudart, max_open: int | None = None) -> Regions:
    return Regions(allowed=True, cuda=cuda, max_open=max_open)


def register(regions: Regions, name: str, memory: Allocation, byte_size: int = 100) -> None:
    regions.keep(regions.opening(name, memory.handle, memory.device, byte_size)())


def told(attempt: Callable[[], object]) -> tuple[type[PodiumError], str]:
    with pytest.raises(PodiumError) as caught:
        attempt()
    return type(caught.value), str(caught.value)


def test_a_region_is_a_part_of_an_allocation(cuda: Cudart, double: Double, memory: Allocation) -> None:
    regions = regions_of(cuda)
    register(regions, "r", memory, 80)
    register(regions, "whole", memory)
    region = regions.find("r")
    assert (region.name, region.byte_size) == ("r", 80)
    assert region.read(5, 3) == bytes([5, 6, 7])
    region.write(79, b"x")
    assert memory.data[78:81] == b"\x4ex\x50"
    # the same memory is the same place by either name, and none of a file
    (file, first, last), (other, other_first, _) = region.writable(5, 3), regions.find("whole").writable(5, 3)
    assert (file, first) == (other, other_first)
    assert last == first + 3
    assert file[0] < 0
    with pytest.raises(InvalidRequest, match=r"^outputs overlap in shared memory: regions 'r' and 'whole'$"):
        write_all([(Place(region, 0, 8), bytes(8)), (Place(regions.find("whole"), 7, 8), bytes(8))])
    del region
    regions.unregister("", CudaRegion)
    assert double.open_handles() == []


def test_it_is_closed_once_when_the_last_holder_lets_go(cuda: Cudart, double: Double, memory: Allocation) -> None:
    regions = regions_of(cuda)
    register(regions, "r", memory)
    held = regions.find("r")
    regions.unregister("r", CudaRegion)
    regions.unregister("r", CudaRegion)
    register(regions, "r", memory)
    assert double.open_handles() == [memory.text] * 2
    assert held.read(1, 1) == b"\1"
    del held
    assert double.open_handles() == [memory.text]
    assert regions.find("r").read(2, 1) == b"\2"
    regions.unregister("", CudaRegion)
    assert double.open_handles() == []
    assert regions.registered_cuda("") == []


def test_closing_goes_to_where_regions_are_owned(cuda: Cudart, double: Double, memory: Allocation) -> None:
    queued: list[Callable[[], None]] = []
    regions = Regions(allowed=True, cuda=cuda, later=queued.append)
    register(regions, "r", memory)
    holders = [regions.find("r")]
    regions.unregister("r", CudaRegion)
    # the last reference goes on another thread, whose device is none of this one's business
    thread = threading.Thread(target=holders.clear)
    thread.start()
    thread.join()
    assert double.open_handles() == [memory.text]
    (close,) = queued
    close()
    assert double.open_handles() == []


def test_what_cannot_be_registered(cuda: Cudart, double: Double, memory: Allocation) -> None:
    regions = regions_of(cuda)
    register(regions, "r", memory)
    before = double.opened()
    assert told(lambda: register(regions, "r", memory)) == (
        AlreadyExists,
        "shared memory region 'r' already in manager",
    )
    wrong = InvalidRequest, "failed to register shared memory region 'n': invalid args"
    for handle, device, byte_size in (
        (memory.handle, 1, 101),
        (memory.handle, 1, 0),
        (memory.handle, 1, 2**64 - 1),
        (memory.handle, 0, 100),
        (memory.handle, 2, 100),
        (memory.handle, -1, 100),
        (memory.handle, 2**62, 100),
        (memory.handle[:63], 1, 100),
        (memory.handle + b"\0", 1, 100),
        (b"", 1, 100),
        (bytes(64), 1, 100),
    ):
        assert told(regions.opening("n", handle, device, byte_size)) == wrong
    for name in ("", "n" * 1025):
        assert told(lambda: regions.opening(name, memory.handle, 1, 100))[0] is InvalidRequest  # noqa: B023
    assert double.open_handles() == [memory.text]
    assert double.opened() == before + 2, "only what is too small, in both sizes, was opened, and closed again"
    assert told(lambda: Regions(allowed=True).opening("n", memory.handle, 1, 100)) == (
        Unsupported,
        "failed to register CUDA shared memory region: 'n', GPUs not supported",
    )
    shut = Regions(cuda=cuda)
    assert shut.cuda is None
    assert told(lambda: shut.opening("n", memory.handle, 1, 100))[1].startswith("Client shared memory is disabled.")
    assert told(lambda: shut.unregister("", CudaRegion))[0] is Unsupported
    regions.unregister("r", CudaRegion)


def test_regions_of_both_kinds_are_bounded_together_whoever_holds_them(
    cuda: Cudart, double: Double, memory: Allocation
) -> None:
    regions = regions_of(cuda, max_open=2)
    name = memory.text.partition(":")[2]
    regions.register("file", name, 0, 100)
    register(regions, "gpu", memory)
    full = Overloaded, "shared memory region 'x' cannot be registered: 2 are open, the most there can be"
    assert told(lambda: register(regions, "x", memory)) == full
    held = regions.find("gpu")
    regions.unregister("", CudaRegion)
    assert told(lambda: register(regions, "x", memory)) == full
    assert told(lambda: regions.register("x", name, 0, 1)) == full
    del held
    register(regions, "x", memory)
    regions.unregister("x", CudaRegion)
    regions.unregister("file")
    assert double.open_handles() == []


def test_two_who_open_under_one_name_at_once(cuda: Cudart, double: Double, memory: Allocation) -> None:
    regions = regions_of(cuda)
    first, second = (regions.opening("r", memory.handle, 1, 100)() for _ in range(2))
    regions.keep(first)
    with pytest.raises(AlreadyExists):
        regions.keep(second)
    del first, second
    assert double.open_handles() == [memory.text]
    regions.unregister("r", CudaRegion)
    assert double.open_handles() == []


def test_a_name_is_of_one_kind(cuda: Cudart, memory: Allocation) -> None:
    regions = regions_of(cuda)
    name = memory.text.partition(":")[2]
    regions.register("file", name, 0, 100)
    register(regions, "gpu", memory)
    assert told(lambda: register(regions, "file", memory))[0] is AlreadyExists
    assert told(lambda: regions.register("gpu", name, 0, 1))[0] is AlreadyExists
    assert told(lambda: regions.registered("gpu")) == (
        NotFound,
        "The region named 'gpu' is registered as CUDA shared memory, not system shared memory",
    )
    assert told(lambda: regions.registered_cuda("file")) == (
        NotFound,
        "The region named 'file' is registered as system shared memory, not CUDA shared memory",
    )
    assert told(lambda: regions.registered_cuda("x")) == (NotFound, "Unable to find cuda shared memory region: 'x'")
    regions.unregister("gpu")
    regions.unregister("file", CudaRegion)
    assert [region.name for region in regions.registered("")] == ["file"]
    assert [(region.name, region.device_id) for region in regions.registered_cuda("gpu")] == [("gpu", 1)]
    regions.unregister("")
    assert [region.name for region in regions.registered_cuda("")] == ["gpu"]
    regions.unregister("", CudaRegion)


def test_a_copy_that_fails_is_an_error_of_its_request(
    cuda: Cudart, double: Double, memory: Allocation, caplog: pytest.LogCaptureFixture
) -> None:
    regions = regions_of(cuda)
    register(regions, "r", memory)
    other = Allocation(4, 0, b"ABCD")
    register(regions, "other", other, 4)
    region = regions.find("r")
    double.fails("to_host", 1)
    double.fails("to_device", 1)
    for attempt in (partial(region.read, 0, 1), partial(region.write, 0, b"x")):
        assert told(attempt) == (
            SharedMemoryFailed,
            "shared memory region 'r' cannot be used: invalid argument (CUDA error 1)",
        )
    double.works()
    assert region.read(0, 1) == b"\0"
    assert not caplog.records
    double.fails("to_device", 700)
    lost = "cuda:1 is lost to this process: an illegal memory access was encountered (CUDA error 700)"
    assert told(partial(region.write, 0, b"x")) == (
        SharedMemoryFailed,
        f"shared memory region 'r' cannot be used: {lost}",
    )
    double.works()
    assert told(partial(region.read, 0, 1))[1].endswith(lost)
    assert told(lambda: register(regions, "new", memory)) == (
        SharedMemoryFailed,
        f"shared memory region 'new' cannot be used: {lost}",
    )
    assert [record.getMessage() for record in caplog.records] == ["a device is lost"]
    # the other device's regions are as they were
    assert regions.find("other").read(0, 4) == b"ABCD"
    regions.unregister("", CudaRegion)
    del region, attempt
    gc.collect()  # the errors that were caught above lead to it
    assert double.open_handles() == [memory.text], "what is lost cannot be closed"
    assert caplog.records[-1].getMessage() == "memory of a GPU cannot be closed"
    other.free()


def test_the_calls_of_a_client(cuda: Cudart, double: Double, memory: Allocation) -> None:
    regions = regions_of(cuda)
    message = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=memory.handle, device_id=1, byte_size=64)

    async def main() -> None:
        calls.cuda_unregister(regions, pb.CudaSharedMemoryUnregisterRequest())
        await calls.cuda_register(regions, WaitingThreads(1), message)
        found = calls.cuda_status(regions, pb.CudaSharedMemoryStatusRequest()).regions
        assert {name: (each.name, each.device_id, each.byte_size) for name, each in found.items()} == {"g": ("g", 1, 64)}
        assert calls.cuda_status(regions, pb.CudaSharedMemoryStatusRequest(name="g")).regions == found
        calls.cuda_unregister(regions, pb.CudaSharedMemoryUnregisterRequest(name="g"))
        assert not calls.cuda_status(regions, pb.CudaSharedMemoryStatusRequest()).regions

    asyncio.run(main())
    # the thread that opened it may be the last to let go
    until(lambda: double.open_handles() == [], "it is closed")


def test_a_caller_that_leaves_while_its_memory_is_opened_leaves_nothing_open(
    cuda: Cudart, double: Double, memory: Allocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = regions_of(cuda)
    opening, may_open = threading.Event(), threading.Event()
    open_memory = cuda.open

    def slowly(device: int, handle: bytes) -> tuple[int, int]:
        opening.set()
        assert may_open.wait(60)
        return open_memory(device, handle)

    monkeypatch.setattr(cuda, "open", slowly)
    message = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=memory.handle, device_id=1, byte_size=64)

    async def main() -> None:
        threads = WaitingThreads(1)
        call = asyncio.create_task(calls.cuda_register(regions, threads, message))
        await asyncio.to_thread(opening.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        may_open.set()
        # the same thread: whatever it did before has ended
        await threads.run(lambda: None)

    asyncio.run(main())
    assert double.opened() == 1
    until(lambda: double.open_handles() == [], "it is closed")
    assert regions.registered_cuda("") == []
