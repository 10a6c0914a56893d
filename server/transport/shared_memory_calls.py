"""The six calls about shared memory, as messages over the registered regions.

Floor 6. Memory of a GPU is not shared with this server, which answers as Triton does where it is built without GPUs: there
are no such regions, forgetting them all succeeds, registering one does not. perf_analyzer asks to forget both kinds first.
"""

from protos import grpc_service_pb2 as pb
from server.core.errors import NotFound, Unsupported
from server.transport.shared_memory import Regions


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
    """There are none. Raises: NotFound for one by its name."""
    if request.name:
        raise NotFound(f"Unable to find cuda shared memory region: '{request.name}'")
    return pb.CudaSharedMemoryStatusResponse()


def cuda_register(regions: Regions, request: pb.CudaSharedMemoryRegisterRequest) -> pb.CudaSharedMemoryRegisterResponse:
    """Raises: Unsupported, always: no memory of a GPU can be shared here."""
    regions.check_allowed()
    raise Unsupported(f"failed to register CUDA shared memory region: '{request.name}', GPUs not supported")


def cuda_unregister(regions: Regions, request: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
    """There is nothing to forget. Raises: Unsupported where callers may not share memory at all."""
    regions.check_allowed()
    return pb.CudaSharedMemoryUnregisterResponse()
