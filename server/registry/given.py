"""A model whose files a caller sent along with its Load, kept in a private folder for as long as it is wanted.

Floor 2: it has the shape of a repository of one model, so what reads a repository reads this. Never touches the repository
itself, and promises nothing beyond the process: what a killed server leaves behind lies where temporary files are swept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from server.core.errors import InvalidRequest, LoadFailed
from server.registry.names import version_number
from server.registry.source import FoundModel, LocalDirectory

_PREFIX = "podium-given-"


@dataclass(frozen=True, slots=True)
class Given:
    """A model as it was found in a folder of its own.

    Ownership: whoever holds it last calls `close`. At an orderly exit of the interpreter the folder goes in any case.
    """

    found: FoundModel
    _folder: TemporaryDirectory[str]

    def close(self) -> None:
        """Remove the folder. What was loaded from it stays in memory. Idempotent."""
        self._folder.cleanup()


def give(model: str, files: Mapping[str, bytes]) -> Given:
    """Put `files` (by path `<version>/<file>`) into a folder that only this user can read; all of them, or nothing stays.

    `model` has passed `check_model_name`.
    Raises: InvalidRequest for a path that could lead elsewhere or is no version's, or files that no version can be made of;
    LoadFailed where they cannot be written.
    """
    for path in files:
        _check_path(path, files)
    folder = TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    try:
        root = Path(folder.name)
        # nothing is forced to disk: nobody knows of the folder yet, and it does not outlive this process
        for path, data in files.items():
            file = root / model / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        found = LocalDirectory(root, settle_s=0).scan()[model]
        for version in found.versions.values():
            if version.problem is not None:
                raise InvalidRequest(f"the files given for {version.key} are no version: {version.problem}")
    except OSError as error:
        folder.cleanup()
        raise LoadFailed(f"failed to load '{model}', the given files cannot be written: {error.strerror}") from None
    except BaseException:
        folder.cleanup()
        raise
    return Given(found, folder)


def _check_path(path: str, files: Mapping[str, bytes]) -> None:
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in path or "\0" in path:
        raise InvalidRequest(
            f"Invalid file parameter {f'file:{path}'!r} must stay within model directory: no path traversal, no absolute path,"
            " no empty part"
        )
    if len(parts) < 2 or version_number(parts[0]) is None:
        raise InvalidRequest(
            f"Invalid file parameter {f'file:{path}'!r}, expected 'file:<version>/<file>', a version being > 0"
        )
    for end in range(1, len(parts)):
        if "/".join(parts[:end]) in files:
            raise InvalidRequest(f"Invalid file parameter {f'file:{path}'!r}, directory has been created as a file")
