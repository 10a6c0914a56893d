"""Settings of the socket and of who may call: tables of `ServerSettings`. **Pure.**

Each field is described in docs/CONFIG.md, which a test compares with this file; what they are for is in docs/SECURITY.md.
"""

import ipaddress
import re
from typing import Self

from pydantic import Field, model_validator

from server.core.table import Table

UNIX = "unix:"
_HEADER = re.compile(r"[0-9a-z_.-]+=[!-~](?:[ -~]*[!-~])?")
"""What gRPC can carry as a name and a value, in lower case as HTTP/2 has it."""

_SUBJECT = re.compile(r"(?:cn|dns|uri):.+", re.DOTALL)


class TlsSettings(Table):
    """The server's certificate; with `client_ca_file`, callers must have one too, signed by it. PEM files."""

    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file come together")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file needs cert_file and key_file")
        return self


class AccessRules(Table):
    """Who may make the calls of one group: whoever satisfies one of these rules; everybody where there is none."""

    tokens_file: str | None = None
    subjects: tuple[str, ...] = ()
    header: str | None = None

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.header is not None and not _HEADER.fullmatch(self.header):
            raise ValueError(
                "header is 'key=value' in printable ASCII, the key in lower-case letters, digits, '_', '-' and '.'"
            )
        if self.header is not None and self.header.partition("=")[0].endswith("-bin"):
            raise ValueError("header cannot have a key that ends in '-bin': gRPC would take its value for base64")
        for subject in self.subjects:
            if not _SUBJECT.fullmatch(subject):
                raise ValueError(f"subject '{subject}' must begin with what it speaks of: 'cn:', 'dns:' or 'uri:'")
        return self

    @property
    def open(self) -> bool:
        """Whether anybody may call."""
        return self == AccessRules()


class AccessSettings(Table):
    """Rules per group of calls. `allow_plaintext_tokens`: the way to this server is encrypted by somebody else."""

    inference: AccessRules = AccessRules()
    management: AccessRules = AccessRules()
    health: AccessRules = AccessRules()
    allow_plaintext_tokens: bool = False


class LimitSettings(Table):
    """How much callers may hold of the socket. 0 is no limit."""

    max_connections: int = Field(0, ge=0, lt=2**31)
    max_concurrent_streams: int = Field(0, ge=0, lt=2**31)
    max_requests_per_caller: int = Field(0, ge=0)
    max_metadata_bytes: int = Field(16_384, ge=1024, le=2**20)
    max_connection_idle_s: float = Field(0.0, ge=0, le=604_800)
    max_connection_age_s: float = Field(0.0, ge=0, le=604_800)
    max_connection_age_grace_s: float = Field(30.0, ge=0, le=604_800)
    max_unread_bytes: int = Field(64 * 2**20, ge=0, lt=2**63)
    max_buffered_bytes: int = Field(2**30, ge=0, lt=2**63)
    stalled_s: float = Field(60.0, ge=0, le=604_800)


class KeepaliveSettings(Table):
    """Pings of the server to silent callers, and how often callers may ping.

    Source: the defaults are NVIDIA Triton's, which are gRPC's own: triton-inference-server/server, src/grpc/grpc_server.h.
    """

    time_ms: int = Field(7_200_000, gt=0, lt=2**31)
    timeout_ms: int = Field(20_000, gt=0, lt=2**31)
    permit_without_calls: bool = False
    min_recv_ping_interval_without_data_ms: int = Field(300_000, ge=0, lt=2**31)
    max_pings_without_data: int = Field(2, ge=0, lt=2**31)
    http2_max_ping_strikes: int = Field(2, ge=0, lt=2**31)


def is_private(address: str) -> bool:
    """Whether a gRPC address can be reached from this machine alone.

    >>> is_private("unix:/srv/podium.sock"), is_private("127.0.0.1:8001"), is_private("[::1]:1"), is_private("0.0.0.0:8001")
    (True, True, True, False)
    """
    if address.startswith(UNIX):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_door(address: str, tls: TlsSettings, access: AccessSettings) -> None:
    """Raises: ValueError where the socket and the rules together would not do what they say."""
    if tls.cert_file is not None and address.startswith(UNIX):
        raise ValueError("a unix socket carries no TLS: leave [tls] out, the folder's permissions say who may connect")
    rules = (access.inference, access.management, access.health)
    if tls.client_ca_file is None and any(each.subjects for each in rules):
        raise ValueError("subjects are names in callers' certificates: they need tls.client_ca_file")
    in_plain_text = tls.cert_file is None and not is_private(address) and not access.allow_plaintext_tokens
    if in_plain_text and any(each.tokens_file is not None for each in rules):
        raise ValueError(
            f"tokens would travel to '{address}' in plain text: set [tls], listen on loopback or a unix socket, "
            "or set access.allow_plaintext_tokens where a mesh encrypts the way"
        )
