"""Settings of the socket in gRPC's own words. **Pure.**"""

from server.core.settings import ServerSettings

Options = list[tuple[str, int]]


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


def _ms(seconds: float) -> int:
    """At least one: what is set is never the 0 that gRPC would take for at once."""
    return max(1, round(seconds * 1000))
