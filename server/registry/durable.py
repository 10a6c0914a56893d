"""Writes that are whole or not there, and locks that a killed process gives back.

Floor 2: the registry's only hands on the disk. Never decides what is written. Locks are `flock` on the folder itself: no
lock file to leave behind, and the kernel releases it with the process, however that ends.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.registry.manifest import FileDigest

_CHUNK_BYTES = 2**20


def write_atomically(path: Path, data: bytes) -> None:
    """Make `path` hold exactly `data`, on disk: a reader or a crash sees the old content or the new, never a mixture."""
    # opened by hand because tempfile's 0600 would hide the file from a server run by another user
    temporary = path.parent / temporary_name(path.name, secrets.token_hex(8))
    try:
        write_new(temporary, data)
        temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def temporary_name(name: str, unique: str) -> str:
    """What a file is called until it may have its own name: hidden, so that no scan takes it for part of a version."""
    return f".{name}-{unique}"


def write_new(path: Path, data: bytes) -> None:
    """Create `path` with `data` and force both to disk (not the folder's entry). Raises: FileExistsError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Append one line and force it to disk; a line cut off by a crash is closed first, so it spoils only itself."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        torn = False
        if end:
            file.seek(end - 1)
            torn = file.read(1) != b"\n"
        file.write(("\n" if torn else "").encode() + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def copy_new(source: Path, target: Path) -> FileDigest:
    """Copy a file to a path that is not there yet, force it to disk, and return the digest of what was written."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return FileDigest(sha256=digest.hexdigest(), bytes=size)


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of a file, both of the bytes that were read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256=sha256, bytes=file.tell())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk: without it a rename may be undone by a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against every other process and thread that uses this function; waits for its turn. Not reentrant."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether somebody alive holds `folder`; True as well where it is gone (whoever removed it was its owner)."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)
