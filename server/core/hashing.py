"""One number per request id, the same in every process and in both data planes. **Pure.**

xxHash is read and written by every language, and takes a fraction of a microsecond; it keeps no secrets.
"""

from xxhash import xxh64_intdigest


def id_hash(request_id: str) -> int:
    """XXH64 of an id, seed 0: 64 bits. All requests without an id have the same one.

    >>> hex(id_hash("")), hex(id_hash("request-1"))
    ('0xef46db3751d8e999', '0xe624cfabad83834e')
    """
    return xxh64_intdigest(request_id.encode())
