"""Certificates are tried out before gRPC gets them. How they change under callers is in tests/server/test_tls.py."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from server.core.door_settings import TlsSettings
from server.core.settings import ServerSettings
from server.transport.listen import bind, open_server
from server.transport.tls import server_credentials
from tests.server.certificates import Authority


def settings(cert: Path, key: Path, client_ca: Path | None = None) -> TlsSettings:
    return TlsSettings(cert_file=str(cert), key_file=str(key), client_ca_file=None if client_ca is None else str(client_ca))


def shown(address: str, root: Path) -> bytes:
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(root))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_credentials(TlsSettings()) is None


def test_a_changed_pair_is_shown_and_half_of_one_is_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")

    async def main() -> None:
        server = open_server(ServerSettings(repository="r"))
        address = bind(server, "127.0.0.1:0", server_credentials(settings(cert, key)))
        await server.start()
        first = await asyncio.to_thread(shown, address, authority.root)
        kept = key.read_bytes()
        authority.issue("server", "127.0.0.1")
        new = key.read_bytes()
        authority.write("server.key", kept)  # the new certificate with the old key: a rotation half way through
        assert await asyncio.to_thread(shown, address, authority.root) == first
        authority.write("server.key", new)
        assert await asyncio.to_thread(shown, address, authority.root) != first
        await server.stop(None)

    asyncio.run(main())


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    _, other = authority.issue("other", "127.0.0.1")
    locked = load_pem_private_key(key.read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    encrypted = authority.write("encrypted.key", locked)
    empty = authority.write("empty.pem", b"")
    binary = authority.write("binary.pem", b"\xff\xfe")
    for chosen, text in (
        (settings(tmp_path / "none", key), "none' cannot be read: No such file or directory"),
        (settings(cert, tmp_path), "cannot be read: Is a directory"),
        (settings(cert, other), "are not a certificate and its key: KEY_VALUES_MISMATCH"),
        (settings(cert, encrypted), "are not a certificate and its key: the key is encrypted"),
        (settings(empty, key), "are not a certificate and its key"),
        (settings(cert, key, empty), "empty.pem' holds no certificates"),
        (settings(cert, key, binary), "binary.pem' holds no certificates"),
    ):
        with pytest.raises(OSError, match=text):
            server_credentials(chosen)
