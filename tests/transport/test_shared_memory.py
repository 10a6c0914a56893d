"""Regions are parts of real files: read and written while they are there, closed when the last one lets go."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from server.core.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    Overloaded,
    PodiumError,
    SharedMemoryFailed,
    Unsupported,
)
from server.transport.shared_memory import FOLDER, Region, Regions


@pytest.fixture
def file() -> Iterator[Path]:
    """A file of 100 bytes that can be registered; its name is its key."""
    path = Path(FOLDER) / f"podium-test-{uuid4().hex}"
    path.write_bytes(bytes(range(100)))
    yield path
    path.unlink(missing_ok=True)


def descriptors(path: Path) -> int:
    """How many descriptors of a file this process has."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that was listing
            found += str(link.readlink()).removesuffix(" (deleted)") == str(path)
    return found


def told(regions: Regions, name: str, key: str, offset: int, byte_size: int) -> tuple[type[PodiumError], str]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PodiumError) as caught:
        regions.register(name, key, offset, byte_size)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    return type(caught.value), str(caught.value)


def region_of(regions: Regions, name: str) -> Region:
    found = regions.find(name)
    assert isinstance(found, Region)
    return found


def test_a_region_is_a_part_of_a_file(file: Path) -> None:
    regions = Regions(allowed=True)
    regions.register("r", "/" + file.name, 10, 80)
    regions.register("whole", file.name, 0, 100)
    region = region_of(regions, "r")
    assert region.read(5, 3) == bytes([15, 16, 17])
    assert region.read(0, 0) == b""
    region.write(79, b"x")
    assert file.read_bytes()[88:91] == b"\x58x\x5a"
    assert region_of(regions, "whole").read(89, 1) == b"x"
    assert region.writable(5, 3)[0] == region_of(regions, "whole").writable(0, 1)[0]
    assert region.writable(5, 3)[1:] == (15, 18)
    assert [(each.name, each.key, each.offset, each.byte_size) for each in regions.registered("")] == [
        ("r", "/" + file.name, 10, 80),
        ("whole", file.name, 0, 100),
    ]
    assert regions.registered("r") == [region]
    with pytest.raises(NotFound, match=r"^Unable to find system shared memory region: 'x'$"):
        regions.registered("x")
    with pytest.raises(NotFound, match=r"^Unable to find shared memory region: 'x'$"):
        regions.find("x")


def test_a_descriptor_is_closed_when_the_last_holder_lets_go(file: Path) -> None:
    regions = Regions(allowed=True)
    regions.register("r", file.name, 0, 100)
    held = regions.find("r")
    assert descriptors(file) == 1
    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", file.name, 50, 50)
    assert descriptors(file) == 2
    assert (held.read(0, 1), regions.find("r").read(0, 1)) == (b"\0", b"\x32")
    del held
    assert descriptors(file) == 1
    regions.unregister("")
    assert descriptors(file) == 0
    assert regions.registered("") == []


def test_what_cannot_be_registered(file: Path, tmp_path: Path) -> None:
    regions = Regions(allowed=True)
    regions.register("r", file.name, 0, 100)
    assert told(regions, "r", file.name, 0, 1) == (AlreadyExists, "shared memory region 'r' already in manager")
    for key in ("", "/", "//"):
        assert told(regions, "n", key, 0, 1) == (
            InvalidRequest,
            f"cannot register shared memory region 'n' - invalid shm key '{key}'",
        )
    for offset, byte_size in ((0, 101), (100, 1), (0, 0), (2**64 - 1, 2**64 - 1), (-1, 1), (1, -1), (2**64, 1)):
        assert told(regions, "n", file.name, offset, byte_size) == (
            InvalidRequest,
            "failed to register shared memory region 'n': invalid args",
        )
    for name in ("", "n" * 1025):
        assert told(regions, name, file.name, 0, 1)[0] is InvalidRequest
    elsewhere = tmp_path / "secret"
    elsewhere.write_bytes(bytes(10))
    link, folder, pipe = (Path(FOLDER) / f"{file.name}-{kind}" for kind in ("link", "folder", "pipe"))
    link.symlink_to(file)
    folder.mkdir()
    (folder / "inside").write_bytes(bytes(10))
    os.mkfifo(pipe)
    try:
        keys = [f"..{elsewhere}", f"../..{elsewhere}", ".", "..", link.name, folder.name, f"{folder.name}/inside", pipe.name]
        for key in [*keys, "nothing-there", "a\0b", "n" * 300, "/./" + file.name]:
            assert told(regions, "n", key, 0, 1) == (SharedMemoryFailed, f"Unable to open shared memory region: '{key}'")
    finally:
        link.unlink()
        pipe.unlink()
        (folder / "inside").unlink()
        folder.rmdir()
    assert [region.name for region in regions.registered("")] == ["r"]


