"""What `test_cuda_memory.py` shows with a double, on a GPU: NVIDIA's client exports its memory, and a server uses it."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from server.backends.cudart import load
from server.core.errors import SharedMemoryFailed
from tests.server.models import put_identity, put_simple
from tests.server.serving import Serving

pytestmark = pytest.mark.gpu

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.full((1, 16), 100, dtype=np.int32)


@pytest.fixture(scope="module")
def exporting() -> Any:
    """tritonclient's part about CUDA: it needs cuda-python, which comes with a torch built for CUDA."""
    return importlib.import_module("tritonclient.utils.cuda_shared_memory")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Any]:
    home = tmp_path_factory.mktemp("sharing")
    repository = home / "repository"
    repository.mkdir()
    put_simple(repository)
    put_identity(repository, "BYTES")
    server = Serving(repository, home, data_plane=plane, allow_client_shm=True)
    try:
        with triton.InferenceServerClient(server.grpc_address) as client:
            yield client
    finally:
        server.stop()


class Exported:
    """One allocation, registered under its name."""

    def __init__(self, client: Any, exporting: Any, name: str, byte_size: int, *contents: Any) -> None:
        self._exporting = exporting
        self.client = client
        self.name = name
        self.handle = exporting.create_shared_memory_region(name, byte_size, 0)
        exporting.set_shared_memory_region(self.handle, list(contents) or [np.zeros(byte_size, np.uint8)])
        client.register_cuda_shared_memory(name, exporting.get_raw_handle(self.handle), 0, byte_size)

    def read(self, dtype: Any, shape: list[int]) -> Any:
        return self._exporting.get_contents_as_numpy(self.handle, dtype, shape)

    def free(self) -> None:
        # before its owner frees it, or nobody says what happens
        self.client.unregister_cuda_shared_memory(self.name)
        self._exporting.destroy_shared_memory_region(self.handle)


def simple(client: Any, region: str, output: str) -> Any:
    inputs = [triton.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for offset, given in zip((0, 64), inputs, strict=True):
        given.set_shared_memory(region, 64, offset)
    wanted = [triton.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    for offset, each in zip((0, 64), wanted, strict=True):
        each.set_shared_memory(output, 64, offset)
    return client.infer("simple", inputs, outputs=wanted)


def test_inputs_and_outputs(client: Any, exporting: Any) -> None:
    assert "cuda_shared_memory" in client.get_server_metadata().extensions
    inputs = Exported(client, exporting, "in", 128, A, B)
    outputs = Exported(client, exporting, "out", 128)
    found = client.get_cuda_shared_memory_status().regions
    assert {name: (each.device_id, each.byte_size) for name, each in found.items()} == {"in": (0, 128), "out": (0, 128)}
    for turn in range(100):
        now = A + turn
        exporting.set_shared_memory_region(inputs.handle, [now, B])
        simple(client, "in", "out")
        assert np.array_equal(outputs.read(np.int32, [2, 16]), np.concatenate([now + B, now - B]))
    inputs.free()
    outputs.free()


def test_strings(client: Any, exporting: Any) -> None:
    texts = np.array([[b"a", b"bc"], [b"", b"\0\1"]], dtype=object)
    raw = serialize_byte_tensor(texts)
    size = len(raw.item())
    inputs, outputs = Exported(client, exporting, "in", size, raw), Exported(client, exporting, "out", 100)
    given = triton.InferInput("IN", [2, 2], "BYTES")
    given.set_shared_memory("in", size)
    wanted = triton.InferRequestedOutput("OUT")
    wanted.set_shared_memory("out", 100)
    client.infer("identity_bytes", [given], outputs=[wanted])
    assert outputs.read(np.object_, [2, 2]).tolist() == texts.tolist()
    inputs.free()
    outputs.free()


def test_regions_come_and_go(client: Any, exporting: Any) -> None:
    """A handle that is closed as often as it is opened can be opened for ever."""
    for turn in range(200):
        region = Exported(client, exporting, f"r{turn % 3}", 128, A, B)
        region.free()
    region = Exported(client, exporting, "r", 128, A, B)
    # allocations have the size they were asked for, or the block's that the driver made of it
    with pytest.raises(InferenceServerException, match="failed to register shared memory region 's': invalid args"):
        client.register_cuda_shared_memory("s", exporting.get_raw_handle(region.handle), 0, 2**40)
    region.free()


def test_a_wrong_handle_leaves_the_library_usable(tmp_path: Path) -> None:
    cuda = load()
    assert cuda.device_count() > 0
    for _ in range(2):
        with pytest.raises(SharedMemoryFailed, match="CUDA error"):
            cuda.open(0, b"\x5a" * 64)
