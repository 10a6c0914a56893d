"""Many callers at once, of every size, shape and version, some of whom leave or are in a hurry: every answer is its own."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import QUICK, put, put_fake, put_identity, put_others, put_simple, scaling
from tests.server.serving import Serving, infer_message, until
from tests.server.targets import gauge

CHANNELS, CALLERS, CALLS = 4, 32, 60
EVERYTHING = QUICK + '[versions]\npolicy = "all"\n'
Question = tuple[pb.ModelInferRequest, list[bytes]]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("mixed")
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 300.0, max_batch=16)
    put_fake(repository, "late", 20_000.0, max_batch=8, queue="early_drop = false")
    put_simple(repository)
    put_others(repository)
    put_identity(repository, "BYTES")
    for version in (1, 2, 3):
        put(repository, "scaling", version, {"model.onnx": scaling(float(version))}, EVERYTHING if version == 1 else None)
    server = Serving(repository, home, data_plane=plane)
    try:
        yield server
    finally:
        server.stop()


def _rows(rng: random.Random, *shape: int) -> Any:
    return np.frombuffer(rng.randbytes(4 * int(np.prod(shape))), np.int32).reshape(shape).astype(np.float32)


def _echo(rng: random.Random) -> Question:
    sent = _rows(rng, rng.randint(1, 8), 4)
    model = rng.choice(("echo", "echo", "late"))
    return infer_message(model, {"x": ("FP32", list(sent.shape), sent.tobytes())}), [sent.tobytes()]


def _typed(rng: random.Random) -> Question:
    """The same numbers in the field of their type."""
    sent = _rows(rng, rng.randint(1, 4), 4)
    message = pb.ModelInferRequest(model_name="echo")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=sent.shape)
    tensor.contents.fp32_contents.extend(sent.ravel().tolist())
    return message, [sent.tobytes()]


def _free(rng: random.Random) -> Question:
    """Rows that may only be gathered with their like."""
    sent = _rows(rng, rng.randint(1, 4), rng.choice((1, 2, 3, 500)), rng.choice((1, 2, 200)))
    return infer_message("free", {"x": ("FP32", list(sent.shape), sent.tobytes())}), [sent.tobytes()]


def _strings(rng: random.Random) -> Question:
    texts = [rng.randbytes(rng.choice((0, 1, 7, 1500))).hex().encode() for _ in range(rng.choice((1, 2, 4)))]
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return infer_message("identity_bytes", {"IN": ("BYTES", [1, len(texts)], raw)}), [raw]


def _simple(rng: random.Random) -> Question:
    rows = rng.randint(1, 4)
    one, other = (np.array([[rng.randrange(10**6) for _ in range(16)] for _ in range(rows)], np.int32) for _ in range(2))
    inputs = {"INPUT0": ("INT32", [rows, 16], one.tobytes()), "INPUT1": ("INT32", [rows, 16], other.tobytes())}
    message, answers = infer_message("simple", inputs), [(one + other).tobytes(), (one - other).tobytes()]
    if rng.random() < 0.5:
        message.outputs.add(name="OUTPUT1")
        return message, answers[1:]
    return message, answers


def _version(rng: random.Random) -> Question:
    version, rows = rng.choice((1, 2, 3)), rng.randint(1, 8)
    sent = np.array([[rng.randrange(1000)] for _ in range(rows)], np.float32)
    message = infer_message("scaling", {"x": ("FP32", [rows, 1], sent.tobytes())}, model_version=str(version))
    return message, [(sent * version).tobytes(), np.full((rows, 1), version, np.float32).tobytes()]


QUESTIONS = (_echo, _echo, _typed, _free, _strings, _simple, _version)
ENDINGS = {"answered", "cancel: left", "hurry: DEADLINE_EXCEEDED", "hurry: UNAVAILABLE", "timeout: UNAVAILABLE"}
"""Triton's code for its own timeout is UNAVAILABLE, and so is ours."""


async def _ask(stub: Any, rng: random.Random, name: str) -> str:
    """How one call ended. Raises: AssertionError for an answer that is another's."""
    message, expected = rng.choice(QUESTIONS)(rng)
    message.id = name
    way = rng.choice(("wait", "wait", "wait", "cancel", "hurry", "timeout"))
    if way == "timeout":
        message.parameters["timeout"].int64_param = rng.choice((1, 2000, 20_000))
    call = stub.ModelInfer(message, timeout=rng.choice((0.001, 0.01, 0.03)) if way == "hurry" else 60)
    if way == "cancel":
        await asyncio.sleep(rng.choice((0, 0.0005, 0.005, 0.02)))
        call.cancel()
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return f"{way}: {error.code().name}"
    except asyncio.CancelledError:
        return f"{way}: left"
    assert response.id == name
    assert list(response.raw_output_contents) == expected, message.model_name
    return "answered"


def test_every_answer_is_its_own(mixed: Serving) -> None:
    ended: Counter[str] = Counter()

    async def caller(stub: Any, number: int) -> None:
        rng = random.Random(number)
        for call in range(CALLS):
            ended[await _ask(stub, rng, f"{number}/{call}")] += 1

    async def main() -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels = [grpc.aio.insecure_channel(mixed.grpc_address, own) for _ in range(CHANNELS)]
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        await asyncio.gather(*(caller(stubs[number % CHANNELS], number) for number in range(CALLERS)))
        for channel in channels:
            await channel.close()

    asyncio.run(main())
    assert ended.total() == CALLERS * CALLS
    assert ended["answered"] > CALLERS * CALLS / 3
    assert set(ended) <= ENDINGS, ended
    assert {"cancel: left", "hurry: DEADLINE_EXCEEDED", "timeout: UNAVAILABLE"} <= set(ended), ended
    for name in ("podium_inflight_requests", "podium_queue_requests"):
        until(lambda name=name: gauge(mixed, name) == 0, f"{name} are all over")  # type: ignore[misc]
