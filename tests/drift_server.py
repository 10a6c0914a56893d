"""A server that tells what it is given, over gRPC: for those who ask."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from protos import monitoring_pb2 as pb


class Told:
    """Answers GetDrift with `report`, or refuses where there is none; remembers what it was asked with."""

    def __init__(self, report: pb.DriftReport | None) -> None:
        self._report = report
        self.asked = pb.DriftRequest()
        self.metadata: dict[str, str] = {}

    def answer(self, request: pb.DriftRequest, context: Any) -> pb.DriftReport:
        self.asked = request
        self.metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        if self._report is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "model 'ranker' is not monitored")
        assert self._report is not None
        return self._report


@contextmanager
def serving(service: Told, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    """The port on which it answers for the time of the block."""
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(service.answer, pb.DriftRequest.FromString, pb.DriftReport.SerializeToString)
    handlers = grpc.method_handlers_generic_handler("podium.monitoring.v1.MonitoringService", {"GetDrift": method})
    server.add_generic_rpc_handlers((handlers,))
    address = "127.0.0.1:0"
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()
