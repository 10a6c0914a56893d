"""Calls of the service that this server does not offer: shared memory and streams.

Floor 6. The generated base class would answer UNIMPLEMENTED too, but by an exception that gRPC logs as an error with its
traceback: clients such as perf_analyzer make some of these calls as a matter of course, and a stranger could fill the log.
"""

from typing import Any, NoReturn

import grpc

from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer


class NotOffered(GRPCInferenceServiceServicer):
    """Answers UNIMPLEMENTED, and does nothing else."""

    async def _refuse(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server does not implement this call")
        raise AssertionError("abort raises")

    ModelStreamInfer = _refuse  # type: ignore[assignment]  # grpc.aio takes a coroutine for a stream as well
    SystemSharedMemoryStatus = _refuse
    SystemSharedMemoryRegister = _refuse
    SystemSharedMemoryUnregister = _refuse
    CudaSharedMemoryStatus = _refuse
    CudaSharedMemoryRegister = _refuse
    CudaSharedMemoryUnregister = _refuse
