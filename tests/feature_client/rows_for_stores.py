"""Rows as stores see them: two instants in a header, and bytes that nobody looks at."""

import struct


def row(event_us: int, available_us: int = 0, body: bytes = b"") -> bytes:
    """A row with these instants."""
    return bytes(16) + struct.pack("<qq", event_us, available_us) + body


def keys_of(prefix: str, count: int, view: str = "v@1") -> list[bytes]:
    """Distinct keys as entities have them, spread over the slots of a cluster."""
    return [f"f1:test:{{{prefix}:i{number}}}:{view}".encode() for number in range(count)]
