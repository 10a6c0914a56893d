"""Certificates for tests, made for the purpose and as real as any."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

OWN_POOL = [("grpc.use_local_subchannel_pool", 1)]


class Authority:
    """A certificate authority, and the files it made in one folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.root = self.write(f"{name}.pem", self._ca.cert_pem.bytes())

    def write(self, name: str, data: bytes) -> Path:
        """Replace a file in one step, as whoever rotates certificates should."""
        new = self._folder / f"{name}.new"
        new.write_bytes(data)
        return new.replace(self._folder / name)

    def issue(self, name: str, *identities: str, common_name: str | None = None) -> tuple[Path, Path]:
        """(certificate, key), under a name; of the same name: replaced."""
        made = self._ca.issue_cert(*identities, common_name=common_name)
        key = self.write(f"{name}.key", made.private_key_pem.bytes())
        return self.write(f"{name}.pem", b"".join(pem.bytes() for pem in made.cert_chain_pems)), key

    def issue_uri(self, name: str, uri: str) -> tuple[Path, Path]:
        """A certificate with nothing but a URI, as workloads of a mesh have."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        )
        signer: Any = load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        cert = made.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
        return self.write(f"{name}.pem", cert), self.write(f"{name}.key", secret)


def credentials(root: Path, own: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    """What a caller connects with: whom it trusts, and who it is."""
    cert, key = own or (None, None)
    return grpc.ssl_channel_credentials(
        root.read_bytes(), key.read_bytes() if key else None, cert.read_bytes() if cert else None
    )


@contextmanager
def secure_channel(address: str, root: Path, own: tuple[Path, Path] | None = None) -> Iterator[Any]:
    with grpc.secure_channel(address, credentials(root, own), OWN_POOL) as channel:
        yield channel
