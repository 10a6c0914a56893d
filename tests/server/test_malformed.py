"""Bytes that no client library would send: a clean status, a server that is alive, and neighbours that notice nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import grpc_service_pb2 as pb
from tests.server.frames import Header, Peer, Reply
from tests.server.frames import message as framed
from tests.server.serving import Serving, infer_message, refusal

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ROW = np.arange(4, dtype=np.float32).tobytes()
GOOD = infer_message("echo", {"x": ("FP32", [1, 4], ROW)}, id="good")
CLEAN = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE"}


@pytest.fixture(scope="module")
def channel(serving: Serving) -> Iterator[grpc.Channel]:
    with serving.channel() as channel:
        yield channel


def raw(channel: Any, method: str = METHOD) -> Any:
    """A method that takes and gives bytes."""
    return channel.unary_unary(method)


def send(channel: grpc.Channel, data: bytes, **options: Any) -> tuple[str, str]:
    """Code and text of a ModelInfer call with this body."""
    try:
        raw(channel)(data, timeout=30, **options)
    except grpc.RpcError as error:
        return error.code().name, str(error.details())
    return "OK", ""


def answers(channel: grpc.Channel) -> bool:
    response = pb.ModelInferResponse.FromString(raw(channel)(GOOD.SerializeToString(), timeout=30))
    ready = raw(channel, "/inference.GRPCInferenceService/ServerReady")(b"", timeout=30)
    return list(response.raw_output_contents) == [ROW] and bool(pb.ServerReadyResponse.FromString(ready).ready)


def shaped(shape: list[int], raw: bytes = ROW, model: str = "free") -> bytes:
    return infer_message(model, {"x": ("FP32", shape, raw)}).SerializeToString()


def string(raw: bytes, shape: list[int]) -> bytes:
    return infer_message("identity_bytes", {"IN": ("BYTES", shape, raw)}).SerializeToString()


HUGE = 2**62
BODIES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "NOT_FOUND", "Request for unknown model: '' is not found"),
    "overflow": (shaped([1, HUGE, 4]), "INVALID_ARGUMENT", f"Expected {16 * HUGE}, got 16"),
    "overflow of rows": (shaped([HUGE, 1, 4]), "INVALID_ARGUMENT", "batch-size must be <= 8"),
    "wraps to the right size": (shaped([1, 2**62, 2**2 + 1]), "INVALID_ARGUMENT", "byte size mismatch"),
    "product of 2^64": (shaped([1, 2**32, 2**32], b""), "INVALID_ARGUMENT", "byte size mismatch"),
    "negative": (shaped([1, -1, 4]), "INVALID_ARGUMENT", "has a negative dimension in shape [1,-1,4]"),
    "negative twice": (shaped([1, -2, -2]), "INVALID_ARGUMENT", "has a negative dimension"),
    "negative rows": (shaped([-1, 1, 4]), "INVALID_ARGUMENT", "has a negative dimension"),
    "huge with a tiny body": (shaped([8, 2**20, 2**10]), "INVALID_ARGUMENT", "byte size mismatch"),
    "no shape": (shaped([]), "INVALID_ARGUMENT", "has no shape but model requires batch dimension"),
    "a thousand dimensions": (shaped([1] * 1000), "INVALID_ARGUMENT", "unexpected shape"),
    "string cut in its length": (string(b"\x05\0", [1, 1]), "INVALID_ARGUMENT", "incomplete string length indicator"),
    "string cut": (string(b"\x05\0\0\0ab", [1, 1]), "INVALID_ARGUMENT", "incomplete string data: expected 5 bytes, got 2"),
    "string of 4 GB": (string(b"\xff\xff\xff\xffab", [1, 1]), "INVALID_ARGUMENT", "incomplete string data"),
    "a billion strings": (string(b"\0\0\0\0" * 4, [1, 10**9]), "INVALID_ARGUMENT", "got 4"),
    "a path": (shaped([1, 4], model="../../etc/passwd"), "NOT_FOUND", "'../../etc/passwd' is not found"),
    "a zero byte": (shaped([1, 4], model="echo\0"), "NOT_FOUND", "is not found"),
}


@pytest.mark.parametrize("body", BODIES)
def test_hostile_tensors_are_refused(channel: grpc.Channel, body: str) -> None:
    data, code, text = BODIES[body]
    got, details = send(channel, data)
    assert (got, text in details) == (code, True), details
    assert answers(channel)


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\x7f", GOOD.SerializeToString()[:-3], b"\x08" * 9])
def test_what_is_no_message_is_refused(channel: grpc.Channel, garbage: bytes) -> None:
    refused = ("INVALID_ARGUMENT", "the body of the call cannot be parsed as its request message")
    assert send(channel, garbage) == refused
    for method in (
        "/inference.GRPCInferenceService/ModelStatistics",
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/grpc.health.v1.Health/Check",
    ):
        with pytest.raises(grpc.RpcError) as told:
            raw(channel, method)(b"\xff" * 20, timeout=30)
        assert (told.value.code().name, told.value.details()) == refused
    assert answers(channel)


def test_names_that_are_no_utf8_are_refused(channel: grpc.Channel) -> None:
    assert send(channel, b"\x0a\x02\xff\xfe")[0] == "INVALID_ARGUMENT"
    assert answers(channel)


def test_messages_beyond_the_limit_are_refused(channel: grpc.Channel) -> None:
    code, text = send(channel, shaped([1, 1, 1_100_000], bytes(4_400_000)))
    assert code == "RESOURCE_EXHAUSTED"
    assert "4000000" in text
    # compressed, it fits the wire but not the limit
    code, _ = send(channel, shaped([1, 1, 1_100_000], bytes(4_400_000)), compression=grpc.Compression.Gzip)
    assert code == "RESOURCE_EXHAUSTED"
    assert send(channel, shaped([1, 1, 900_000], bytes(3_600_000)), compression=grpc.Compression.Gzip) == ("OK", "")
    assert answers(channel)


def test_neighbours_in_the_same_batch_notice_nothing(serving: Serving) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(serving.grpc_address) as channel:
            infer = raw(channel)
            hostile = [infer(data, timeout=30) for data, _, _ in BODIES.values()]
            sent = [np.full((1, 4), number, dtype=np.float32).tobytes() for number in range(50)]
            calls = [infer(infer_message("echo", {"x": ("FP32", [1, 4], row)}).SerializeToString(), timeout=30) for row in sent]
            for row, data in zip(sent, await asyncio.gather(*calls), strict=True):
                assert list(pb.ModelInferResponse.FromString(data).raw_output_contents) == [row]
            outcomes = await asyncio.gather(*hostile, return_exceptions=True)
            assert all(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes)

    asyncio.run(main())


def raw_reply(serving: Serving, body: bytes, *extra: Header, patience_s: float = 20.0) -> Reply:
    """How one call written by hand in HTTP/2 is answered."""
    with Peer(serving.grpc_address) as peer:
        peer.call(1, body, *extra)
        return peer.reply(1, patience_s)


def test_a_frame_that_claims_two_gigabytes(serving: Serving, channel: grpc.Channel) -> None:
    answer = raw_reply(serving, framed(b"tiny", length=2**31 - 1))
    told = dict(answer.headers)["grpc-message"]
    assert (answer.status, told) == ("8", "SERVER: Received message larger than max (2147483647 vs. 4000000)")
    assert answers(channel)


def test_a_frame_that_is_never_finished(serving: Serving, channel: grpc.Channel, plane: str) -> None:
    answer = raw_reply(serving, framed(b"too short", length=1000), patience_s=0.2 if plane == "python" else 20)
    # gRPC's C-core does not answer such a call; it must harm nobody else
    assert answer.status == (None if plane == "python" else "13")
    assert answers(channel)


def test_an_unknown_compression(serving: Serving, channel: grpc.Channel) -> None:
    answer = raw_reply(serving, framed(GOOD.SerializeToString(), flag=1), (b"grpc-encoding", b"wondrous"))
    # UNIMPLEMENTED is what gRPC's specification says, INTERNAL what its C-core does
    assert answer.status in ("12", "13")
    assert answer.body == b""
    assert answers(channel)


def test_the_longest_deadline_a_header_can_say(serving: Serving, channel: grpc.Channel) -> None:
    answer = raw_reply(serving, framed(GOOD.SerializeToString()), (b"grpc-timeout", b"99999999H"))
    assert ROW in answer.body
    assert answers(channel)


BYTES = GOOD.SerializeToString()
SEEDS = [
    BYTES,
    infer_message("identity_bytes", {"IN": ("BYTES", [1, 2], b"\x01\0\0\0a\0\0\0\0")}, id="s").SerializeToString(),
    infer_message("free", {"x": ("FP32", [2, 1, 2], ROW)}, model_version="1").SerializeToString(),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid message with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("set", "cut", "double", "insert"))):
            case "set":
                data[place : place + 1] = bytes((draw(st.integers(0, 255)),))
            case "cut":
                del data[place : place + draw(st.integers(1, 8))]
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 16))]
            case _:
                data[place:place] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
def test_mutated_messages_get_a_clean_status(channel: grpc.Channel, data: bytes) -> None:
    code, text = send(channel, data)
    assert code in CLEAN, (code, text)
    if code == "UNAVAILABLE":  # a mutation can turn a field into one of the parameters
        assert "timeout" in text


def test_after_all_of_that_the_server_answers(serving: Serving, channel: grpc.Channel) -> None:
    assert answers(channel)
    assert serving.http("/readyz")[0] == 200
    with serving.stub() as stub:
        assert refusal(lambda: stub.ModelInfer(pb.ModelInferRequest(model_name="nobody")))[0] == "NOT_FOUND"
