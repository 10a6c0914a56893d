"""Retrain events: what is asked for, why, and with which rows, as a document that its receiver can trust. **Pure.**

Floor 4: values and bytes. A document is a CloudEvent 1.0 in JSON, always the same bytes for the same event, and its `id`
follows from what it is about: whoever gets it twice, or from two replicas, knows it by that.
Sources: CloudEvents 1.0.2, JSON format 3 and HTTP binding 3.2 (structured mode); Standard Webhooks 1.0.0, "Signature scheme".
"""

import binascii
import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Literal
from urllib.parse import quote

from server.core.versions import VersionKey

Reason = Literal["drift", "quality", "schedule", "new_data"]

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
TYPE = "podium.retrain.requested"
_SECRET = "whsec_"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a model should be trained again.

    `said`: in one sentence. `start_us`, `end_us`: the window that it was found in; they are a part of the event's id, so that
    replicas that find the same ask for the same. `data_from_us`: since when rows are of the new kind. `facts`: everything that
    the decision was made by, as JSON has it.
    """

    reason: Reason
    key: VersionKey
    arm: str
    said: str
    start_us: int
    end_us: int
    data_from_us: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """A document, and what is needed to deal with it. `time_us`: when it was made, microseconds since 1970."""

    id: str
    model: str
    reason: str
    time_us: int
    body: bytes


def event(causes: Sequence[Cause], now_us: int) -> Event:
    """The event that a model raises for these causes; the first one gives its reason, the others are told beside it."""
    cause = causes[0]
    key = cause.key
    about = [key.model, key.version, cause.arm, cause.reason, cause.start_us, cause.end_us]
    identity = hashlib.sha256(_canonical(about)).hexdigest()[:32]
    document = {
        "specversion": "1.0",
        "id": identity,
        "source": f"/podium/models/{quote(key.model, safe='')}",
        "type": TYPE,
        "subject": f"{key.model}:{key.version}",
        "time": _instant(now_us),
        "datacontenttype": "application/json",
        "data": {
            "model": key.model,
            "version": key.version,
            "arm": cause.arm,
            "reason": cause.reason,
            "said": cause.said,
            "window": _range(cause.start_us, cause.end_us),
            "data": _range(cause.data_from_us, now_us),
            "also": [{"reason": other.reason, "said": other.said} for other in causes[1:]],
            **cause.facts,
        },
    }
    return Event(identity, key.model, cause.reason, now_us, _canonical(document))


def event_of(body: bytes) -> Event:
    """The event that a document is of. Raises: ValueError where it is none of these."""
    try:
        document = json.loads(body)
        data = document["data"]
        made = Event(document["id"], data["model"], data["reason"], int(data["data"]["until_us"]), body)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no retrain event: {type(error).__name__}: {error}") from None
    if not all(isinstance(each, str) for each in (made.id, made.model, made.reason)) or document.get("type") != TYPE:
        raise ValueError("no retrain event: its id, model, reason or type is another thing")
    return made


def json_of(value: Any) -> Any:
    """A value as JSON can say it: numbers that are not finite are texts.

    >>> json_of({"p": 0.5, "log_detector": float("-inf"), "counts": (1, 2)})
    {'p': 0.5, 'log_detector': '-inf', 'counts': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(name): json_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_of(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value


def keys_of(content: bytes) -> tuple[bytes, ...]:
    """The keys in a key file, one a line: while one takes the place of another, both sign.

    A line that begins with `whsec_` is base64, as Standard Webhooks writes keys; any other is the key itself.
    Raises: ValueError for a file without a key, and a line that is not what it says.
    """
    keys = []
    for line in content.splitlines():
        text = line.strip()
        if text.startswith(_SECRET.encode()):
            try:
                text = b64decode(text.removeprefix(_SECRET.encode()), validate=True)
            except binascii.Error:
                raise ValueError(f"a line begins with {_SECRET}, but what follows is no base64") from None
            if not text:
                raise ValueError("a key is empty")
        if text:
            keys.append(text)
    if not keys:
        raise ValueError("it holds no key")
    return tuple(keys)


def signed_headers(made: Event, keys: Sequence[bytes], now_s: int) -> dict[str, str]:
    """Headers that prove who made a document, and when it was sent: one signature for each key.

    What is signed is `id.timestamp.body`: neither can be replaced, and what was recorded cannot be sent again later.
    """
    signed = f"{made.id}.{now_s}.".encode() + made.body
    signatures = [b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": made.id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(json_of(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _range(start_us: int, end_us: int) -> dict[str, Any]:
    return {"from": _instant(start_us), "until": _instant(end_us), "from_us": start_us, "until_us": end_us}


def _instant(time_us: int) -> str:
    """As RFC 3339 writes it.

    >>> _instant(1_767_225_600_000_001)
    '2026-01-01T00:00:00.000001Z'
    """
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")
