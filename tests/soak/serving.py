import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
import torch
from onnx import TensorProto, helper

from protos.grpc_service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.backends.programs import exported

ROOT = Path(__file__).parents[2]
WIDTH = 256
LAYERS = (WIDTH, 1500, 1500, 1500, WIDTH)
MODEL_BYTES = 4 * sum(left * right for left, right in pairwise(LAYERS))
"""20 MB: large enough that one that stays behind stands out of what the allocator does by itself."""


class Products(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    """The same products as a module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.full(shape, 2.0**-8) for shape in pairwise(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


def write_program(repository: Path, name: str) -> None:
    """The network of `write_network` as a torch program."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "model.toml").write_text("max_batch = 4\n")
    rows = torch.export.Dim("rows", max=4)
    program = exported(Products(), (torch.ones((2, WIDTH)),), ({0: rows},), podium='{"inputs": ["x"], "outputs": ["y"]}')
    (version / "program.pt2").write_bytes(program)


def write_network(repository: Path, name: str) -> None:
    """A model of four matrix products; its output is exactly computable in float32 for an input of ones."""
    names = ["x", "h0", "h1", "h2", "y"]
    weights = [np.full(shape, 2.0**-8, np.float32) for shape in pairwise(LAYERS)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(4)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [onnx.numpy_helper.from_array(array, f"w{layer}") for layer, array in enumerate(weights)],
    )
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "model.toml").write_text("max_batch = 4\n")
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (version / "model.onnx").write_bytes(proto.SerializeToString())


def write_fake(repository: Path, name: str, t0_us: int) -> None:
    """A model that echoes its 16 floats after `t0_us`."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    tensor = '{{"name": "{}", "datatype": "FP32", "shape": [16]}}'
    (version / "fake.json").write_text(f'{{"inputs": [{tensor.format("x")}], "outputs": [{tensor.format("echo_x")}]}}')
    (version.parent / "model.toml").write_text(f"max_batch = 8\n[fake]\nt0_us = {t0_us}\n")


def request(model: str, rows: int, width: int, shape: Sequence[int] | None = None) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=shape or (rows, width))
    message.raw_input_contents.append(np.ones((rows, width), np.float32).tobytes())
    return message


@dataclass(frozen=True)
class Served:
    """A server process of its own, as a caller and as the operating system see it."""

    stub: GRPCInferenceServiceStub
    process: psutil.Process

    def load(self, model: str) -> None:
        self.stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name=model), timeout=60)

    def unload(self, model: str) -> None:
        self.stub.RepositoryModelUnload(RepositoryModelUnloadRequest(model_name=model), timeout=60)

    def infer(self, model: str, rows: int, width: int) -> ModelInferResponse:
        return self.stub.ModelInfer(request(model, rows, width), timeout=60)

    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)


@contextmanager
def served(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """`podium serve` on a socket in `folder` over `folder`/models; drained at the end, which must succeed."""
    address = f"unix:{folder / 'grpc'}"
    command = [sys.executable, "-m", "server", "serve", "--repository", str(folder / "models"), "--grpc-address", address]
    command += ["--http-address", "127.0.0.1:0", "--drain-delay-s", "0", "--log-level", "error", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})})
    try:
        with grpc.insecure_channel(address) as channel:
            _wait(channel, process)
            yield Served(GRPCInferenceServiceStub(channel), psutil.Process(process.pid))
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _wait(channel: grpc.Channel, process: "subprocess.Popen[bytes]") -> None:
    listening = grpc.channel_ready_future(channel)
    while True:
        try:
            listening.result(1)
        except grpc.FutureTimeoutError:
            assert process.poll() is None, "the server ended before it served"
        else:
            return
