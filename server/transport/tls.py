"""The server's certificate: checked before it is used, and replaced while serving.

Floor 6. Both doors look for a newer one at every handshake. gRPC would take a pair that does not fit together and refuse every
caller from then on, so each is tried out first, by the interpreter's own `ssl`.
"""

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from server.core.door_settings import TlsSettings
from server.transport.kept import Kept

Configuration = grpc.ServerCertificateConfiguration


class Pem(NamedTuple):
    """What was read from the files, all of which fits together; without `roots`, callers need no certificate."""

    chain: bytes
    key: bytes
    roots: bytes | None


class Certificates:
    """The newest certificate that can be used. Ownership: any thread."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises: OSError for files that cannot be read or do not fit together; ValueError where none are set."""
        if settings.cert_file is None or settings.key_file is None:
            raise ValueError("a certificate needs cert_file and key_file")
        cert, key = Path(settings.cert_file), Path(settings.key_file)
        client_ca = None if settings.client_ca_file is None else Path(settings.client_ca_file)
        self._kept = Kept([cert, key, *([] if client_ca is None else [client_ca])], lambda: _checked(cert, key, client_ca))

    def newest(self) -> Pem:
        """The same object while nothing changes. Files that cannot be used change nothing, with one warning in the log."""
        return self._kept.get()


def server_credentials(settings: TlsSettings) -> grpc.ServerCredentials | None:
    """What a port is bound with; None without TLS. Connections that are open keep the certificate they began with.

    Raises: OSError for files that cannot be read or do not fit together.
    """
    if settings.cert_file is None:
        return None
    certificates = Certificates(settings)
    used = certificates.newest()

    def changed() -> Configuration | None:
        """Called by gRPC at every handshake, on a thread of its own; None: go on with the one before."""
        nonlocal used
        newest = certificates.newest()
        if newest is used:
            return None
        used = newest
        return _configuration(newest)

    fetch: Any = changed  # the stubs do not know that None is an answer
    return grpc.dynamic_ssl_server_credentials(
        _configuration(used), fetch, require_client_authentication=used.roots is not None
    )


def _configuration(pem: Pem) -> Configuration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], root_certificates=pem.roots)


def _checked(cert: Path, key: Path, client_ca: Path | None) -> Pem:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, secret = _read(cert), _read(key)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise OSError(f"'{cert}' and '{key}' are not a certificate and its key: {_reason(error)}") from None
    if (chain, secret) != (_read(cert), _read(key)):
        raise OSError(f"'{cert}' or '{key}' is being written")
    roots = None
    if client_ca is not None:
        roots = _read(client_ca)
        try:
            context.load_verify_locations(cadata=roots.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise OSError(f"'{client_ca}' holds no certificates: {_reason(error)}") from None
    return Pem(chain, secret, roots)


def _no_password() -> str:
    # otherwise OpenSSL would ask whoever sits at the terminal
    raise ValueError("the key is encrypted")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"'{path}' cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
