"""Retrain events: documents that are the same for the same cause, and signatures that anybody can check."""

import hashlib
import hmac
import json
import math
from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.versions import VersionKey
from server.monitoring.events import CONTENT_TYPE, Cause, Event, event, event_of, json_of, keys_of, signed_headers

KEY = VersionKey("flight delay/é", 3)
DRIFT = Cause("drift", KEY, "champion", "drift alarm of x", 1_000_000, 2_000_000, 500_000, {"rows": 7, "p": 1e-9})
TIME = Cause("schedule", KEY, "", "time", 5, 6, 5)


def test_a_document_is_a_cloud_event_that_says_everything() -> None:
    made = event([DRIFT, TIME], 3_000_000)
    document = json.loads(made.body)
    assert document == {
        "specversion": "1.0",
        "id": made.id,
        "source": "/podium/models/flight%20delay%2F%C3%A9",
        "type": "podium.retrain.requested",
        "subject": "flight delay/é:3",
        "time": "1970-01-01T00:00:03.000000Z",
        "datacontenttype": "application/json",
        "data": {
            "model": "flight delay/é",
            "version": 3,
            "arm": "champion",
            "reason": "drift",
            "said": "drift alarm of x",
            "window": {
                "from": "1970-01-01T00:00:01.000000Z",
                "until": "1970-01-01T00:00:02.000000Z",
                "from_us": 1_000_000,
                "until_us": 2_000_000,
            },
            "data": {
                "from": "1970-01-01T00:00:00.500000Z",
                "until": "1970-01-01T00:00:03.000000Z",
                "from_us": 500_000,
                "until_us": 3_000_000,
            },
            "also": [{"reason": "schedule", "said": "time"}],
            "rows": 7,
            "p": 1e-9,
        },
    }
    assert (made.model, made.reason, made.time_us) == ("flight delay/é", "drift", 3_000_000)


def test_the_same_cause_has_the_same_id_whenever_it_is_found() -> None:
    assert event([DRIFT], 3_000_000).id == event([DRIFT], 9_000_000).id
    assert event([DRIFT], 3_000_000).body == event([DRIFT], 3_000_000).body
    others = [
        Cause("quality", KEY, "champion", "", 1_000_000, 2_000_000, 0),
        Cause("drift", VersionKey("m", 3), "champion", "", 1_000_000, 2_000_000, 0),
        Cause("drift", KEY._replace(version=4), "champion", "", 1_000_000, 2_000_000, 0),
        Cause("drift", KEY, "challenger", "", 1_000_000, 2_000_000, 0),
        Cause("drift", KEY, "champion", "", 1_000_001, 2_000_000, 0),
        Cause("drift", KEY, "champion", "", 1_000_000, 2_000_001, 0),
    ]
    ids = {event([cause], 3_000_000).id for cause in (DRIFT, *others)}
    assert len(ids) == 7
    assert all(len(each) == 32 for each in ids)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=json_values)
def test_any_fact_can_be_told(value: Any) -> None:
    made = event([Cause("drift", KEY, "a", "", 0, 1, 0, {"fact": value})], 5)
    assert event_of(made.body) == made
    assert json.loads(made.body)["data"]["fact"] == json_of(value)


def test_what_is_no_number_in_json_is_told_as_a_text() -> None:
    assert json_of([math.inf, -math.inf, 1.5]) == ["inf", "-inf", 1.5]
    assert json_of(math.nan) == "nan"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"id":"a","type":"podium.retrain.requested","data":{"model":"m","reason":"drift"}}',
        b'{"id":1,"type":"podium.retrain.requested","data":{"model":"m","reason":"drift","data":{"until_us":1}}}',
        b'{"id":"a","type":"other","data":{"model":"m","reason":"drift","data":{"until_us":1}}}',
    ],
)
def test_what_is_no_event_is_told_from_one(body: bytes) -> None:
    with pytest.raises(ValueError, match="no retrain event"):
        event_of(body)


def test_a_signature_is_what_standard_webhooks_says() -> None:
    """By the definition alone: base64 of HMAC-SHA-256 over `id.timestamp.body`, made here as RFC 2104 constructs it."""
    made, key = event([DRIFT], 3_000_000), b"k" * 32
    headers = signed_headers(made, [key], 1_700_000_000)
    message = b".".join([made.id.encode(), b"1700000000", made.body])
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key.ljust(64, b"\0")) + message).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key.ljust(64, b"\0")) + inner).digest()
    assert headers == {
        "content-type": CONTENT_TYPE,
        "webhook-id": made.id,
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{b64encode(outer).decode()}",
    }


def test_the_specifications_own_example() -> None:
    """Source: Standard Webhooks 1.0.0, test vector of its reference libraries."""
    secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    made = Event("msg_p5jXN8AQM9LWM0D4loKWxJek", "m", "drift", 0, b'{"test": 2432232314}')
    headers = signed_headers(made, keys_of(secret), 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_one_key_replaces_another_both_sign() -> None:
    made = event([DRIFT], 3_000_000)
    both = signed_headers(made, keys_of(b"old key\nnew key\n"), 7)["webhook-signature"].split(" ")
    assert both == [signed_headers(made, [key], 7)["webhook-signature"] for key in (b"old key", b"new key")]
    assert len(b64decode(both[0].removeprefix("v1,"))) == 32


def test_keys_of_a_file() -> None:
    assert keys_of(b"  secret \r\n\n") == (b"secret",)
    assert keys_of(b"whsec_" + b64encode(b"\x00\x01")) == (b"\x00\x01",)
    for content, why in ((b"", "no key"), (b" \n", "no key"), (b"whsec_!", "no base64"), (b"whsec_", "a key is empty")):
        with pytest.raises(ValueError, match=why):
            keys_of(content)


def test_another_body_has_another_signature() -> None:
    made = event([DRIFT], 3_000_000)
    other = Event(made.id, made.model, made.reason, made.time_us, made.body.replace(b"champion", b"challeng"))
    signatures = {signed_headers(each, [b"k"], 7)["webhook-signature"] for each in (made, other)}
    assert len(signatures) == 2
    expected = hmac.new(b"k", f"{made.id}.7.".encode() + made.body, "sha256").digest()
    assert f"v1,{b64encode(expected).decode()}" in signatures
