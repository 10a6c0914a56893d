"""Callers that leave, in every phase of a call, and connections that do nothing: nobody else notices, and nothing is left."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.server.attacks import Neighbour, Target
from tests.server.frames import Peer, data_frames, message
from tests.server.serving import Serving, counts, until
from tests.server.targets import attacked_server, gauge, inference, nothing_is_left, own, question


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    with attacked_server(tmp_path_factory.mktemp("left"), plane, slow=300_000.0) as server:
        yield server


@pytest.fixture(scope="module")
def target(left: Serving) -> Target:
    return inference(left)


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


BODY = message(question(1).SerializeToString())
PHASES = {
    "headers": Peer.opening(1),
    "half a prefix": Peer.opening(1) + data_frames(1, BODY[:3], end=False),
    "half a message": Peer.opening(1) + data_frames(1, BODY[:20], end=False),
    "a message": Peer.opening(1) + data_frames(1, BODY, end=False),
    "a call": Peer.opening(1) + data_frames(1, BODY),
    "half of its headers": Peer.opening(1)[:40],
    "a stream": Peer.opening(1, path="/inference.GRPCInferenceService/ModelStreamInfer") + data_frames(1, BODY, end=False),
    "a slow lane": Peer.opening(1, path="/inference.GRPCInferenceService/ServerReady") + data_frames(1, message(b"")),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["reset", "leave", "abort"])
def test_whoever_leaves_in_any_phase_leaves_nothing(
    left: Serving, target: Target, neighbour: Neighbour, phase: str, way: str
) -> None:
    rng = random.Random(7)
    for _ in range(25):
        peer = Peer(target.address)
        peer.send(PHASES[phase])
        time.sleep(rng.choice((0.0, 0.0, 0.0005, 0.002)))
        if way == "reset":
            if phase != "half of its headers":
                peer.reset(1)
                assert peer.drained()
            peer.leave()
        else:
            getattr(peer, way)()
    neighbour.answered_again()
    nothing_is_left(left)


@pytest.mark.parametrize("way", ["reset", "leave", "abort"])
def test_those_in_the_same_batch_get_their_own(left: Serving, way: str) -> None:
    """Some leave while they wait, some while their batch runs; whoever stays has the answer to its own question."""

    async def main(peers: list[Peer]) -> None:
        async with grpc.aio.insecure_channel(left.grpc_address) as channel:
            ask: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            held = ask(question(0, "slow").SerializeToString(), timeout=60)
            await asyncio.to_thread(until, lambda: gauge(left, "podium_inflight_requests") >= 1, "the device is busy")
            stay = [ask(question(tag, "slow").SerializeToString(), timeout=60) for tag in range(1, 9)]
            for number_, peer in enumerate(peers):
                peer.call(1, message(question(1000 + number_, "slow").SerializeToString()))
            for peer in peers[::2]:
                go(peer)
            assert own(0, await held)
            await asyncio.sleep(0.05)
            for peer in peers[1::2]:
                go(peer)
            for tag, answer in enumerate(await asyncio.gather(*stay), 1):
                assert own(tag, answer)

    def go(peer: Peer) -> None:
        if way == "reset":
            peer.reset(1)
        else:
            getattr(peer, way)()

    with left.stub() as stub:
        before = counts(stub, "slow")
        with ExitStack() as stack:
            asyncio.run(main([stack.enter_context(Peer(left.grpc_address)) for _ in range(6)]))
        until(lambda: gauge(left, "podium_inflight_requests") <= 1, "nothing waits")
        after = counts(stub, "slow")
    # the held one is one batch, the others were one or two
    assert after[3] - before[3] <= 3
    assert after[0] - before[0] >= 9
    nothing_is_left(left)
