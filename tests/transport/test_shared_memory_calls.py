"""The calls about shared memory, in the order in which perf_analyzer makes them, and with Triton's answers about GPUs."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from protos import grpc_service_pb2 as pb
from server.core.errors import NotFound, Unsupported
from server.transport import shared_memory_calls as calls
from server.transport.shared_memory import FOLDER, Regions
from server.transport.waiting import WaitingThreads


def test_the_order_of_perf_analyzer() -> None:
    regions = Regions(allowed=True)
    file = Path(FOLDER) / f"podium-test-{uuid4().hex}"
    calls.system_unregister(regions, pb.SystemSharedMemoryUnregisterRequest())
    calls.cuda_unregister(regions, pb.CudaSharedMemoryUnregisterRequest())
    file.write_bytes(bytes(64))
    try:
        calls.system_register(
            regions, pb.SystemSharedMemoryRegisterRequest(name="INPUT0_0_0", key=f"/{file.name}", offset=0, byte_size=64)
        )
    finally:
        file.unlink()
    found = calls.system_status(regions, pb.SystemSharedMemoryStatusRequest()).regions
    assert {name: (each.name, each.key, each.offset, each.byte_size) for name, each in found.items()} == {
        "INPUT0_0_0": ("INPUT0_0_0", f"/{file.name}", 0, 64)
    }
    assert calls.system_status(regions, pb.SystemSharedMemoryStatusRequest(name="INPUT0_0_0")).regions == found
    calls.system_unregister(regions, pb.SystemSharedMemoryUnregisterRequest(name="INPUT0_0_0"))
    assert not calls.system_status(regions, pb.SystemSharedMemoryStatusRequest()).regions


def test_without_a_gpu_no_memory_of_one_is_shared() -> None:
    regions = Regions(allowed=True)
    assert not calls.cuda_status(regions, pb.CudaSharedMemoryStatusRequest()).regions
    with pytest.raises(NotFound, match=r"^Unable to find cuda shared memory region: 'g'$"):
        calls.cuda_status(regions, pb.CudaSharedMemoryStatusRequest(name="g"))
    message = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=bytes(64), byte_size=8)
    with pytest.raises(Unsupported, match=r"^failed to register CUDA shared memory region: 'g', GPUs not supported$"):
        asyncio.run(calls.cuda_register(regions, WaitingThreads(0), message))
    calls.cuda_unregister(regions, pb.CudaSharedMemoryUnregisterRequest(name="g"))
