"""Requests of different lengths through a whole server: padded, batched together, each answered for its own row."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from server.backends.fake import row_checksums
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from tests.server.models import QUICK, Shape, graph, put
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, counts, infer_message, refusal, until

SIZES = (16, 32, 64)
PAD = 7
IDS = TensorSpec("ids", "INT64", (-1,), pad_to=SIZES, pad_value=PAD)
MASK = TensorSpec("mask", "INT8", (-1,), optional=True, pad_to=(64,))
SIGNATURE = Signature("tokens", (IDS, MASK), (TensorSpec("sum", "INT64", (1,)),), 16)
PADDING = f"""
[[inputs]]
name = "ids"
pad_to = {list(SIZES)}
pad_value = {PAD}
[[inputs]]
name = "mask"
pad_to = [64]
"""
Tokens = NDArray[np.int64]


def put_tokens(repository: Path, name: str, fake: str, *, padding: str = PADDING, output: tuple[int, ...] = (1,)) -> None:
    """A model that answers each row with the checksum of all that it was given as that row, padding too."""
    inputs = [
        {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape, "optional": spec.optional}
        for spec in SIGNATURE.inputs
    ]
    file = {"inputs": inputs, "outputs": [{"name": "sum", "datatype": "INT64", "shape": output}]}
    settings = f"max_batch = 16\n{QUICK}[fake]\nrow_us = 0.0\n{fake}\n[queue]\nearly_drop = false\n{padding}"
    put(repository, name, 1, {"fake.json": json.dumps(file).encode()}, settings)


def put_mean(repository: Path, name: str) -> None:
    """The mean of a row's numbers where its mask is 1: a model that does not mind padding."""
    nodes = [
        helper.make_node("Mul", ["numbers", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"]),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
    ]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    free: tuple[str, Shape] = ("FP32", ["N", "L"])
    data = graph(nodes, {"numbers": free, "mask": free}, {"mean": ("FP32", ["N", 1])}, axis)
    settings = "max_batch = 16\n" + QUICK
    for tensor, padding in (("numbers", 1000.5), ("mask", 0)):
        settings += f'[[inputs]]\nname = "{tensor}"\npad_to = [8, 16]\npad_value = {padding}\n'
    put(repository, name, 1, {"model.onnx": data}, settings)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("ragged")
    repository = home / "repository"
    repository.mkdir()
    put_tokens(repository, "tokens", "t0_us = 2000.0")
    put_tokens(repository, "piped", 't0_us = 2000.0\ndevice = "accelerator"')
    put_tokens(repository, "slow", "t0_us = 1000000.0")
    put_tokens(repository, "counted", "t0_us = 100.0")
    put_tokens(repository, "cut", "t0_us = 100.0", output=(-1,))
    put_tokens(repository, "unsorted", "t0_us = 100.0", padding='[[inputs]]\nname = "ids"\npad_to = [32, 16]\n')
    put_mean(repository, "mean")
    models = ["tokens", "piped", "slow", "counted", "mean"]
    server = Serving(repository, home, data_plane=plane, control_mode="explicit", load_models=models)
    try:
        yield server
    finally:
        server.stop()


def message(model: str, ids: Tokens, mask: int | None = None, *, kind: str = "raw") -> pb.ModelInferRequest:
    """`mask`: its length. `kind`: how the tensors are written."""
    made = infer_message(model, {"ids": ("INT64", list(ids.shape), ids.tobytes())})
    if mask is not None:
        made.inputs.add(name="mask", datatype="INT8", shape=[len(ids), mask])
        made.raw_input_contents.append(np.ones((len(ids), mask), np.int8).tobytes())
    if kind == "typed":
        del made.raw_input_contents[:]
        made.inputs[0].contents.int64_contents.extend(ids.reshape(-1).tolist())
        if mask is not None:
            made.inputs[1].contents.int_contents.extend([1] * (len(ids) * mask))
    if kind == "odd":  # not for the native plane, which leaves it to the handlers
        made.parameters["sequence_id"].int64_param = 0
    return made


def expected(ids: Tokens, mask: int | None) -> list[int]:
    size = next(each for each in SIZES if each >= ids.shape[1])
    whole = {"ids": np.full((len(ids), size), PAD, np.int64)}
    whole["ids"][:, : ids.shape[1]] = ids
    if mask is not None:
        flags = np.zeros((len(ids), 64), np.int8)
        flags[:, :mask] = 1
        return [int(number) for number in row_checksums(SIGNATURE, {**whole, "mask": flags}, len(ids))]
    return [int(number) for number in row_checksums(SIGNATURE, whole, len(ids))]


def executions(serving: Serving, model: str, requests: int) -> int:
    """How many batches they were, once all of them are counted, which is after their answers."""
    with serving.stub() as stub:
        until(lambda: counts(stub, model)[0] == requests, "all are counted")
        _, failed, _, executed = counts(stub, model)
    assert failed == 0
    return executed


@pytest.mark.parametrize("model", ["tokens", "piped"])
def test_everybody_gets_the_answer_to_their_own_rows(serving: Serving, model: str) -> None:
    chance = random.Random(5)
    numbers = np.random.default_rng(5)

    async def main() -> int:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)

            async def caller() -> int:
                elements = 0
                for _ in range(12):
                    rows, length = chance.randint(1, 3), chance.choice((0, 1, 5, 15, 16, 17, 30, 32, 33, 64))
                    mask = chance.choice((None, None, 3, 64))
                    ids = numbers.integers(-(2**62), 2**62, (rows, length))
                    sent = message(model, ids, mask, kind=chance.choice(("raw", "raw", "typed", "odd")))
                    response = await stub.ModelInfer(sent, timeout=60)
                    assert np.frombuffer(response.raw_output_contents[0], np.int64).tolist() == expected(ids, mask)
                    assert list(response.outputs[0].shape) == [rows, 1]
                    elements += ids.size + rows * (mask or 0)
                return elements

            return sum(await asyncio.gather(*(caller() for _ in range(24))))

    elements = asyncio.run(main())
    assert executions(serving, model, 24 * 12) < 24 * 12
    page = scrape(serving)
    assert value(page, "podium_elements_total", model=model, version="1") == elements
    assert value(page, "podium_padding_elements_total", model=model, version="1") > 0


def test_a_masked_model_answers_as_if_nothing_had_been_padded(serving: Serving) -> None:
    chance = random.Random(3)
    rows = [np.array([[chance.randint(-50, 50) for _ in range(1 + at % 16)]], np.float32) for at in range(200)]

    async def main() -> list[float]:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)

            async def mean(row: NDArray[np.float32]) -> float:
                shape = list(row.shape)
                tensors = {"numbers": ("FP32", shape, row.tobytes()), "mask": ("FP32", shape, np.ones_like(row).tobytes())}
                response = await stub.ModelInfer(infer_message("mean", tensors), timeout=60)
                return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])

            return await asyncio.gather(*map(mean, rows))

    assert asyncio.run(main()) == pytest.approx([float(row.mean()) for row in rows], abs=1e-4)
    assert executions(serving, "mean", 200) < 200


