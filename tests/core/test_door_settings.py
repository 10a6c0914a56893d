"""Settings of the socket that could not do what they say are refused with a reason."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from server.core import door_settings
from server.core.door_settings import AccessRules, AccessSettings, is_private
from server.core.settings import ServerSettings

TABLES = [
    value
    for value in vars(door_settings).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == door_settings.__name__
]
TLS = {"cert_file": "c", "key_file": "k"}


def server(**values: Any) -> ServerSettings:
    return ServerSettings.model_validate({"repository": "r", **values})


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_frozen_and_refuses_what_it_does_not_know(table: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        table.model_validate({"cert": 1})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(table(), next(iter(table.model_fields)), None)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"tls": {"cert_file": "c"}}, "cert_file and key_file come together"),
        ({"tls": {"key_file": "k"}}, "cert_file and key_file come together"),
        ({"tls": {"client_ca_file": "a"}}, "client_ca_file needs cert_file and key_file"),
        ({"tls": TLS, "grpc_address": "unix:s"}, "a unix socket carries no TLS"),
        ({"access": {"health": {"subjects": ["cn:a"]}}, "tls": TLS}, "need tls.client_ca_file"),
        ({"access": {"health": {"subjects": ["a"]}}}, "subject 'a' must begin with what it speaks of"),
        ({"access": {"health": {"subjects": ["cn:"]}}}, "subject 'cn:' must begin"),
        ({"access": {"health": {"header": "key"}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "=value"}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "key="}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "Key=value"}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "key=v\u00e4lue"}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "key= value"}}}, "header is 'key=value'"),
        ({"access": {"health": {"header": "key-bin=value"}}}, "cannot have a key that ends in '-bin'"),
        (
            {"access": {"inference": {"tokens_file": "t"}}, "grpc_address": "0.0.0.0:8001"},
            "tokens would travel to '0.0.0.0:8001'",
        ),
        ({"access": {"management": {"tokens_file": "t"}}, "grpc_address": "example.org:1"}, "tokens would travel"),
        ({"limits": {"max_connections": -1}}, "greater than or equal to 0"),
        ({"limits": {"max_metadata_bytes": 10}}, "greater than or equal to 1024"),
        ({"limits": {"max_connection_age_s": "inf"}}, "less than or equal to 604800|finite"),
        ({"keepalive": {"time_ms": 0}}, "greater than 0"),
        ({"compression": "br"}, "'none', 'gzip' or 'deflate'"),
        ({"error_codes": "loose"}, "'triton' or 'strict'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        server(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"grpc_address": "unix:/run/s"},
        {"grpc_address": "127.0.0.1:8001"},
        {"grpc_address": "0.0.0.0:8001", "tls": TLS},
        {"grpc_address": "0.0.0.0:8001", "access": {"allow_plaintext_tokens": True}},
    ],
)
def test_tokens_may_travel_where_nobody_reads_along(values: dict[str, Any]) -> None:
    access = {"inference": {"tokens_file": "t"}, **values.get("access", {})}
    assert server(**{**values, "access": access}).access.inference.tokens_file == "t"


def test_what_can_be_meant_is_kept() -> None:
    rules = {"tokens_file": "t", "subjects": ["cn:a", "dns:*.b", "uri:spiffe://c/*"], "header": "k.1_x-y=a = b"}
    made = server(tls={**TLS, "client_ca_file": "a"}, access={"management": rules})
    assert made.access.management.header == "k.1_x-y=a = b"
    assert not made.access.management.open
    assert made.access.inference.open
    assert AccessSettings() == AccessSettings(inference=AccessRules())


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        (":1", False),
        ("localhost.example:1", False),
    ],
)
def test_what_is_private(address: str, private: bool) -> None:
    assert is_private(address) is private
