"""Where measurements of versions are kept: beside the version, one document per kind of device and backend.

Floor 2. In the model's folder and not in the version's, whose files are what its manifest says and whose age says whether it is
still being written: `<model>/.measured/<version>/<kind of device>.<backend>.json`. No scan, stamp, digest or lease knows the
hidden folder; a prune takes a version's part of it along. Everything here is best effort: a repository that cannot be written
is an ordinary one.
"""

import errno
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.core.errors import RegistryError
from server.core.measured import Measured, document_name, measured_bytes, parse_measured
from server.registry.durable import write_atomically
from server.registry.listing import list_files
from server.registry.manifest import MANIFEST_FILE
from server.registry.names import MEASURED_FOLDER

_log = logging.getLogger(__name__)


class MeasuredFiles:
    """The documents of all versions. `folder` is where they are written instead of into the repository, and looked for first:
    `<folder>/<model>/<version>/…`. For one thread.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._told = False

    def read(self, found: Any, device_kind: str, backend: str) -> Measured | None:
        """What was measured of a found version; None where nothing was, or it cannot be read. Whether it is about the very same
        files and settings is for the caller to see."""
        for folder in self._folders(found):
            path = folder / document_name(device_kind, backend)
            try:
                measured = parse_measured(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, RegistryError) as error:
                _log.debug("%s: %s cannot be used: %s", found.key, path, error)
                continue
            if (measured.model, measured.version, measured.device_kind, measured.backend) == (*found.key, device_kind, backend):
                return measured
        return None

    def write(self, found: Any, measured: Measured) -> bool:
        """Keep a document in place of the one before. False where the disk refuses, which is logged once, at debug."""
        folder = self._folders(found)[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._folder is None and (folder.is_symlink() or folder.parent.is_symlink()):
                # whoever may put files into the repository must not choose where a server writes
                raise OSError(errno.ELOOP, "it is a link")
            write_atomically(folder / document_name(measured.device_kind, measured.backend), measured_bytes(measured))
        except OSError as error:
            if not self._told:
                self._told = True
                _log.debug("%s: what was measured is not kept in %s: %s", found.key, folder, error.strerror)
            return False
        return True

    def all(self, found: Any) -> Iterator[Measured]:
        """Every document of a version that can be read, by name; one that was written elsewhere hides the repository's."""
        seen: set[str] = set()
        for folder in self._folders(found):
            for path in sorted(folder.glob("*.json")):
                if path.name in seen:
                    continue
                try:
                    yield parse_measured(path.read_bytes())
                except (OSError, RegistryError) as error:
                    _log.warning("%s: %s cannot be used: %s", found.key, path, error)
                    continue
                seen.add(path.name)

    def _folders(self, found: Any) -> list[Path]:
        number = str(found.key.version)
        beside: Path = found.folder.parent / MEASURED_FOLDER / number
        return [beside] if self._folder is None else [self._folder / found.key.model / number, beside]


def files_digest(found: Any) -> str:
    """SHA-256 over the files of a found version: of their digests where it has a manifest, else of their sizes and times.

    Raises: RegistryError, OSError where they cannot be listed.
    """
    if found.manifest is not None:
        lines = [f"{path}\0{file.sha256}" for path, file in sorted(found.manifest.files.items())]
    else:
        # a link that leads out of the repository was refused when the version was scanned
        listed = list_files(found.folder, Path("/")).files
        lines = [f"{path}\0{file.bytes}\0{file.mtime_ns}" for path, file in sorted(listed.items()) if path != MANIFEST_FILE]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()
