"""Fields one after the other in bytes, and read back with every length looked at first. **Pure.**

Floor 4, below `codec` and `entries`. Own framing and not pickle, which runs what it reads; nor `.npz`, a zip file of 200 bytes
an array whose member sizes are the writer's word. Not compressed: of float32 features zlib takes off a tenth at 25 MB/s a
core, and what is the same in all rows of a batch `codec` writes once.
"""

import struct
from collections.abc import Iterable

from xxhash import xxh64_digest

_HEAD = struct.Struct("<4sB8s")
_MAX_TEXT_BYTES = 4096


def framed(magic: bytes, version: int, fields: Iterable[bytes]) -> bytes:
    """A blob: 4 bytes that say what it is, its form's version, a checksum (XXH64) of the rest, the rest."""
    body = b"".join(fields)
    return _HEAD.pack(magic, version, xxh64_digest(body)) + body


def number(form: str, value: float) -> bytes:
    """One number, little-endian, as `struct` calls its form. Raises: ValueError where it does not fit."""
    try:
        return struct.pack("<" + form, value)
    except struct.error as error:
        raise ValueError(f"{value!r} cannot be written: {error}") from None


def text(value: str) -> bytes:
    """A text with its length in front. Raises: ValueError for one beyond 4096 bytes."""
    data = value.encode()
    if len(data) > _MAX_TEXT_BYTES:
        raise ValueError(f"a name of {len(data)} bytes cannot be written: at most {_MAX_TEXT_BYTES}")
    return number("H", len(data)) + data


class Fields:
    """Reads a blob from its beginning. Everything but a whole one is a ValueError, and nothing is allocated beyond its size."""

    def __init__(self, blob: bytes, magic: bytes, version: int) -> None:
        if len(blob) < _HEAD.size:
            raise ValueError(f"{len(blob)} bytes are too few")
        found, its_version, checksum = _HEAD.unpack_from(blob)
        if found != magic:
            raise ValueError(f"it begins with {found!r} and not {magic!r}")
        if its_version != version:
            raise ValueError(f"it is of version {its_version}, this reads version {version}")
        self._data = memoryview(blob)[_HEAD.size :]
        if xxh64_digest(self._data) != checksum:
            raise ValueError("it is damaged: its checksum is another")
        self._position = 0

    def take(self, size: int) -> memoryview:
        """The next bytes: a view."""
        end = self._position + size
        if end > len(self._data):
            raise ValueError(f"it ends within a field: {size} bytes at {self._position} of {len(self._data)}")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def integer(self, form: str) -> int:
        """An integer of that form."""
        value: int = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]
        return value

    def real(self) -> float:
        """A float64."""
        value: float = struct.unpack("<d", self.take(8))[0]
        return value

    def text(self) -> str:
        """A text."""
        size = self.integer("H")
        if size > _MAX_TEXT_BYTES:
            raise ValueError(f"a name of {size} bytes")
        return str(self.take(size), "utf-8")

    def rest(self) -> memoryview:
        """All that is left: a view."""
        return self.take(len(self._data) - self._position)

    def end(self) -> None:
        """Nothing may follow."""
        if self._position != len(self._data):
            raise ValueError(f"{len(self._data) - self._position} bytes follow its last field")
