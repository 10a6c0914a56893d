"""The bare servicer that Podium is compared with: grpc.aio, one model call per request, nothing else.

    python -m bench.reference MODEL.onnx HOST:PORT

It checks nothing, batches nothing, counts nothing and knows no deadline. What a first version of a model server looks like.
"""

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
import onnxruntime

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server


class Bare(GRPCInferenceServiceServicer):
    """ModelInfer only."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """One call, one run."""
        rows = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tuple(request.inputs[0].shape))
        (result,) = self._session.run(["OUT"], {"IN": rows})
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name="OUT", datatype="FP32", shape=result.shape)
        response.raw_output_contents.append(result.tobytes())
        return response


async def main(path: str, address: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_GRPCInferenceServiceServicer_to_server(Bare(path), server)  # type: ignore[abstract]
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
