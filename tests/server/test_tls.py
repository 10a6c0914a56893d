"""Over TLS, with a server of its own: who gets through, and certificates that change while it serves."""

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.server.certificates import Authority, secure_channel
from tests.server.models import put_fake
from tests.server.serving import ROOT, Serving, until

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)


class Secured:
    """A server that wants certificates, and the authority that signs them."""

    def __init__(self, folder: Path, plane: str, **settings: Any) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.cert, self.key = self.authority.issue("server", "127.0.0.1", "localhost")
        self.client = self.authority.issue("client", "client.example", common_name="client")
        repository = folder / "repository"
        repository.mkdir()
        put_fake(repository, "echo", 100.0)
        tls = {"cert_file": str(self.cert), "key_file": str(self.key), "client_ca_file": str(self.authority.root)}
        self.serving = Serving(repository, folder, data_plane=plane, tls=tls, **settings)
        self.address = self.serving.grpc_address

    def shown(self) -> bytes:
        """The certificate that the server shows at this moment."""
        context = ssl.create_default_context(cafile=str(self.authority.root))
        context.load_cert_chain(*self.client)
        context.set_alpn_protocols(["h2"])
        host, _, port = self.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            found = wrapped.getpeercert(binary_form=True)
        assert found is not None
        return found

    def live(self, root: Path, own: tuple[Path, Path] | None) -> bool:
        with secure_channel(self.address, root, own) as channel:
            answer = GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=30)
        return bool(answer.live)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Secured]:
    made = Secured(tmp_path_factory.mktemp("tls"), plane)
    try:
        yield made
    finally:
        made.serving.stop()


def infer(client: InferenceServerClient) -> None:
    tensor = InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(ROW)
    np.testing.assert_array_equal(client.infer("echo", [tensor]).as_numpy("echo_x"), ROW)


def test_tritons_client_gets_through(secured: Secured) -> None:
    cert, key = map(str, secured.client)
    root = str(secured.authority.root)
    with InferenceServerClient(
        secured.address, ssl=True, root_certificates=root, private_key=key, certificate_chain=cert
    ) as client:
        assert client.is_server_ready()
        infer(client)


def test_who_is_not_signed_by_the_right_authority_does_not(secured: Secured, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    stranger = other.issue("stranger", "client.example", common_name="client")
    for root, own in ((secured.authority.root, None), (secured.authority.root, stranger), (other.root, secured.client)):
        with pytest.raises(grpc.RpcError) as told:
            secured.live(root, own)
        assert told.value.code() is grpc.StatusCode.UNAVAILABLE
    with (
        grpc.insecure_channel(secured.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        pytest.raises(grpc.RpcError),
    ):
        GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=30)
    with (
        InferenceServerClient(secured.address, ssl=True, root_certificates=str(other.root)) as client,
        pytest.raises(InferenceServerException),
    ):
        client.is_server_live()
    assert secured.live(secured.authority.root, secured.client)


def test_a_new_certificate_is_used_and_a_broken_one_is_not(secured: Secured) -> None:
    before = secured.shown()
    with secure_channel(secured.address, secured.authority.root, secured.client) as old:
        stub = GRPCInferenceServiceStub(old)
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
        secured.authority.issue("server", "127.0.0.1", "localhost")
        second = until(lambda: (shown := secured.shown()) != before and shown, "the new certificate")
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=30).live
        secured.authority.write("server.pem", b"no certificate")
        assert secured.shown() == second
        secured.key.unlink()
        assert secured.shown() == second
        assert secured.live(secured.authority.root, secured.client)
        warnings = [line for line in secured.serving.lines() if line["event"].startswith("a changed file is not used")]
        assert len(warnings) == 2
        assert all(line["level"] == "warning" and str(secured.cert) in line["reason"] for line in warnings[:1])
        secured.authority.issue("server", "127.0.0.1", "localhost")
        assert secured.shown() not in (before, second)


def start(tmp_path: Path, plane: str, settings: str) -> tuple[int, str]:
    """Status and words of a server that must not start."""
    config = tmp_path / "config.toml"
    config.write_text(f'repository = "{tmp_path}"\nhttp_address = "127.0.0.1:0"\ndata_plane = "{plane}"\n{settings}')
    command = [sys.executable, "-m", "server", "serve", "--config", str(config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr


def test_certificates_that_cannot_be_used_are_told_at_start(tmp_path: Path, plane: str) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    _, other = authority.issue("other", "127.0.0.1")
    empty = authority.write("empty.pem", b"")
    for files, words in (
        ((cert, tmp_path / "none", None), f"'{tmp_path}/none' cannot be read: No such file or directory"),
        ((cert, other, None), "are not a certificate and its key: KEY_VALUES_MISMATCH"),
        ((key, key, None), "are not a certificate and its key: "),
        ((cert, key, empty), f"'{empty}' holds no certificates"),
    ):
        names = dict(zip(("cert_file", "key_file", "client_ca_file"), files, strict=True))
        lines = "".join(f'{name} = "{path}"\n' for name, path in names.items() if path is not None)
        status, said = start(tmp_path, plane, f'grpc_address = "127.0.0.1:0"\n[tls]\n{lines}')
        last = json.loads(said.splitlines()[-1])
        assert (status, last["event"]) == (1, "cannot serve"), said
        assert words in last["reason"]


def test_settings_that_are_not_safe_are_told_at_start(tmp_path: Path, plane: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a b\n")
    rule = f'tokens_file = "{tokens}"\n'
    status, said = start(tmp_path, plane, f'grpc_address = "0.0.0.0:0"\n[access.management]\n{rule}')
    assert status == 2
    assert "tokens would travel to '0.0.0.0:0' in plain text" in said
    status, said = start(tmp_path, plane, f'grpc_address = "127.0.0.1:0"\n[access.management]\n{rule}')
    assert status == 1
    assert "line 1 is neither a token nor" in said
    assert "a b" not in said
