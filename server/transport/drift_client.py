"""Asks a server, or a `podium monitor`, for its verdicts.

Floor 6, the other side of the door: a command line has no business with gRPC. One call, one connection, nothing kept.
"""

from dataclasses import dataclass
from pathlib import Path

import grpc

from protos import monitoring_pb2 as pb
from protos.monitoring_pb2_grpc import MonitoringServiceStub
from server.transport.drift_reading import ReportedVersion, reading_from
from server.transport.drift_report import MAX_REPORT_BYTES

_ROOM_BYTES = 2**24
"""What one answer may have beside the windows that `MAX_REPORT_BYTES` counts: the last window of every version, its streams."""


@dataclass(frozen=True, slots=True)
class Caller:
    """How a server is reached. `address`: HOST:PORT or unix:PATH.

    `ca_file`: certificates that the server's is trusted by, PEM; None: plain text. `cert_file` and `key_file`: one's own, None
    for none. `token_file`: a file with the bearer token and nothing else. `timeout_s`: for connecting and the answer together.
    """

    address: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None
    timeout_s: float = 10.0


class DriftNotTold(Exception):
    """The server cannot be asked, refused, or answered something else; the text says why."""


def ask_drift(caller: Caller, model: str, version: str, windows: int) -> tuple[ReportedVersion, ...]:
    """The verdicts that `DriftRequest` asks for.

    Raises: DriftNotTold with the server's own words; OSError for a file that cannot be read.
    """
    request = pb.DriftRequest(model_name=model, model_version=version, windows=windows)
    metadata = (("authorization", f"Bearer {caller.token_file.read_text('utf-8').strip()}"),) if caller.token_file else ()
    options = [("grpc.max_receive_message_length", MAX_REPORT_BYTES + _ROOM_BYTES)]
    with _channel(caller, options) as channel:
        try:
            report = MonitoringServiceStub(channel).GetDrift(request, timeout=caller.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise DriftNotTold(f"{caller.address}: {error.details() or error.code().name}") from None
    try:
        return reading_from(report)
    except ValueError as error:
        raise DriftNotTold(f"{caller.address} answers in another form: {error}") from None


def _channel(caller: Caller, options: list[tuple[str, int]]) -> grpc.Channel:
    if caller.ca_file is None:
        return grpc.insecure_channel(caller.address, options)
    key, chain = (None if path is None else path.read_bytes() for path in (caller.key_file, caller.cert_file))
    return grpc.secure_channel(caller.address, grpc.ssl_channel_credentials(caller.ca_file.read_bytes(), key, chain), options)
