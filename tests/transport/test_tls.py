"""Certificates are tried out before gRPC gets them. How they change under callers is in tests/server/test_tls.py."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

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
from server.transport.tls import Certificates, server_credentials
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
        with pytest.raises(OSError, match=text):
            Certificates(chosen)


def test_the_newest_pair_that_fits_is_given(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    certificates = Certificates(settings(cert, key, authority.root))
    first = certificates.newest()
    assert first == (cert.read_bytes(), key.read_bytes(), authority.root.read_bytes())
    assert certificates.newest() is first
    kept = key.read_bytes()
    authority.issue("server", "127.0.0.1")
    new = key.read_bytes()
    authority.write("server.key", kept)
    assert certificates.newest() is first
    authority.write("server.key", new)
    second = certificates.newest()
    assert second == (cert.read_bytes(), new, first.roots)
    cert.unlink()
    assert certificates.newest() is second


def test_roots_are_given_where_callers_are_asked(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    open_to_all, asking = Certificates(settings(cert, key)), Certificates(settings(cert, key, authority.root))
    assert open_to_all.newest().roots is None
    assert asking.newest().roots == authority.root.read_bytes()
    other = Authority(tmp_path, "other")
    authority.write("ca.pem", other.root.read_bytes())
    assert asking.newest().roots == other.root.read_bytes()
    authority.write("ca.pem", b"")
    assert asking.newest().roots == other.root.read_bytes()


def test_a_pair_that_changes_while_it_is_read_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    load = ssl.SSLContext.load_cert_chain

    def load_and_replace(context: ssl.SSLContext, chain: Path, secret: Path, password: Any) -> None:
        load(context, chain, secret, password)
        authority.issue("server", "127.0.0.1")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_replace)
    with pytest.raises(OSError, match="is being written"):
        Certificates(settings(cert, key))


def test_without_files_there_is_nothing_to_give() -> None:
    with pytest.raises(ValueError, match="needs cert_file and key_file"):
        Certificates(TlsSettings())
