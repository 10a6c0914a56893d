"""What clients get: tritonclient's three faces over TCP and over a unix socket, and messages made by hand."""

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from protos import grpc_service_pb2 as pb
from server.core.tensors import NUMPY_DTYPES
from tests.onnx_types import ONNX_TYPES
from tests.server.serving import Serving, counts, infer_message

ROWS = 3


def values(datatype: str) -> Any:
    """Three rows of every datatype, extremes among them."""
    match datatype:
        case "BOOL":
            return np.array([[True, False], [False, False], [True, True]])
        case "BYTES":
            return np.array([["", "é\n"], ["a" * 300, "0"], ["\x00", "x"]], dtype=object).astype(object)
        case "BF16":
            return np.array([[1.5, -2.0], [np.inf, 3e38], [0.0, 1e-38]], dtype=ml_dtypes.bfloat16)
        case "FP16" | "FP32" | "FP64":
            dtype: Any = NUMPY_DTYPES[datatype]
            info = np.finfo(dtype)
            return np.array([[info.min, info.max], [np.inf, -0.0], [info.tiny, 1.5]], dtype=dtype)
    integers: Any = NUMPY_DTYPES[datatype]
    limits = np.iinfo(integers)
    return np.array([[limits.min, limits.max], [0, 1], [7, 8]], dtype=integers)


@pytest.fixture
def client(door: Serving) -> Iterator[Any]:
    made = triton.InferenceServerClient(door.grpc_address)
    yield made
    made.close()


def tensor(module: Any, name: str, array: Any, datatype: str) -> Any:
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def same(datatype: str, got: Any, sent: Any) -> bool:
    if datatype == "BYTES":
        return [item.decode() for item in got.reshape(-1)] == list(sent.reshape(-1)) and got.shape == sent.shape
    return bool(got.dtype == sent.dtype and got.shape == sent.shape and got.tobytes() == sent.tobytes())


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_every_datatype_comes_back_bit_for_bit(client: Any, datatype: str) -> None:
    sent = values(datatype)
    result = client.infer(f"identity_{datatype.lower()}", [tensor(triton, "IN", sent, datatype)])
    assert same(datatype, result.as_numpy("OUT"), sent)
    assert list(result.get_output("OUT").shape) == [ROWS, 2]
    assert result.get_output("OUT").datatype == datatype


FIELDS: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [1, 65_535]),
    "UINT32": ("uint_contents", [2, 2**32 - 1]),
    "UINT64": ("uint64_contents", [3, 2**64 - 1]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 5]),
    "INT32": ("int_contents", [-(2**31), 6]),
    "INT64": ("int64_contents", [-(2**63), 7]),
    "FP32": ("fp32_contents", [1.5, -0.0]),
    "FP64": ("fp64_contents", [1e300, 2.5]),
    "BYTES": ("bytes_contents", [b"", b"ab"]),
}


@pytest.mark.parametrize("datatype", FIELDS)
def test_typed_contents_are_answered_raw(door: Serving, datatype: str) -> None:
    field, elements = FIELDS[datatype]
    message = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", id="typed")
    sent = message.inputs.add(name="IN", datatype=datatype, shape=[1, 2])
    getattr(sent.contents, field).extend(elements)
    with door.stub() as stub:
        response = stub.ModelInfer(message)
    if datatype == "BYTES":
        expected = b"\0\0\0\0\x02\0\0\0ab"
    else:
        expected = np.array(elements, dtype=NUMPY_DTYPES[datatype]).tobytes()
    assert list(response.raw_output_contents) == [expected]
    assert not response.outputs[0].HasField("contents")
    assert (response.id, response.model_version) == ("typed", "1")


def test_outputs_come_in_the_order_asked_for_and_ids_come_back(client: Any) -> None:
    left = np.arange(32, dtype=np.int32).reshape(2, 16)
    right = np.full((2, 16), 7, dtype=np.int32)
    inputs = [tensor(triton, "INPUT1", right, "INT32"), tensor(triton, "INPUT0", left, "INT32")]
    for names in (["OUTPUT0", "OUTPUT1"], ["OUTPUT1", "OUTPUT0"], ["OUTPUT1"], []):
        outputs = [triton.InferRequestedOutput(name) for name in names] or None
        result = client.infer("simple", inputs, outputs=outputs, request_id=f"id {names}", parameters={"mine": "é", "n": 3})
        response = result.get_response()
        assert [output.name for output in response.outputs] == (names or ["OUTPUT0", "OUTPUT1"])
        assert response.id == f"id {names}"
        assert response.model_name == "simple"
        if "OUTPUT0" in names:
            assert (result.as_numpy("OUTPUT0") == left + right).all()
        if "OUTPUT1" in names:
            assert (result.as_numpy("OUTPUT1") == left - right).all()


