"""Certificates for tests, made for the purpose and as real as any."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import trustme

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
