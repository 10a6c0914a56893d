"""Settings reach gRPC and the native door under their own names; tests/server/test_limits.py tries out what those do."""

from typing import Any

import pytest

from server.core.settings import ServerSettings
from server.transport.options import channel_options, native_config


def options(**settings: Any) -> dict[str, int]:
    return dict(channel_options(ServerSettings.model_validate({"repository": "r", **settings})))


def test_what_is_always_stated() -> None:
    assert options() == {
        "grpc.max_receive_message_length": 268_435_456,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": 0,
        "grpc.max_metadata_size": 16_384,
        "grpc.absolute_max_metadata_size": 16_384,
        "grpc.keepalive_time_ms": 7_200_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 300_000,
        "grpc.http2.max_pings_without_data": 2,
        "grpc.http2.max_ping_strikes": 2,
    }


@pytest.mark.parametrize(
    ("limits", "stated"),
    [
        ({"max_connections": 3}, {"grpc.max_allowed_incoming_connections": 3}),
        ({"max_concurrent_streams": 4}, {"grpc.max_concurrent_streams": 4}),
        ({"max_connection_idle_s": 1.5}, {"grpc.max_connection_idle_ms": 1500}),
        ({"max_connection_idle_s": 1e-9}, {"grpc.max_connection_idle_ms": 1}),
        (
            {"max_connection_age_s": 60, "max_connection_age_grace_s": 5},
            {"grpc.max_connection_age_ms": 60_000, "grpc.max_connection_age_grace_ms": 5000},
        ),
        ({"max_connection_age_grace_s": 5}, {}),
    ],
)
def test_limits_are_stated_where_they_are_set(limits: dict[str, Any], stated: dict[str, int]) -> None:
    assert options(limits=limits).items() - options().items() == stated.items()


def test_keepalive() -> None:
    table = {
        "time_ms": 1,
        "timeout_ms": 2,
        "permit_without_calls": True,
        "min_recv_ping_interval_without_data_ms": 3,
        "max_pings_without_data": 4,
        "http2_max_ping_strikes": 5,
    }
    assert dict(options(keepalive=table).items() - options().items()) == {
        "grpc.keepalive_time_ms": 1,
        "grpc.keepalive_timeout_ms": 2,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": 3,
        "grpc.http2.max_pings_without_data": 4,
        "grpc.http2.max_ping_strikes": 5,
    }


def native(**settings: Any) -> dict[str, int]:
    return native_config(ServerSettings.model_validate({"repository": "r", **settings}))


def test_what_the_native_door_is_told() -> None:
    assert native() == {
        "max_message_bytes": 268_435_456,
        "max_metadata_bytes": 16_384,
        "max_connections": 0,
        "max_concurrent_streams": 0,
        "max_buffered_bytes": 2**30,
        "max_unread_bytes": 64 * 2**20,
        "stalled_ms": 60_000,
        "max_connection_idle_ms": 0,
        "max_connection_age_ms": 0,
        "max_connection_age_grace_ms": 30_000,
        "keepalive_time_ms": 7_200_000,
        "keepalive_timeout_ms": 20_000,
        "keepalive_without_calls": False,
        "min_ping_interval_ms": 300_000,
        "max_pings_without_data": 2,
        "max_ping_strikes": 2,
        "compression": 0,
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_message_bytes": 7}, {"max_message_bytes": 7}),
        ({"compression": "gzip"}, {"compression": 1}),
        ({"compression": "deflate"}, {"compression": 2}),
        (
            {"limits": {"max_connections": 1, "max_concurrent_streams": 2, "max_metadata_bytes": 2000}},
            {"max_connections": 1, "max_concurrent_streams": 2, "max_metadata_bytes": 2000},
        ),
        (
            {"limits": {"max_unread_bytes": 3, "max_buffered_bytes": 4, "stalled_s": 0}},
            {"max_unread_bytes": 3, "max_buffered_bytes": 4, "stalled_ms": 0},
        ),
        (
            {"limits": {"max_connection_idle_s": 1e-9, "max_connection_age_s": 2, "max_connection_age_grace_s": 0}},
            {"max_connection_idle_ms": 1, "max_connection_age_ms": 2000, "max_connection_age_grace_ms": 1},
        ),
        (
            {"keepalive": {"time_ms": 1, "timeout_ms": 2, "permit_without_calls": True}},
            {"keepalive_time_ms": 1, "keepalive_timeout_ms": 2, "keepalive_without_calls": True},
        ),
        (
            {"keepalive": {"min_recv_ping_interval_without_data_ms": 3, "max_pings_without_data": 4}},
            {"min_ping_interval_ms": 3, "max_pings_without_data": 4},
        ),
        ({"keepalive": {"http2_max_ping_strikes": 5}}, {"max_ping_strikes": 5}),
    ],
)
def test_every_setting_reaches_the_native_door(settings: dict[str, Any], told: dict[str, int]) -> None:
    assert dict(native(**settings).items() - native().items()) == told