def test_scalars_fixed_and_free_shapes(client: Any) -> None:
    one, two = np.array(1.5, dtype=np.float32), np.array(2.0, dtype=np.float32)
    total = client.infer("scalars", [tensor(triton, "a", one, "FP32"), tensor(triton, "b", two, "FP32")])
    assert (total.as_numpy("sum"), list(total.get_output("sum").shape)) == (3.5, [])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert (client.infer("fixed", [tensor(triton, "x", matrix, "FP32")]).as_numpy("y") == matrix.T).all()
    for shape in ((1, 1, 1), (2, 3, 5), (8, 7, 1), (1, 0, 4)):
        cube = np.random.default_rng(0).random(shape, dtype=np.float32)
        answer = client.infer("free", [tensor(triton, "x", cube, "FP32")]).as_numpy("y")
        assert answer.shape == shape
        assert (answer == cube).all()


def test_many_at_once_by_callback(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(100):
        rows = np.full((1 + number % 8, 16), number, dtype=np.int32)
        inputs = [tensor(triton, "INPUT0", rows, "INT32"), tensor(triton, "INPUT1", rows, "INT32")]
        client.async_infer(
            "simple", inputs, lambda result, error: answers.put((result, error)), request_id=str(number), client_timeout=30
        )
    seen = set()
    for _ in range(100):
        result, error = answers.get(timeout=30)
        assert error is None
        number = int(result.get_response().id)
        seen.add(number)
        assert result.as_numpy("OUTPUT0").shape == (1 + number % 8, 16)
        assert (result.as_numpy("OUTPUT0") == 2 * number).all()
        assert (result.as_numpy("OUTPUT1") == 0).all()
    assert len(seen) == 100


def test_the_asyncio_client(door: Serving) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(door.grpc_address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("simple")
            rows = [np.full((1, 16), number, dtype=np.int32) for number in range(40)]
            calls = [
                client.infer("simple", [tensor(triton_aio, "INPUT0", row, "INT32"), tensor(triton_aio, "INPUT1", row, "INT32")])
                for row in rows
            ]
            for row, result in zip(rows, await asyncio.gather(*calls), strict=True):
                assert (result.as_numpy("OUTPUT0") == 2 * row).all()

    asyncio.run(main())


def test_descriptions(client: Any) -> None:
    server = client.get_server_metadata()
    assert server.name == "triton"
    assert "statistics" in server.extensions
    assert "system_shared_memory" not in server.extensions
    metadata = client.get_model_metadata("simple")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("simple", ["1"], "onnxruntime_onnx")
    inputs = [(item.name, item.datatype, list(item.shape)) for item in metadata.inputs]
    assert inputs == [("INPUT0", "INT32", [-1, 16]), ("INPUT1", "INT32", [-1, 16])]
    assert [item.name for item in metadata.outputs] == ["OUTPUT0", "OUTPUT1"]
    config = client.get_model_config("simple").config
    assert (config.name, config.max_batch_size) == ("simple", 8)
    assert list(config.input[0].dims) == [16]
    assert config.HasField("dynamic_batching")
    fixed = client.get_model_config("fixed").config
    assert (fixed.max_batch_size, fixed.HasField("dynamic_batching")) == (0, False)
    assert list(client.get_model_metadata("scalars").inputs[0].shape) == []


def test_readiness_of_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "2")
    assert not client.is_model_ready("nobody")


def test_the_index(client: Any) -> None:
    rows = client.get_model_repository_index().models
    assert {row.state for row in rows} == {"READY"}
    assert {"simple", "identity_bf16", "slow"} <= {row.name for row in rows}
    assert [row.version for row in rows if row.name == "simple"] == ["1"]


def test_statistics_add_up(door: Serving) -> None:
    ones = np.ones((2, 16), dtype=np.int32).tobytes()
    good = {"INPUT0": ("INT32", [2, 16], ones), "INPUT1": ("INT32", [2, 16], ones)}
    bad = {"INPUT0": ("INT32", [2, 16], ones)}
    with door.stub() as stub:
        before = counts(stub, "counted")
        for _ in range(5):
            stub.ModelInfer(infer_message("counted", good))
        for _ in range(3):
            with pytest.raises(Exception, match="expected 2 inputs"):
                stub.ModelInfer(infer_message("counted", bad))
        after = counts(stub, "counted")
        assert [now - then for now, then in zip(after, before, strict=True)] == [5, 3, 10, 5]
        (row,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="counted")).model_stats
        stats = row.inference_stats
        assert {stats.queue.count, stats.compute_input.count, stats.compute_infer.count, stats.compute_output.count} == {
            stats.success.count
        }
        parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
        assert 0 < parts <= stats.success.ns
        (sizes,) = row.batch_stats
        assert (sizes.batch_size, sizes.compute_infer.count) == (2, row.execution_count)
        everything = stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
        assert {"counted", "simple", "slow"} <= {entry.name for entry in everything}