def test_open_regions_are_bounded_whoever_holds_them(file: Path) -> None:
    regions = Regions(allowed=True, max_open=2)
    regions.register("a", file.name, 0, 1)
    held = regions.find("a")
    regions.unregister("a")
    regions.register("a", file.name, 0, 1)
    assert told(regions, "b", file.name, 0, 1) == (
        Overloaded,
        "shared memory region 'b' cannot be registered: 2 are open, the most there can be",
    )
    del held
    regions.register("b", file.name, 0, 1)


@pytest.mark.parametrize(("files", "most"), [(-1, 4096), (1024, 256), (2**20, 4096)])
def test_there_are_descriptors_left_for_connections(files: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    assert Regions()._max_open == most


def test_nothing_can_be_registered_unless_it_is_allowed(file: Path) -> None:
    regions = Regions()
    text = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
    assert told(regions, "r", file.name, 0, 1) == (Unsupported, text)
    with pytest.raises(Unsupported, match="Client shared memory is disabled"):
        regions.unregister("")
    assert regions.registered("") == []


def test_a_file_that_was_cut_or_removed_afterwards(file: Path) -> None:
    regions = Regions(allowed=True)
    regions.register("r", file.name, 10, 80)
    region = region_of(regions, "r")
    file.unlink()
    assert region.read(0, 1) == b"\x0a"
    cut = os.open(f"/proc/self/fd/{region._fd}", os.O_RDWR)
    os.ftruncate(cut, 50)
    assert region.read(0, 40) == bytes(range(10, 50))
    for attempt in (lambda: region.read(0, 41), lambda: region.writable(40, 1)):
        with pytest.raises(SharedMemoryFailed) as caught:
            attempt()
        assert str(caught.value) == "shared memory region 'r' is smaller than it was when it was registered"
    os.close(cut)
    assert os.fstat(region._fd).st_size == 50


def test_what_the_kernel_does_in_parts_is_done_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Regions(allowed=True)
    regions.register("r", file.name, 0, 100)
    region = regions.find("r")
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 7), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    region.write(1, b"abcdefghijklmnopqrst")
    assert region.read(0, 23) == b"\0abcdefghijklmnopqrst\x15\x16"
    # cut between the look at its size and the reading
    monkeypatch.setattr(os, "pread", lambda fd, size, at: b"")
    with pytest.raises(SharedMemoryFailed, match="is smaller than it was"):
        region.read(0, 1)


def test_a_failing_device_is_an_error_of_the_request(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Regions(allowed=True)
    regions.register("r", file.name, 0, 100)
    region = regions.find("r")

    def full(fd: int, *arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pread", full)
    monkeypatch.setattr(os, "pwrite", full)
    for attempt in (lambda: region.read(0, 1), lambda: region.write(0, b"x")):
        with pytest.raises(SharedMemoryFailed) as caught:
            attempt()
        assert str(caught.value) == "shared memory region 'r' cannot be used: No space left on device"
