"""When a packed row happened and became known, read from its header: what "newest wins" compares. **Pure.**

Stores know nothing else of a row. The two instants stand at bytes 16 and 24 of the header, int64, little-endian,
microseconds since 1970; `row` packs them there, and the script that runs in Redis reads them there.
"""

import struct

from feature_client.errors import StoreError

_TIMES = struct.Struct("<16xqq")


def row_times(row: bytes) -> tuple[int, int]:
    """Event time and available time. Raises: StoreError where the bytes are too short to be a row.

    >>> row_times(bytes(16) + (7).to_bytes(8, "little") + (9).to_bytes(8, "little"))
    (7, 9)
    """
    if len(row) < _TIMES.size:
        raise StoreError(f"{len(row)} bytes cannot be a row: its header alone is longer")
    event_us, available_us = _TIMES.unpack_from(row)
    return event_us, available_us
