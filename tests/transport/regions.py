"""Doubles for the memory that callers share."""

from server.core.errors import SharedMemoryFailed


class Region:
    """Memory of a test, as a caller would share it."""

    def __init__(self, data: bytes, name: str = "r", file: int = 1, begin: int = 0) -> None:
        self.name = name
        self.data = bytearray(data)
        self.byte_size = len(data)
        self.lost = False
        self._span = ((0, file), begin)

    def read(self, offset: int, byte_size: int) -> bytes:
        return bytes(self.data[offset : offset + byte_size])

    def writable(self, offset: int, byte_size: int) -> tuple[tuple[int, int], int, int]:
        if self.lost:
            raise SharedMemoryFailed("gone")
        file, begin = self._span
        return file, begin + offset, begin + offset + byte_size

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


class Memory:
    def __init__(self, *regions: Region, max_read_bytes: int = 100) -> None:
        self.regions = {region.name: region for region in regions}
        self.max_read_bytes = max_read_bytes

    def find(self, name: str) -> Region:
        return self.regions[name]
