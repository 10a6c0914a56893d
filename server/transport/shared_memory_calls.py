"""The six calls about shared memory, as messages over the registered regions.

Floor 6. Without a GPU, or without CUDA's library, it answers as a Triton does that is built without GPUs: there are no such
regions, forgetting them all succeeds, registering one does not. perf_analyzer asks to forget both kinds first.
"""

from protos import grpc_service_pb2 as pb
from server.transport.cuda_memory import CudaRegion
from server.transport.shared_memory import Regions
from server.transport.waiting import WaitingThreads


def system_status(regions: Regions, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
    """One region, or all of them. Raises: NotFound."""
    response = pb.SystemSharedMemoryStatusResponse()
    for region in regions.registered(request.name):
        response.regions[region.name].CopyFrom(
            response.RegionStatus(name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size)
        )
    return response


def system_register(regions: Regions, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
    """Raises: what `Regions.register` raises."""
    regions.register(request.name, request.key, request.offset, request.byte_size)
    return pb.SystemSharedMemoryRegisterResponse()


def system_unregister(
    regions: Regions, request: pb.SystemSharedMemoryUnregisterRequest
) -> pb.SystemSharedMemoryUnregisterResponse:
    """Raises: Unsupported."""
    regions.unregister(request.name)
    return pb.SystemSharedMemoryUnregisterResponse()


def cuda_status(regions: Regions, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
    """One region, or all of them. Raises: NotFound."""
    response = pb.CudaSharedMemoryStatusResponse()
    for region in regions.registered_cuda(request.name):
        response.regions[region.name].CopyFrom(
            response.RegionStatus(name=region.name, device_id=region.device_id, byte_size=region.byte_size)
        )
    return response


async def cuda_register(
    regions: Regions, threads: WaitingThreads, request: pb.CudaSharedMemoryRegisterRequest
) -> pb.CudaSharedMemoryRegisterResponse:
    """Opened on a thread: the first use of a device takes its time. Raises: what `Regions.opening` and `keep` raise.

    A caller that leaves meanwhile has registered nothing: what was opened for it closes by itself.
    """
    open_it = regions.opening(request.name, request.raw_handle, request.device_id, request.byte_size)
    regions.keep(await threads.run(open_it))
    return pb.CudaSharedMemoryRegisterResponse()


def cuda_unregister(regions: Regions, request: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
    """Raises: Unsupported."""
    regions.unregister(request.name, CudaRegion)
    return pb.CudaSharedMemoryUnregisterResponse()
