"""Settings of the socket in gRPC's own words, and in those of the native door. **Pure.**"""

from server.core.settings import ServerSettings

Options = list[tuple[str, int]]
_COMPRESSIONS = {"none": 0, "gzip": 1, "deflate": 2}


def channel_options(settings: ServerSettings) -> Options:
    """What the server is made with. Source of the names: grpc, include/grpc/impl/channel_arg_names.h."""
    limits, keepalive = settings.limits, settings.keepalive
    options: Options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # without this a second server on the same port starts silently and takes half the calls
        ("grpc.so_reuseport", 0),
        # the same for both: between the first and the second gRPC would refuse by chance
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.keepalive_time_ms", keepalive.time_ms),
        ("grpc.keepalive_timeout_ms", keepalive.timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(keepalive.permit_without_calls)),
        ("grpc.http2.min_ping_interval_without_data_ms", keepalive.min_recv_ping_interval_without_data_ms),
        ("grpc.http2.max_pings_without_data", keepalive.max_pings_without_data),
        ("grpc.http2.max_ping_strikes", keepalive.http2_max_ping_strikes),
    ]
    if limits.max_connections:
        options.append(("grpc.max_allowed_incoming_connections", limits.max_connections))
    if limits.max_concurrent_streams:
        options.append(("grpc.max_concurrent_streams", limits.max_concurrent_streams))
    if limits.max_connection_idle_s:
        options.append(("grpc.max_connection_idle_ms", _ms(limits.max_connection_idle_s)))
    if limits.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", _ms(limits.max_connection_age_s)))
        options.append(("grpc.max_connection_age_grace_ms", _ms(limits.max_connection_age_grace_s)))
    return options


def native_config(settings: ServerSettings) -> dict[str, int]:
    """The same for the native door. Source of the names: server/dataplane/native/src/http2.h, HttpConfig."""
    limits, keepalive = settings.limits, settings.keepalive
    return {
        "max_message_bytes": settings.max_message_bytes,
        "max_metadata_bytes": limits.max_metadata_bytes,
        "max_connections": limits.max_connections,
        "max_concurrent_streams": limits.max_concurrent_streams,
        "max_buffered_bytes": limits.max_buffered_bytes,
        "max_unread_bytes": limits.max_unread_bytes,
        "stalled_ms": _ms_or_off(limits.stalled_s),
        "max_connection_idle_ms": _ms_or_off(limits.max_connection_idle_s),
        "max_connection_age_ms": _ms_or_off(limits.max_connection_age_s),
        "max_connection_age_grace_ms": _ms(limits.max_connection_age_grace_s),
        "keepalive_time_ms": keepalive.time_ms,
        "keepalive_timeout_ms": keepalive.timeout_ms,
        "keepalive_without_calls": keepalive.permit_without_calls,
        "min_ping_interval_ms": keepalive.min_recv_ping_interval_without_data_ms,
        "max_pings_without_data": keepalive.max_pings_without_data,
        "max_ping_strikes": keepalive.http2_max_ping_strikes,
        "compression": _COMPRESSIONS[settings.compression],
    }


def _ms_or_off(seconds: float) -> int:
    return _ms(seconds) if seconds else 0


def _ms(seconds: float) -> int:
    """At least one: what is set is never the 0 that gRPC would take for at once."""
    return max(1, round(seconds * 1000))
