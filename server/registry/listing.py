"""The files of one version folder, by stat alone.

Floor 2, below `source`. Never opens a file. Hidden entries (leading dot) are what copying tools and file systems leave
behind: no file of a version is hidden, so they are not listed, but their age counts as activity in the folder.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import RegistryError


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells a file from another one of the same name, without reading it."""

    bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Files by path relative to the folder, and the newest modification time of anything in it, folders included."""

    files: Mapping[str, FileStat]
    newest_ns: int


def list_files(folder: Path, root: Path) -> Listing:
    """List a version's folder.

    Raises: RegistryError for an entry that cannot be part of a version: a link that leads out of `root` (which must be
    resolved) or nowhere, a link to a folder, or something that is not a file; OSError where the folder cannot be read.
    """
    files: dict[str, FileStat] = {}
    newest_ns = folder.stat().st_mtime_ns
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                newest_ns = max(newest_ns, found.st_mtime_ns)
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                relative = path.relative_to(folder).as_posix()
                if entry.is_symlink():
                    found = _target(path, relative, root)
                    newest_ns = max(newest_ns, found.st_mtime_ns)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif stat.S_ISREG(found.st_mode):
                    files[relative] = FileStat(found.st_size, found.st_mtime_ns, found.st_ino)
                else:
                    raise RegistryError(f"{relative} is not a regular file")
    return Listing(files, newest_ns)


def _target(path: Path, relative: str, root: Path) -> os.stat_result:
    # not path.resolve(), which raises RuntimeError for links in a circle; stat says so as an OSError
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise RegistryError(f"{relative} is a link that leads out of the repository")
    try:
        found = path.stat()
    except OSError as error:
        raise RegistryError(f"{relative} is a broken link: {error.strerror}") from None
    # a linked folder could contain itself, and its files would belong to two versions
    if stat.S_ISDIR(found.st_mode):
        raise RegistryError(f"{relative} is a link to a folder")
    return found