def test_sizes_that_round_up_alike_share_a_batch(serving: Serving) -> None:
    with serving.stub() as stub:
        first = stub.ModelInfer.future(message("slow", np.ones((1, 3), np.int64)))
        version = frozenset({("model", "slow"), ("version", "1")})
        until(lambda: scrape(serving)["podium_inflight_requests", version] == 1, "the first is admitted")
        until(lambda: scrape(serving)["podium_queue_requests", version] == 0, "it is taken")
        sent = [np.full((1, length), length, np.int64) for length in (17, 20, 23, 26, 29, 32)]
        calls = [stub.ModelInfer.future(message("slow", ids)) for ids in sent]
        for call, ids in zip(calls, sent, strict=True):
            assert np.frombuffer(call.result().raw_output_contents[0], np.int64).tolist() == expected(ids, None)
        assert first.result().outputs[0].name == "sum"
    assert executions(serving, "slow", 7) == 2


def test_padding_is_counted(serving: Serving) -> None:
    """Of dimensions and of rows: three rows of 20 are executed as four of 32."""
    with serving.stub() as stub:
        stub.ModelInfer(message("counted", np.ones((3, 20), np.int64)))
        stub.ModelInfer(message("counted", np.ones((1, 16), np.int64), 64))
    until(lambda: ("podium_elements_total", VERSION) in scrape(serving), "the batches are counted")
    until(lambda: value(scrape(serving), "podium_rows_total", model="counted", version="1") == 4, "both are counted")
    page = scrape(serving)
    assert page["podium_elements_total", VERSION] == 60 + 16 + 64
    assert page["podium_padding_elements_total", VERSION] == 4 * 32 - 60


VERSION = frozenset({("model", "counted"), ("version", "1")})


@pytest.mark.parametrize("kind", ["raw", "typed", "odd"])
def test_sizes_above_the_largest_are_refused(serving: Serving, kind: str) -> None:
    with serving.stub() as stub:
        code, text = refusal(lambda: stub.ModelInfer(message("tokens", np.ones((2, 65), np.int64), kind=kind)))
    assert code == "INVALID_ARGUMENT"
    assert text == (
        "[request id: <id_unknown>] input 'ids' has size 65 in shape [2,65], but its size must be <= 64 for 'tokens'"
    )


def test_a_free_dimension_is_still_shown_as_free(serving: Serving) -> None:
    with serving.stub() as stub:
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="tokens"))
        config = stub.ModelConfig(pb.ModelConfigRequest(name="tokens")).config
    assert [list(tensor.shape) for tensor in metadata.inputs] == [[-1, -1], [-1, -1]]
    assert [list(tensor.dims) for tensor in config.input] == [[-1], [-1]]


def test_versions_that_cannot_be_padded_are_refused(serving: Serving) -> None:
    with serving.stub() as stub:
        _, cut = refusal(lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="cut"), timeout=60))
        _, unsorted = refusal(
            lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="unsorted"), timeout=60)
        )
    assert "open: output 'sum' has the shape [-1]: with pad_to every dimension of an output must be fixed" in cut
    assert "pad_to of 'ids' must be ascending and distinct" in unsorted
