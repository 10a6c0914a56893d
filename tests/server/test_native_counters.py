"""What the native door and plane count, as its metrics page shows it: sockets, lanes, and how often a tensor is copied."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.certificates import Authority, secure_channel
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, infer_message, refusal, until

SMALL = infer_message("echo", {"x": ("FP32", [1, 4], bytes(16))})


@pytest.fixture(scope="module")
def native(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("counters")
    server = Serving(repository, home, data_plane="native", trace={"file": str(home / "traces.json"), "rate": 1})
    try:
        yield server
    finally:
        server.stop()


def risen(serving: Serving, act: Callable[[], object]) -> Callable[..., int]:
    """By how much a counter rises while something is done."""
    before = scrape(serving)
    act()
    after = scrape(serving)
    return lambda name, **labels: value(after, name, **labels) - value(before, name, **labels)


def hung_up(rude: socket.socket) -> bool:
    try:
        return rude.recv(4096) == b""
    except ConnectionResetError:
        return True


def identity(count: int, rows: int = 1) -> pb.ModelInferRequest:
    array = np.arange(count * rows, dtype=np.float32).reshape(rows, count)
    return infer_message("identity_fp32", {"IN": ("FP32", [rows, count], array.tobytes())})


@pytest.mark.parametrize("nbytes", [150_000, 600_000])
def test_large_tensors_are_copied_once_in_and_once_out(native: Serving, nbytes: int) -> None:
    calls, sent = 20, identity(nbytes // 4)

    def act() -> None:
        with native.stub() as stub:
            for _ in range(calls):
                assert stub.ModelInfer(sent).raw_output_contents[0] == sent.raw_input_contents[0]

    rise = risen(native, act)
    tensors = calls * nbytes
    assert rise("podium_door_infer_calls_total", lane="fast") == calls
    assert rise("podium_tensor_bytes_total", direction="in") == rise("podium_tensor_bytes_total", direction="out") == tensors
    copied = {step: rise("podium_tensor_bytes_copied_total", step=step) for step in ("receive", "gather", "encode", "send")}
    assert copied["gather"] == copied["encode"] == tensors
    assert copied["receive"] + copied["send"] <= 0.01 * tensors, copied


def test_tls_takes_answers_in_large_records(repository: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "127.0.0.1", "localhost")
    tls = {"cert_file": str(certificate), "key_file": str(key)}
    server = Serving(repository, tmp_path, data_plane="native", tls=tls)
    sent = identity(150_000)

    def act() -> None:
        with secure_channel(server.grpc_address, authority.root) as channel:
            answer = GRPCInferenceServiceStub(channel).ModelInfer(sent)
            assert answer.raw_output_contents[0] == sent.raw_input_contents[0]
            host, port = server.grpc_address.rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=10) as rude:
                rude.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                until(lambda: hung_up(rude), "it is hung up on")

    try:
        rise = risen(server, act)
        assert rise("podium_tensor_bytes_copied_total", step="gather") == 600_000
        assert rise("podium_tensor_bytes_copied_total", step="receive") <= 6_000
        assert rise("podium_tensor_bytes_copied_total", step="encode") == 600_000
        assert 600_000 < rise("podium_tensor_bytes_copied_total", step="send") < 601_000
        assert rise("podium_door_tls_failures_total") == 1
    finally:
        server.stop()


def test_small_messages_are_copied_together_once_more(native: Serving) -> None:
    def act() -> None:
        with native.stub() as stub:
            for _ in range(10):
                stub.ModelInfer(SMALL)

    rise = risen(native, act)
    assert rise("podium_tensor_bytes_total", direction="in") == rise("podium_tensor_bytes_total", direction="out") == 160
    assert (
        rise("podium_tensor_bytes_copied_total", step="gather")
        == rise("podium_tensor_bytes_copied_total", step="encode")
        == 160
    )
    assert rise("podium_tensor_bytes_copied_total", step="receive") == 10 * SMALL.ByteSize()
    assert 160 < rise("podium_tensor_bytes_copied_total", step="send") < 10 * 200


def test_elements_of_text_are_counted_as_often_as_they_are_copied(native: Serving) -> None:
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in (b"one", b"", b"three"))
    sent = infer_message("identity_bytes", {"IN": ("BYTES", [1, 3], raw)})

    def act() -> None:
        with native.stub() as stub:
            assert stub.ModelInfer(sent).raw_output_contents[0] == raw

    rise = risen(native, act)
    assert rise("podium_tensor_bytes_total", direction="in") == rise("podium_tensor_bytes_total", direction="out") == len(raw)
    assert rise("podium_tensor_bytes_copied_total", step="gather") == 2 * len(raw)
    assert rise("podium_tensor_bytes_copied_total", step="encode") == 2 * len(raw)


def test_who_answers_is_counted(native: Serving) -> None:
    odd = infer_message("echo", {"x": ("FP32", [1, 4], bytes(16))})
    odd.parameters["sequence_id"].int64_param = 0
    wrong = infer_message("echo", {"x": ("FP32", [1, 5], bytes(20))})
    nobody = infer_message("nobody", {"x": ("FP32", [1, 4], bytes(16))})

    def act() -> None:
        with native.stub() as stub:
            for _ in range(3):
                stub.ModelInfer(SMALL)
            stub.ModelInfer(odd)
            assert refusal(lambda: stub.ModelInfer(wrong))[0] == "INVALID_ARGUMENT"
            assert refusal(lambda: stub.ModelInfer(nobody))[0] == "NOT_FOUND"
            stub.ServerLive(pb.ServerLiveRequest())
            list(stub.ModelStreamInfer(iter([SMALL])))

    rise = risen(native, act)
    assert rise("podium_door_infer_calls_total", lane="fast") == 3
    assert rise("podium_door_infer_calls_total", lane="handlers") == 3
    assert rise("podium_door_calls_started_total") == 8


def test_a_closed_lane_shows(native: Serving) -> None:
    """Tracing needs to look at each request."""

    def trace(level: str) -> None:
        settings = pb.TraceSettingRequest()
        settings.settings["trace_level"].value.append(level)
        with native.stub() as stub:
            stub.TraceSetting(settings)

    def act() -> None:
        with native.stub() as stub:
            stub.ModelInfer(SMALL)

    trace("TIMESTAMPS")
    try:
        rise = risen(native, act)
        assert rise("podium_door_infer_calls_total", lane="fast") == 0
        assert rise("podium_door_infer_calls_total", lane="handlers") == 1
    finally:
        trace("OFF")
    rise = risen(native, act)
    assert rise("podium_door_infer_calls_total", lane="fast") == 1
    assert rise("podium_door_infer_calls_total", lane="handlers") == 0


def test_sockets_are_counted(native: Serving) -> None:
    host, port = native.grpc_address.rsplit(":", 1)
    until(lambda: value(scrape(native), "podium_door_connections") == 0, "earlier connections have closed")
    before = scrape(native)
    with native.stub() as stub:
        stub.ModelInfer(SMALL)
        during = scrape(native)
    with socket.create_connection((host, int(port)), timeout=10) as rude:
        rude.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(64))
        until(lambda: hung_up(rude), "it is hung up on")
    with grpc.insecure_channel(native.grpc_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary("/nobody/knows", request_serializer=bytes, response_deserializer=bytes)
        assert refusal(lambda: call(b""))[0] == "UNIMPLEMENTED"
    until(lambda: value(scrape(native), "podium_door_connections") == 0, "its connections have closed")
    after = scrape(native)

    def rise(name: str) -> int:
        return value(after, name) - value(before, name)

    assert value(during, "podium_door_connections") == 1
    assert value(after, "podium_door_calls") == 0
    assert rise("podium_door_connections_accepted_total") == 3
    assert rise("podium_door_connections_refused_total") == 0
    assert rise("podium_door_calls_started_total") == 2
    assert rise("podium_door_protocol_errors_total") == 1
    assert rise("podium_door_received_bytes_total") > SMALL.ByteSize()
    assert rise("podium_door_sent_bytes_total") > 0
    assert rise("podium_door_floods_total") == rise("podium_door_tls_failures_total") == 0
