"""curl's HTTP/2, byte for byte: a call of gRPC to whoever knows only HTTP. Not collected where there is no curl."""

import subprocess
from pathlib import Path

import pytest

from protos import grpc_service_pb2 as pb
from tests.server.frames import INFER, message
from tests.server.serving import Serving, counts, until
from tests.server.targets import own, question

CONTENT = ("content-type: application/grpc", "te: trailers")


def curl(
    server: Serving, folder: Path, body: bytes, *headers: str, path: str = INFER, more: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, str], bytes]:
    """Status line and headers, trailers, and body of one call."""
    sent, head, got = folder / "sent", folder / "head", folder / "got"
    sent.write_bytes(body)
    command = ["curl", "--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "30", *more]
    if server.grpc_address.startswith("unix:"):
        command += ["--unix-socket", server.grpc_address.removeprefix("unix:")]
        address = "localhost"
    else:
        address = server.grpc_address
    for header in (*CONTENT, *headers):
        command += ["-H", header]
    command += ["--data-binary", f"@{sent}", "--dump-header", str(head), "--output", str(got), f"http://{address}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, _, last = head.read_bytes().decode().replace("\r", "").partition("\n\n")
    trailers = dict(line.split(": ", 1) for line in (last or first).strip().splitlines() if ": " in line)
    return first.strip().splitlines(), trailers, got.read_bytes() if got.exists() else b""


def test_an_answer_has_headers_a_message_and_trailers(door: Serving, tmp_path: Path) -> None:
    head, trailers, body = curl(door, tmp_path, message(question(4).SerializeToString()))
    assert head[0].strip() == "HTTP/2 200"
    assert "content-type: application/grpc" in head
    assert not any(line.startswith("grpc-status") for line in head), "the status comes last"
    assert trailers["grpc-status"] == "0"
    assert body[:5] == b"\0" + (len(body) - 5).to_bytes(4, "big")
    assert own(4, body[5:])


def test_an_error_has_its_status_and_text(door: Serving, tmp_path: Path) -> None:
    _, trailers, body = curl(door, tmp_path, message(question(4, "nobody").SerializeToString()))
    assert (trailers["grpc-status"], trailers["grpc-message"]) == ("5", "Request for unknown model: 'nobody' is not found")
    assert body == b""


def test_texts_are_percent_encoded(door: Serving, tmp_path: Path) -> None:
    """Whatever a caller makes of a name comes back in bytes that a header may have."""
    wanted = pb.ModelInferRequest(model_name="schön\n%41")
    _, trailers, _ = curl(door, tmp_path, message(wanted.SerializeToString()))
    assert trailers["grpc-status"] == "5"
    assert "'sch%C3%B6n%0A%2541'" in trailers["grpc-message"]


def test_an_unknown_method_is_told(door: Serving, tmp_path: Path) -> None:
    # no body: a server need not wait for one, and this curl takes a reset after a whole answer for an error
    _, trailers, _ = curl(door, tmp_path, b"", path="/inference.GRPCInferenceService/Nothing")
    assert trailers["grpc-status"] == "12"


def test_a_large_body_in_both_directions(serving: Serving, tmp_path: Path) -> None:
    """Many windows and many frames."""
    raw = bytes(range(256)) * 14_000
    sent = pb.ModelInferRequest(model_name="free", raw_input_contents=[raw])
    sent.inputs.add(name="x", datatype="FP32", shape=[1, 1, len(raw) // 4])
    _, trailers, body = curl(serving, tmp_path, message(sent.SerializeToString()))
    assert trailers["grpc-status"] == "0"
    assert list(pb.ModelInferResponse.FromString(body[5:]).raw_output_contents) == [raw]


@pytest.mark.parametrize("timeout", ["1S", "1000m", "1000000u", "99999999H"])
def test_every_unit_of_a_deadline(serving: Serving, tmp_path: Path, timeout: str) -> None:
    _, trailers, body = curl(serving, tmp_path, message(question(9).SerializeToString()), f"grpc-timeout: {timeout}")
    assert trailers["grpc-status"] == "0"
    assert own(9, body[5:])


def test_a_deadline_that_passes_is_told_by_the_server(serving: Serving, tmp_path: Path) -> None:
    """curl has none of its own: only the server can end the call, and the model takes longer."""
    with serving.stub() as stub:
        executed = counts(stub, "slow")[3]
        _, trailers, body = curl(serving, tmp_path, message(question(9, "slow").SerializeToString()), "grpc-timeout: 100m")
        assert (trailers["grpc-status"], body) == ("4", b"")
        # its batch goes on for nobody, and would be counted among those of a test that follows
        until(lambda: counts(stub, "slow")[3] > executed, "the batch is counted")
