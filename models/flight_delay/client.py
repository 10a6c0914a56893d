"""Replays flights against a server through `tritonclient`, as an application would, and times every call.

A closed loop: as many callers as asked for, each with one request on its way, so a slow server is not overrun and its
latency is that of this many callers. What is timed is the client's whole call, its own cost included. This file knows
nothing of Podium: any server of the Open Inference Protocol will do.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from models.flight_delay.replay import Replayed

OUTPUT = "probability"
_CALL_TIMEOUT_S = 30.0
# straight to the address given, whatever proxy the environment names
_CHANNEL = (("grpc.enable_http_proxy", 0),)

Encoded = list[Any]
"""The inputs of one request as tritonclient takes them (it has no types): a list of `InferInput`."""


@dataclass(frozen=True)
class Outcome:
    """What came back. Shapes: `probability` (NaN where the call failed) and `latency_s` are `[requests]`, in their order.

    `versions` are those that answered; `errors` are the different texts of failures. `wall_s` is the whole replay's time,
    `cpu_s` what this process computed in it.
    """

    probability: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    versions: frozenset[str]
    errors: tuple[str, ...]
    wall_s: float
    cpu_s: float

    @property
    def failed(self) -> int:
        """Requests that were not answered with a probability."""
        return int(np.isnan(self.probability).sum())


@dataclass(frozen=True)
class Counted:
    """The server's own account (ModelStatistics), over all versions: rows answered, and batches executed for them."""

    rows: int
    executions: int


def encode(requests: Sequence[Replayed]) -> list[Encoded]:
    """Every request as tritonclient's inputs: about 0.2 ms each, which is why it is done before the clock starts."""
    return [_encode(request) for request in requests]


def replay(
    address: str, model: str, requests: Sequence[Encoded], *, concurrency: int, progress: Callable[[int], object]
) -> tuple[Outcome, Counted]:
    """Send every request once, `concurrency` at a time, in their order; then ask the server for its statistics.

    A call that fails is counted and the replay goes on. `progress` is called with 1 after each.
    Raises: InferenceServerException where the server does not answer before the replay or after it.
    """

    async def send(call: Callable[[int], Any]) -> None:
        await _in_turn(call, range(len(requests)), concurrency)

    return asyncio.run(_replay(address, model, requests, send, progress))


def replay_in_time(
    address: str,
    model: str,
    requests: Sequence[Encoded],
    instants: Sequence[int],
    happen: Callable[[int], None],
    *,
    concurrency: int,
    progress: Callable[[int], object],
) -> tuple[Outcome, Counted]:
    """As `replay`, but the requests of one instant are sent together, after `happen` has made the world what it was then, and
    answered before the next. Raises: InferenceServerException, and whatever `happen` does.
    """
    edges = [0, *(np.flatnonzero(np.diff(instants)) + 1).tolist(), len(requests)] if len(requests) else [0]

    async def send(call: Callable[[int], Any]) -> None:
        for first, last in pairwise(edges):
            await asyncio.to_thread(happen, int(instants[first]))
            await _in_turn(call, range(first, last), concurrency)

    return asyncio.run(_replay(address, model, requests, send, progress))


async def _in_turn(call: Callable[[int], Any], turns: range, concurrency: int) -> None:
    """Call for every turn, so many at once."""
    waiting = iter(turns)

    async def caller() -> None:
        for index in waiting:
            await call(index)

    await asyncio.gather(*(caller() for _ in range(min(concurrency, len(turns)))))


async def _replay(
    address: str,
    model: str,
    requests: Sequence[Encoded],
    send: Callable[[Callable[[int], Any]], Any],
    progress: Callable[[int], object],
) -> tuple[Outcome, Counted]:
    results: list[Any] = [None] * len(requests)
    latency_s = np.zeros(len(requests))

    async def call(index: int) -> None:
        began = time.perf_counter()
        try:
            results[index] = await client.infer(model, requests[index], client_timeout=_CALL_TIMEOUT_S)
        except InferenceServerException as error:
            results[index] = error
        latency_s[index] = time.perf_counter() - began
        progress(1)

    async with triton_aio.InferenceServerClient(address, channel_args=_CHANNEL) as client:
        await client.is_server_live()  # the connection is made before the clock starts
        # a collection that walks every encoded request would stop all callers for a tenth of a second
        gc.freeze()
        try:
            began, computed = time.perf_counter(), time.process_time()
            await send(call)
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - computed
        finally:
            gc.unfreeze()
        statistics = await client.get_inference_statistics(model)
    return _outcome(results, latency_s, wall_s, cpu_s), _counted(statistics)


def _encode(request: Replayed) -> Encoded:
    encoded = []
    for name, array in request.inputs.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        encoded.append(tensor)
    return encoded


def _outcome(results: Sequence[Any], latency_s: NDArray[np.float64], wall_s: float, cpu_s: float) -> Outcome:
    probability = np.full(len(results), np.nan)
    versions, errors = set(), set()
    for index, result in enumerate(results):
        if isinstance(result, InferenceServerException):
            errors.add(str(result))
        else:
            probability[index] = result.as_numpy(OUTPUT)[0, 0]
            versions.add(result.get_response().model_version)
    return Outcome(probability, latency_s, frozenset(versions), tuple(sorted(errors)), wall_s, cpu_s)


def _counted(statistics: Any) -> Counted:
    versions = statistics.model_stats
    return Counted(sum(each.inference_count for each in versions), sum(each.execution_count for each in versions))
