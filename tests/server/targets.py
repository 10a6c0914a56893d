"""Podium as the target of an attack: a fake model that gives its rows back, each call with rows of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from protos import grpc_service_pb2 as pb
from tests.server.attacks import Target
from tests.server.models import put_fake
from tests.server.serving import Serving, infer_message, until

GRPC_WORDS = {
    "python": (
        "Error parsing '",  # of a header that is none
        "Ignoring key value pair due to size limit",  # of a status that names thousands of headers
        "ExecuteBatchError raised in core",  # whoever was being answered has gone
    ),
    "native": (),
}
"""Errors in the log that are gRPC's own, of callers that are hostile. Ours has none: whoever attacks must not fill the log."""


def row_of(tag: int) -> bytes:
    """Four numbers that no other call has."""
    return np.array([[tag, tag + 1, -tag, tag / 2]], dtype=np.float32).tobytes()


def question(tag: int, model: str = "echo") -> pb.ModelInferRequest:
    return infer_message(model, {"x": ("FP32", [1, 4], row_of(tag))}, id=str(tag))


def own(tag: int, answer: bytes) -> bool:
    """Whether this is the answer to that question, and to no other."""
    response = pb.ModelInferResponse.FromString(answer)
    return response.id == str(tag) and list(response.raw_output_contents) == [row_of(tag)]


def inference(server: Serving, model: str = "echo") -> Target:
    return Target(server.grpc_address, server.process.pid, lambda tag: question(tag, model).SerializeToString(), own)


def gauge(server: Serving, name: str) -> float:
    """Over all its labels."""
    lines = server.http("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def nothing_is_left(server: Serving) -> None:
    """Of callers that have gone: no request, and no connection. A neighbour may have one of each."""
    until(lambda: gauge(server, "podium_inflight_requests") <= 1, "only the neighbour is in flight")
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    until(lambda: len(list(descriptors.iterdir())) < 100, "connections are closed")


@contextmanager
def attacked_server(home: Path, plane: str, **slow: float) -> Iterator[Serving]:
    """A server of its own for what may harm it: the model `echo`, and others by how many us they take."""
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 500.0, max_batch=16)
    for name, took_us in slow.items():
        put_fake(repository, name, took_us, max_batch=16, queue="early_drop = false")
    server = Serving(repository, home, data_plane=plane, max_message_bytes=4_000_000)
    try:
        yield server
    finally:
        server.stop(errors=GRPC_WORDS[plane])
