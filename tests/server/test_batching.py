"""Many callers at once: each gets exactly its own rows, whatever happens to its neighbours."""

import asyncio
import random
from typing import Any

import grpc
import numpy as np
import pytest

from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.models import LOOKUP_ROWS
from tests.server.serving import Serving, counts, infer_message

CALLERS = 64
CALLS = 20


def rows_of(tag: int, rows: int, *, broken: bool = False) -> Any:
    made = np.full((rows, 4), tag, dtype=np.float32)
    made[:, 1] = np.arange(rows)
    if broken:
        made[:, 2:] = (np.nan, np.inf)
    return made


async def call(stub: Any, tag: int, kind: str, rows: int) -> str:
    sent = rows_of(tag, rows, broken=kind == "nan")
    shape = [rows, 5 if kind == "invalid" else 4]
    message = infer_message("echo", {"x": ("FP32", shape, sent.tobytes())}, id=str(tag))
    timeout_s = {"late": random.uniform(0.0005, 0.01), "cancelled": 20.0}.get(kind, 60.0)
    running = stub.ModelInfer(message, timeout=timeout_s)
    if kind == "cancelled":
        await asyncio.sleep(random.uniform(0.0, 0.005))
        running.cancel()
    try:
        response = await running
    except asyncio.CancelledError:
        assert kind == "cancelled"
        return "cancelled"
    except grpc.aio.AioRpcError as error:
        return {
            ("invalid", "INVALID_ARGUMENT"): "invalid",
            ("late", "DEADLINE_EXCEEDED"): "late",
            ("late", "UNAVAILABLE"): "late",
        }[kind, error.code().name]
    assert response.id == str(tag)
    assert list(response.outputs[0].shape) == [rows, 4]
    assert response.raw_output_contents[0] == sent.tobytes()
    return "answered"


def test_everybody_gets_exactly_their_own_rows(serving: Serving) -> None:
    random.seed(7)

    async def main() -> list[str]:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub = GRPCInferenceServiceStub(channel)

            async def caller(number: int) -> list[str]:
                kinds = ["good"] * 6 + ["nan", "invalid", "cancelled", "late"]
                return [
                    await call(stub, number * CALLS + turn, random.choice(kinds), random.randint(1, 16))
                    for turn in range(CALLS)
                ]

            return [kind for kinds in await asyncio.gather(*map(caller, range(CALLERS))) for kind in kinds]

    with serving.stub() as stub:
        before = counts(stub, "echo")
        outcomes = asyncio.run(main())
        # everything in front of this one has been answered and counted before it is
        stub.ModelInfer(infer_message("echo", {"x": ("FP32", [1, 4], bytes(16))}))
        after = settled(stub, before, len(outcomes) + 1)
    ok, failed, rows, executions = (now - then for now, then in zip(after, before, strict=True))
    answered = outcomes.count("answered") + 1
    assert len(outcomes) == CALLERS * CALLS
    # a caller that left as its answer was on the way was answered all the same; one that left before its request had
    # arrived was never counted
    gone = outcomes.count("cancelled") + outcomes.count("late")
    assert answered <= ok <= answered + gone
    assert outcomes.count("invalid") <= failed
    assert len(outcomes) + 1 - gone <= ok + failed <= len(outcomes) + 1
    assert executions < ok
    assert rows >= ok
    assert outcomes.count("answered") > CALLERS * CALLS / 2


def settled(stub: Any, before: tuple[int, ...], calls: int) -> tuple[int, int, int, int]:
    """The statistics once two readings agree, or everything is counted."""
    last = counts(stub, "echo")
    for _ in range(50):
        following = counts(stub, "echo")
        if following == last or following[0] + following[1] - before[0] - before[1] == calls:
            return following
        last = following
    raise AssertionError("the statistics never come to rest")


def test_one_who_cannot_be_executed_fails_alone(serving: Serving) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            stub = GRPCInferenceServiceStub(channel)

            async def lookup(number: int) -> None:
                rows = 1 + number % 3
                index = np.full((rows, 1), number % LOOKUP_ROWS, dtype=np.int64)
                if bad := number % 7 == 0:
                    index[-1] = LOOKUP_ROWS + number
                ask = stub.ModelInfer(infer_message("lookup", {"index": ("INT64", [rows, 1], index.tobytes())}), timeout=60)
                if bad:
                    with pytest.raises(grpc.aio.AioRpcError, match="executing model 'lookup' failed"):
                        await ask
                else:
                    found = np.frombuffer((await ask).raw_output_contents[0], np.float32)
                    assert found.tolist() == [10.0 * (number % LOOKUP_ROWS)] * rows

            await asyncio.gather(*map(lookup, range(210)))

    with serving.stub() as stub:
        before = counts(stub, "lookup")
        asyncio.run(main())
        after = counts(stub, "lookup")
    ok, failed, rows, executions = (now - then for now, then in zip(after, before, strict=True))
    assert (ok, failed) == (180, 30)
    assert rows == sum(1 + number % 3 for number in range(210) if number % 7)
    assert executions < 210
