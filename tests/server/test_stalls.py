"""Callers that are slow on purpose, or hold what they do not use: others are served, and what they hold is bounded."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.server.attacks import Neighbour, Target, verdict
from tests.server.frames import (
    GOAWAY,
    HEADERS,
    PREFACE,
    SETTINGS,
    Peer,
    block,
    call_headers,
    data_frames,
    frame,
    message,
    number,
)
from tests.server.models import graph, put, put_fake
from tests.server.serving import Serving, infer_message, until
from tests.server.targets import GRPC_WORDS, gauge, inference, nothing_is_left, own, question

WIDTH = 65_536
WIDE_BYTES = 4 * WIDTH
UNREAD = 150
MOST_COPIES = {"python": 6, "native": 3}
"""Of answers that nobody reads, and of how many there may be: in a batch, in a message, in what gRPC keeps for each call."""

HALF_OPEN = 2000
DRIPPING = 200
STREAMS = 50
TURNED_AWAY = (7, 11)
"""REFUSED_STREAM, after which a caller may try again at once; C-core says ENHANCE_YOUR_CALM."""

WIDE = message(infer_message("wide", {"x": ("FP32", [1, 1], b"\0\0\x80\x3f")}).SerializeToString())


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("slow")
    repository = home / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 500.0, max_batch=16)
    put_fake(repository, "held", 300_000.0, max_batch=64, queue="early_drop = false")
    ones = numpy_helper.from_array(np.ones(WIDTH, np.float32), "ones")
    nodes = [helper.make_node("Mul", ["x", "ones"], ["y"])]
    wide = graph(nodes, {"x": ("FP32", ["N", 1])}, {"y": ("FP32", ["N", WIDTH])}, ones)
    put(repository, "wide", 1, {"model.onnx": wide}, "max_batch = 4\n[warmup]\nruns = 1\n")
    limits = {"max_concurrent_streams": STREAMS}
    server = Serving(repository, home, data_plane=plane, max_message_bytes=4_000_000, limits=limits)
    try:
        yield server
    finally:
        server.stop(errors=GRPC_WORDS[plane])


@pytest.fixture(scope="module")
def target(slow: Serving) -> Target:
    return inference(slow)


@pytest.fixture(scope="module")
def neighbour(target: Target) -> Iterator[Neighbour]:
    with Neighbour(target) as made:
        yield made


def test_answers_that_nobody_reads_are_bounded_and_freed(
    slow: Serving, target: Target, neighbour: Neighbour, plane: str
) -> None:
    """No window at all (CVE-2019-9517): nothing can be sent, so everything waits in the server."""
    before = target.memory_bytes()
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(target.address, window=0)) for _ in range(UNREAD // STREAMS)]
        for peer in peers:
            peer.send(b"".join(Peer.opening(stream) + data_frames(stream, WIDE) for stream in range(1, 2 * STREAMS, 2)))
        until(lambda: gauge(slow, "podium_inflight_requests") <= 1, "all have run")
        neighbour.answered_again()
        assert target.memory_bytes() - before < MOST_COPIES[plane] * UNREAD * WIDE_BYTES
        # a window that opens byte by byte is a reader as well
        peers[0].send(frame(8, 0, 1, number(1)) * 10)
        peers[0].read_until(lambda: peers[0].over or len(peers[0].replies[1].body) >= 10, 10)
        assert peers[0].over or len(peers[0].replies[1].body) == 10
        for peer in peers[1:]:
            peer.reset(1)
    neighbour.answered_again()
    nothing_is_left(slow)
    middle = target.memory_bytes()
    for _ in range(6):
        with Peer(target.address, window=0) as peer:
            peer.send(b"".join(Peer.opening(stream) + data_frames(stream, WIDE) for stream in range(1, 2 * STREAMS, 2)))
            until(lambda: gauge(slow, "podium_inflight_requests") <= 1, "all have run")
        nothing_is_left(slow)
    # What was freed is used again: one copy kept of each round's answers would be three times as much.
    # C-core drops the answers of a closed connection some time after the call has ended for us.
    until(lambda: target.memory_bytes() - middle < STREAMS * WIDE_BYTES * 2, "what nobody read is freed")


def test_headers_and_bodies_that_drip_hold_nobody_up(slow: Serving, target: Target, neighbour: Neighbour) -> None:
    body = message(question(7).SerializeToString())
    with ExitStack() as stack:
        headers = [stack.enter_context(Peer(target.address)) for _ in range(DRIPPING)]
        bodies = [stack.enter_context(Peer(target.address)) for _ in range(DRIPPING)]
        begun = Peer.opening(1)
        for peer in bodies:
            peer.send(begun)
        for place in range(40):
            for peer in headers:
                peer.send(begun[place : place + 1])
            for peer in bodies:
                peer.send(data_frames(1, body[place : place + 1], end=False))
        neighbour.answered_again()
        # slow is no crime: what does come to its end is answered
        for peer in (headers[0], bodies[0]):
            rest = begun[40:] + data_frames(1, body) if peer is headers[0] else data_frames(1, body[40:])
            peer.send(rest)
            assert own(7, peer.reply(1).body[5:])
    neighbour.answered_again()
    nothing_is_left(slow)


def test_thousands_of_connections_that_say_nothing(slow: Serving, target: Target, neighbour: Neighbour) -> None:
    before = target.memory_bytes()
    with ExitStack() as stack:
        for number_ in range(HALF_OPEN):
            part = (b"", PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS, 0, 0), PREFACE + frame(SETTINGS, 0, 0) + b"\0\0")
            stack.enter_context(Peer(target.address, preface=part[number_ % 5]))
        neighbour.answered_again(20)
        assert target.memory_bytes() - before < HALF_OPEN * 100_000
    neighbour.answered_again()
    nothing_is_left(slow)


def test_calls_beyond_the_limit_of_streams_are_refused_and_the_others_answered(target: Target, neighbour: Neighbour) -> None:
    with Peer(target.address) as peer:
        assert peer.drained()
        assert peer.settings[3] == STREAMS
        held = [(stream, question(stream, "held").SerializeToString()) for stream in range(1, 4 * STREAMS, 2)]
        peer.send(b"".join(Peer.opening(stream) + data_frames(stream, message(body)) for stream, body in held))
        answers = {stream: peer.reply(stream) for stream, _ in held if not peer.over}
        right = [stream for stream, reply in answers.items() if reply.status == "0" and own(stream, reply.body[5:])]
        refused = [stream for stream, reply in answers.items() if reply.reset in TURNED_AWAY or reply.status not in ("0", None)]
        assert peer.over or (len(right) >= STREAMS and len(right) + len(refused) == len(held))
    neighbour.answered_again()


def test_a_caller_that_says_goodbye_gets_what_it_asked_for(target: Target) -> None:
    with Peer(target.address) as peer:
        peer.call(1, message(question(5, "held").SerializeToString()))
        peer.send(frame(GOAWAY, 0, 0, number(0) + number(0)))
        assert own(5, peer.reply(1).body[5:])


def test_a_call_in_many_frames_is_a_call(target: Target) -> None:
    """Headers cut anywhere, one byte of data a frame, and empty ones among them."""
    parts = block(call_headers())
    frames = frame(HEADERS, 0, 1, parts[:1]) + frame(9, 0, 1, parts[1:20]) + frame(9, 4, 1, parts[20:])
    with Peer(target.address) as peer:
        peer.send(frames + data_frames(1, message(question(3).SerializeToString()), size=1))
        assert own(3, peer.reply(1).body[5:])
        assert verdict(peer) == "answered"
