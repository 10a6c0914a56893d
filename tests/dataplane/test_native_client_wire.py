"""What a server does wrong on the wire is counted as what it is: answers that are cut, reset, refused, late, or never come."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.native_client import executable, load
from protos import grpc_service_pb2 as pb
from tests.dataplane.http2_by_hand import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK,
    RST,
    Behaviour,
    answered,
    frame,
    framed,
    raw_server,
)


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return executable()


def right_message(message: bytes) -> bytes:
    """The answer of the identity model."""
    request = pb.ModelInferRequest.FromString(message)
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name="OUT", datatype="FP32", shape=request.inputs[0].shape)
    response.raw_output_contents.append(request.raw_input_contents[0])
    return response.SerializeToString()


def writes(make: Callable[[int, bytes], bytes]) -> Behaviour:
    async def behave(stream: int, message: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(make(stream, message))

    return behave


STREAMS: dict[str, tuple[Callable[[int, bytes], bytes], dict[str, int], dict[str, int]]] = {
    # name: what is written, wrong_by, errors of 4 requests
    "right": (lambda stream, message: answered(stream, framed(right_message(message))), {}, {}),
    "no message": (lambda stream, _: answered(stream, b""), {"malformed": 4}, {}),
    "compressed": (lambda stream, message: answered(stream, framed(right_message(message), 1)), {"malformed": 4}, {}),
    "two messages": (lambda stream, message: answered(stream, framed(right_message(message)) * 2), {"malformed": 4}, {}),
    "cut": (lambda stream, message: answered(stream, framed(right_message(message))[:-1]), {"malformed": 4}, {}),
    "cut field": (lambda stream, message: answered(stream, framed(right_message(message)[:-1])), {"malformed": 4}, {}),
    "no protobuf": (lambda stream, _: answered(stream, framed(b"\xff" * 30)), {"malformed": 4}, {}),
    "no status": (
        lambda stream, message: answered(stream, framed(right_message(message)), b"\x00\x01a\x01b"),
        {},
        {"none": 4},
    ),
    "status is a word": (
        lambda stream, message: answered(stream, framed(right_message(message)), b"\x00\x0bgrpc-status\x02no"),
        {},
        {"none": 4},
    ),
    "status beside a right message": (
        lambda stream, message: answered(stream, framed(right_message(message)), b"\x00\x0bgrpc-status\x0213"),
        {},
        {"13": 4},
    ),
    "503": (
        lambda stream, _: frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x08\x03503"),
        {},
        {"http:503": 4},
    ),
    "reset": (lambda stream, _: frame(RST, 0, stream, (2).to_bytes(4, "big")), {}, {"reset:2": 4}),
    "refused": (lambda stream, _: frame(RST, 0, stream, (7).to_bytes(4, "big")), {}, {"refused": 4}),
    "reset within the answer": (
        lambda stream, message: (
            frame(HEADERS, END_HEADERS, stream, OK)
            + frame(DATA, 0, stream, framed(right_message(message))[:40])
            + frame(RST, 0, stream, (8).to_bytes(4, "big"))
        ),
        {},
        {"reset:8": 4},
    ),
    "garbage": (lambda *_: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, {}, {"lost": 4}),
    "goaway": (lambda *_: frame(GOAWAY, 0, 0, bytes(8)), {}, {"refused": 4}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_comes_on_the_wire_is_counted_as_what_it_is(name: str) -> None:
    make, wrong_by, errors = STREAMS[name]
    with raw_server(writes(make)) as address:
        report = load(address, "identity", "--requests", 4, "--seconds", 30)
    assert (report["wrong_by"], report["errors"]) == (wrong_by, errors)
    assert report["requests"] == 4
    assert report["right"] == 4 - sum(wrong_by.values()) - sum(errors.values())
    assert report["unanswered"] == 0


def test_a_connection_that_is_told_to_go_is_replaced() -> None:
    """The answer that was under way still counts, and the connection is not a lost one."""

    def one_more(stream: int, message: bytes) -> bytes:
        return frame(GOAWAY, 0, 0, stream.to_bytes(4, "big") + bytes(4)) + answered(stream, framed(right_message(message)))

    with raw_server(writes(one_more)) as address:
        report = load(address, "identity", "--requests", 5, "--seconds", 30)
    assert (report["right"], report["failed"], report["connects"], report["lost_connections"]) == (5, 0, 5, 0)


def test_a_connection_that_ends_loses_its_requests() -> None:
    async def hang_up(_stream: int, _message: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with raw_server(hang_up) as address:
        report = load(address, "identity", "--requests", 3, "--seconds", 30)
    assert report["errors"] == {"lost": 3}
    assert report["lost_connections"] == 3


def test_right_answers_after_the_deadline_are_late() -> None:
    async def slow(stream: int, message: bytes, writer: asyncio.StreamWriter) -> None:
        if int(pb.ModelInferRequest.FromString(message).id, 16) % 4 == 0:
            await asyncio.sleep(2.2)
        writer.write(answered(stream, framed(right_message(message))))

    with raw_server(slow) as address:
        report = load(address, "identity", "--requests", 20, "--streams", 20, "--deadline-ms", 2000)
    assert (report["right"], report["late"], report["wrong"], report["failed"]) == (15, 5, 0, 0)
    assert report["latency_us"]["max"] >= 2_200_000


def test_a_server_that_never_answers_does_not_hold_the_run() -> None:
    async def silence(*_: Any) -> None:
        return

    with raw_server(silence) as address:
        report = load(address, "identity", "--requests", 10, "--streams", 5, "--stall-s", 0.5, patience_s=30)
    assert (report["requests"], report["unanswered"], report["right"]) == (5, 5, 0)
